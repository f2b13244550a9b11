"""Frozen weights in bfloat16: what is trained stays float32, and a record's gradient stays its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.model import weights
from confide.common.model.checkpoints import number_of_weights
from confide.common.model.dummies import dummy_records
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.per_sample import hooked, record_gradients
from confide.common.model.proof import prove
from confide.common.model.shapes import Shapes
from confide.common.model.weights import with_type
from confide.tests.architectures import save_architecture
from confide.tests.rings import slow

KINDS = [
    ("llama", "causal-lm", "mean", None),
    ("llama", "causal-lm", "mean", ("q_proj", "down_proj")),
    ("bert", "sequence-classification", "mean", None),
    ("bert", "sequence-classification", "model", None),
    ("bert", "masked-lm", "mean", None),
    ("bert", "token-classification", "mean", None),
    ("roberta", "masked-lm", "model", None),
    ("vit", "image-classification", "mean", ("q_proj", "v_proj")),
    ("gemma3", "causal-lm", "mean", None),
]


def load(folder: Path, kind: tuple, dtype: str) -> FineTuneModel:
    name, task, pooling, targets = kind
    lora = LoraSection(rank=2, alpha=4, targets=targets)
    backbone = str(save_architecture(name, folder))
    section = {"backbone": backbone, "task": task, "max_length": 24, "pooling": pooling, "dtype": dtype}
    return load_model(ModelSection.parse({**section, "lora": lora.model_dump()}, "test"), 3, 0)


@pytest.mark.parametrize(
    "kind", [*KINDS[:3], *slow(*((kind,) for kind in KINDS[3:]))], ids=lambda kind: "-".join(map(str, kind))
)
def test_in_bfloat16_a_gradient_is_one_records_and_near_to_float32s(tmp_path: Path, kind: tuple) -> None:
    """Within 4 % of its length, on random weights (3 % was seen); bit for bit the same whatever its mates, by proof."""
    found = {}
    shapes = Shapes(24 if kind[0] != "vit" else 0, 16, 30.0)
    rng = np.random.default_rng(3)
    for dtype in ("float32", "bfloat16"):
        model = load(tmp_path, kind, dtype)
        assert {p.dtype for p in model.trained.values()} == {torch.float32}
        assert model.dtype == weights.TYPES[dtype]
        shift = {n: rng.normal(0, 0.1, a.shape).astype(np.float32) for n, a in model.initial.items()}
        found["shift"] = found.get("shift", shift)
        model.set({n: a + found["shift"][n] for n, a in model.initial.items()})
        records = dummy_records(model, [20, 18, 24, 17], 5)
        with hooked(model):
            gradients = torch.cat(record_gradients(model, model.losses(records, np.arange(4), 25)), 1)
        assert gradients.dtype == torch.float32
        found[dtype] = gradients
        assert all(rows > 1 for rows in prove(model, shapes).found.values())
    error = (found["bfloat16"] - found["float32"]).norm(dim=1) / found["float32"].norm(dim=1)
    assert float(error.max()) < 0.04


def test_the_type_is_decided_by_size_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(save_architecture("llama", tmp_path))
    trained, whole = load(tmp_path / "again", KINDS[0], "float32").count()
    assert number_of_weights(folder) == whole - trained
    section = ModelSection(backbone=folder, task="causal-lm")
    monkeypatch.setattr(weights, "bfloat16_is_faster", lambda: True)
    assert with_type(section, folder).dtype == "float32"  # small
    monkeypatch.setattr(weights, "LARGE", 1000)
    assert with_type(section, folder).dtype == "bfloat16"
    assert with_type(section.model_copy(update={"train": "full"}), folder).dtype == "float32"
    assert with_type(section.model_copy(update={"dtype": "float32"}), folder).dtype == "float32"
    monkeypatch.setattr(weights, "bfloat16_is_faster", lambda: False)
    assert with_type(section, folder).dtype == "float32"
