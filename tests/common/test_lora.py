"""`all-linear` and rank-stabilised LoRA: which layers, which scale, and that PEFT alone reads them back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.errors import ConfigError, ModelError
from confide.common.model.adapter import export_adapter, plain
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.lora import attention_layers, linear_layers, trained_whole
from confide.common.model.proof import check_reached, prove
from confide.common.model.shapes import Shapes
from confide.common.tasks import load_task
from confide.tests.architectures import save_architecture
from confide.tests.elsewhere import Elsewhere
from confide.tests.rings import slow


def load(folder: Path, name: str, **changes) -> FineTuneModel:
    lora = LoraSection(rank=4, alpha=4, **changes.pop("lora", {"targets": "all-linear"}))
    chosen = {"backbone": str(save_architecture(name, folder)), "max_length": 24, "lora": lora, **changes}
    return load_model(ModelSection(**chosen), 3, 0)


def layers(model: FineTuneModel) -> set[str]:
    """Last names of the layers that carry LoRA."""
    return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in model.trained if ".lora_" in name}


@pytest.mark.parametrize(
    ("name", "changes", "expected", "whole"),
    [
        ("bert", {}, {"query", "key", "value", "dense"}, {"head"}),
        *slow(
            ("bert", {"pooling": "model"}, {"query", "key", "value", "dense"}, {"classifier"}),
            ("bert", {"task": "masked-lm"}, {"query", "key", "value", "dense"}, {"head"}),
        ),
        ("bert", {"task": "masked-lm", "pooling": "model"}, {"query", "key", "value", "dense"}, set()),
        ("distilbert", {}, {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"}, {"head"}),
        ("gpt2", {"task": "causal-lm"}, {"c_attn", "c_fc", "c_proj"}, set()),
        (
            "llama",
            {"task": "causal-lm"},
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
            set(),
        ),
        ("vit", {"task": "image-classification"}, {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}, {"head"}),
    ],
)
def test_every_linear_layer_but_head_and_output(tmp_path, name: str, changes: dict, expected: set, whole: set) -> None:
    model = load(tmp_path, name, **changes)
    assert layers(model) == expected
    assert {key.split(".")[2] for key in model.trained if ".lora_" not in key} == whole
    check_reached(model)
    prove(model, Shapes(0 if name == "vit" else 16, 4, 30.0))


def test_lora_on_words_in_a_private_mode_names_what_can_be_there(gpt2: Path) -> None:
    chosen = ModelSection(backbone=str(gpt2), task="causal-lm", max_length=8, lora=LoraSection(targets=("wte",)))
    words = r"take wte, an embedding, out of model\.lora\.targets; layers that can be there: c_attn, c_fc, c_proj$"
    with pytest.raises(ModelError, match=words):
        prove(load_model(chosen, 0, 0), Shapes(8, 4, 30.0))


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("language_model", "vision_tower", "multi_modal_projector", "stand_in", "head"):
            self.add_module(name, nn.Sequential(nn.Linear(2, 2)))


def test_towers_that_no_text_passes_are_left_out() -> None:
    base, text, both = TwoTowers(), load_task("causal-lm"), load_task("image-text-classification")
    assert linear_layers(base, text, ["stand_in", "head"]) == ["language_model.0"]
    expected = ["language_model.0", "vision_tower.0", "multi_modal_projector.0"]
    assert linear_layers(base, both, ["stand_in", "head"]) == expected
    with pytest.raises(ModelError, match="'all-linear' received; this model has no linear layer"):
        linear_layers(nn.Sequential(nn.LayerNorm(2)), text, [])


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            ("nosuch",),
            r"received 'nosuch', which names no layer of this model \(head aside.*among dense, key, query, value",
        ),
        (("query", "valeu"), "received 'valeu', which names no layer of this model"),
        (("query", "encoder"), "received 'encoder', which names a BertEncoder, which cannot carry LoRA"),
        (("head",), "received 'head', which names no layer of this model"),
    ],
)
def test_a_target_that_names_no_layer_is_refused_whatever_others_do(tmp_path, targets: tuple, words: str) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets: " + words):
        load(tmp_path, "bert", lora={"targets": targets})


def test_targets_are_ends_of_names(tmp_path: Path) -> None:
    assert layers(load(tmp_path, "bert", lora={"targets": ("attention.self.query", "1.output.dense")})) == {
        "query",
        "dense",
    }


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("albert", "sequence-classification", {"query", "value"}),
        ("distilbert", "sequence-classification", {"q_lin", "v_lin"}),
        ("mpnet", "sequence-classification", {"q", "v"}),
        ("modernbert", "sequence-classification", {"Wqkv"}),
        ("phi3", "causal-lm", {"qkv_proj"}),
        ("vit", "image-classification", {"q_proj", "v_proj"}),
        ("clip-vision", "image-classification", {"q_proj", "v_proj"}),
        ("gpt2", "causal-lm", {"c_attn"}),  # PEFT's own
    ],
)
def test_without_targets_queries_and_values_of_the_attention_are_trained(
    tmp_path: Path, name: str, task: str, expected: set
) -> None:
    model = load(tmp_path, name, task=task, lora={})
    assert layers(model) == expected
    check_reached(model)
    prove(model, Shapes(0 if task.startswith("image") else 16, 4, 30.0))


def test_without_an_attention_the_message_lists_what_there_is() -> None:
    base = TwoTowers()
    with pytest.raises(
        ModelError, match=r"nothing received, .*no linear layers of an attention; allowed: 'all-linear'"
    ):
        attention_layers(base, load_task("causal-lm"), ["stand_in", "head"])
    base.get_submodule("language_model").add_module("attn", nn.Sequential(nn.Linear(2, 2)))
    assert attention_layers(base, load_task("causal-lm"), ["stand_in", "head"]) == ["language_model.attn.0"]


def test_parts_are_named_whole(tmp_path: Path) -> None:
    """PEFT compares the ends of names."""
    base, section = TwoTowers(), ModelSection(backbone="x", lora=LoraSection(modules_to_save=("vision_tower",)))
    assert trained_whole(base, load_task("sequence-classification"), section) == ["vision_tower", "head"]
    base.get_submodule("language_model").add_module("q_head", nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"model.train: 'head' would be trained whole.*'language_model.q_head'"):
        trained_whole(base, load_task("sequence-classification"), section)
    named = ModelSection(backbone="x", lora=LoraSection(modules_to_save=("tower",)))
    with pytest.raises(ModelError, match=r"modules_to_save: received 'tower'; allowed: language_model, vision_tower"):
        trained_whole(base, load_task("causal-lm"), named)
    base.get_submodule("language_model").add_module("old_vision_tower", nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"modules_to_save: 'vision_tower' would be trained whole.*leave it out"):
        trained_whole(base, load_task("causal-lm"), section)


@pytest.mark.parametrize("targets", ["query", ["query", 3]])
def test_other_texts_than_all_linear_are_refused(make_config, targets) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: received .*; allowed: a list of module names"):
        make_config(model={"lora": {"targets": targets}})


def test_the_scale_is_alpha_over_the_root_of_the_rank(tmp_path: Path) -> None:
    standard = load(tmp_path / "a", "bert", lora={})
    stable = load(tmp_path / "b", "bert", lora={"scaling": "rank_stabilized"})
    ids = torch.tensor([[5, 6, 7, 8]])
    for model, scale in ((standard, 1.0), (stable, 2.0)):  # rank 4, alpha 4
        layer = next(m for n, m in model.module.named_modules() if n.endswith("layer.0.attention.self.query"))
        assert isinstance(layer.scaling, dict)
        assert layer.scaling["default"] == scale
        rng = np.random.default_rng(0)
        model.set({n: rng.normal(size=a.shape).astype(np.float32) for n, a in model.initial.items()})
    with torch.no_grad():
        one, two = (model.module(input_ids=ids).logits for model in (standard, stable))
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("lora", [{"scaling": "rank_stabilized"}, {"targets": "all-linear"}])
def test_peft_alone_reads_the_adapter_back(elsewhere: Elsewhere, tmp_path: Path, lora: dict) -> None:
    """Without confide in the other process: backbone by transformers, adapter by PEFT."""
    folder = save_architecture("llama", tmp_path / "backbone")
    chosen = ModelSection(backbone=str(folder), task="causal-lm", lora=LoraSection(rank=4, alpha=4, **lora))
    model = load_model(chosen, 0, 0)
    rng = np.random.default_rng(0)
    adapter = {name: rng.normal(0, 0.1, a.shape).astype(np.float32) for name, a in model.initial.items()}
    model.set(adapter)
    export_adapter(model, chosen, [], tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        here = model.module(input_ids=ids).logits.numpy()
        merged = plain(model, adapter)(input_ids=ids).logits.numpy()
        without = model.module.get_base_model()
        with model.module.disable_adapter():
            base = without(input_ids=ids).logits.numpy()
    script = f"""
import json, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).eval()
with torch.no_grad():
    print(json.dumps(model(input_ids=torch.tensor({ids.tolist()})).logits.tolist()))
"""
    there = json.loads(elsewhere(script, tmp_path).splitlines()[-1])
    np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(here, merged, rtol=1e-3, atol=1e-4)
    assert not np.allclose(here, base, atol=1e-2)


def test_a_model_whose_gradients_are_all_zero_is_refused(tmp_path: Path) -> None:
    """Output embeddings of zero: every logit is 0 whatever the layers below say, and LoRA would never move."""
    model = load(tmp_path, "llama", task="causal-lm", lora={"targets": ("q_proj",)}).copy(share=False)
    check_reached(model)
    with torch.no_grad():
        dict(model.module.named_parameters())["base_model.model.lm_head.weight"].zero_()
    with pytest.raises(ModelError, match="zero or not finite in every trained array, so nothing could be trained"):
        check_reached(model)
    with torch.no_grad():
        dict(model.module.named_parameters())["base_model.model.lm_head.weight"].fill_(torch.nan)
    with pytest.raises(ModelError, match="zero or not finite in every trained array"):
        check_reached(model)


@pytest.mark.parametrize("targets", [("wte",), ("lm_head",), ("wte", "lm_head")])
def test_of_a_shared_table_merging_changes_what_was_trained_alone(tmp_path: Path, targets: tuple[str, ...]) -> None:
    """GPT-2 reads and writes by one table: LoRA on the one must not change the other."""
    model = load(tmp_path, "gpt2", task="causal-lm", lora={"targets": targets})
    rng = np.random.default_rng(0)
    model.set({name: rng.normal(size=array.shape).astype(np.float32) for name, array in model.initial.items()})
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(model, model.get())(ids).logits, model.module(ids).logits)
