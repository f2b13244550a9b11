"""Models of which something is missing, or that are of another kind than the task: refused; what is drawn travels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.errors import ModelError
from confide.common.model.adapter import DRAWN, export_adapter, load_base
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.proof import check_reached
from confide.tests.architectures import save_architecture

LORA = LoraSection(rank=2, alpha=4)
WEIGHTS = "model.safetensors"
ENCODERS = ("bert", "roberta", "xlm-r", "electra")


def loaded(folder: Path, **changes) -> FineTuneModel:
    section = ModelSection.model_validate({"backbone": str(folder), "max_length": 12, "lora": LORA, **changes})
    return load_model(section, 2, 0)


def saved(name: str, folder: Path) -> Path:
    save_architecture(name, folder)
    return folder


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_does_not_write(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    changes = {"task": "causal-lm"}
    with pytest.raises(ModelError, match=r"no numbers for .* guesses of words would be noise"):
        loaded(folder, **changes)
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(folder)  # with its own last layer
    with pytest.raises(ModelError, match="changes with the tokens after it"):
        check_reached(loaded(folder, **changes))


@pytest.mark.parametrize("task", ["causal-lm", "preference"])
@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "opt", "llama", "mistral", "qwen3", "gemma3"])
def test_a_decoder_does(name: str, task: str, tmp_path: Path) -> None:
    check_reached(loaded(saved(name, tmp_path), task=task))


def test_an_encoder_made_a_decoder_writes(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path)
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"is_decoder": True}))
    check_reached(loaded(folder, task="causal-lm"))


@pytest.mark.parametrize("name", ["bert", "modernbert", "llama"])
@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_a_backbone_that_lacks_layers_is_refused(name: str, pooling: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    arrays = load_file(folder / WEIGHTS)
    layers = sorted(key for key in arrays if ".1." in key or "layers.1" in key)
    save_file({key: array for key, array in arrays.items() if key not in layers}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match="another model's than its config"):
        loaded(folder, pooling=pooling)


def test_other_names_of_arrays_are_another_models(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path)
    arrays = {f"student.{key}": array for key, array in load_file(folder / WEIGHTS).items()}
    save_file(arrays, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match="holds no numbers for"):
        loaded(folder)


@pytest.mark.parametrize(
    ("name", "task", "targets"),
    [
        ("bert", "sequence-classification", None),
        ("bert", "sequence-classification", "all-linear"),
        ("deberta-v3", "sequence-classification", ["query_proj"]),
        ("deberta-v3", "regression", "all-linear"),
        ("bert", "masked-lm", None),
        ("bert", "masked-lm", "all-linear"),
    ],
)
def test_what_was_drawn_travels_with_the_adapter(name: str, task: str, targets: object, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "backbone")
    arrays = load_file(folder / WEIGHTS)
    kept = {key: array for key, array in arrays.items() if "pooler" not in key}
    save_file(kept, folder / WEIGHTS, {"format": "pt"})
    lora = {"rank": 2, "alpha": 4, "targets": targets}
    section = ModelSection.model_validate(
        {"backbone": str(folder), "max_length": 12, "pooling": "model", "task": task, "lora": lora}
    )
    model = load_model(section, 2, 7)
    rng = np.random.default_rng(0)
    model.set({key: rng.normal(size=array.shape).astype(np.float32) for key, array in model.initial.items()})
    export_adapter(model, section, ["a", "b"], tmp_path / "adapter")
    assert (tmp_path / "adapter" / DRAWN).is_file()
    torch.manual_seed(99)  # as in another process
    there = PeftModel.from_pretrained(load_base(tmp_path / "adapter"), tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        here, again = (one(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for one in (model.module, there))
    torch.testing.assert_close(here, again)


def test_a_layer_before_the_head_is_trained_with_it(tmp_path: Path) -> None:
    """DistilBERT's pre_classifier, whose name ends as the head's does."""
    lora = {"rank": 2, "alpha": 4, "targets": "all-linear"}
    model = loaded(saved("distilbert", tmp_path), pooling="model", lora=lora)
    assert {"pre_classifier.weight", "classifier.weight"} <= {
        key.removeprefix("base_model.model.") for key in model.trained
    }
