"""A dear proof is looked up by the next process, where all that it depends on is the same, and nowhere else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.errors import ModelError
from confide.common.model import kept_proofs, proof
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.shapes import Shapes
from confide.tests.architectures import save_architecture

pytestmark = pytest.mark.usefixtures("real_proofs")
SHAPES = Shapes(24, 16, 30.0)


def load(backbone: Path, seed: int = 0, **section: Any) -> FineTuneModel:
    """As another process would: without the hooks of an earlier proof."""
    lora = LoraSection(rank=2, alpha=4, targets=section.pop("targets", None))
    return load_model(ModelSection(backbone=str(backbone), max_length=24, lora=lora, **section), 3, seed).copy()


def prove(model: FineTuneModel, shapes: Shapes, views: tuple[int, ...] = (1,)) -> Shapes:
    """As another process would, which has proved nothing yet."""
    proof._proved.clear()
    return proof.prove(model, shapes, views)


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The lengths that are proved, as they are; every proof is dear."""
    lengths: list[int] = []
    rows_for = proof._Proof.rows_for

    def noted(self: Any, length: int) -> int:
        lengths.append(length)
        return rows_for(self, length)

    monkeypatch.setattr(proof._Proof, "rows_for", noted)
    monkeypatch.setattr(kept_proofs, "DEAR", 0.0)
    monkeypatch.setattr(kept_proofs, "folder", lambda: tmp_path / "cache" / "proofs")
    return lengths


def test_what_passes_leave_in_a_model_does_not_count(tmp_path: Path, proved: list[int]) -> None:
    backbone = save_architecture("gemma3", tmp_path / "model")
    first = prove(load(backbone, task="causal-lm", targets=("q_proj",)), SHAPES)
    proved.clear()
    assert prove(load(backbone, task="causal-lm", targets=("q_proj",)), SHAPES) == first
    assert len(proved) == 1


def test_the_next_process_takes_it_over_and_proves_one_length_again(bert: Path, proved: list[int]) -> None:
    first = prove(load(bert), SHAPES)
    assert proved == list(SHAPES.all_lengths)
    drawn = set()
    for _ in range(24):
        proved.clear()
        assert prove(load(bert), SHAPES) == first
        assert len(proved) == 1
        drawn |= set(proved)
    assert len(drawn) > 1  # 24 draws of two alike have a chance of 1.2e-7
    (kept,) = kept_proofs.folder().iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def attending_otherwise(model: FineTuneModel) -> FineTuneModel:
    """By another kernel, with the same layers and numbers."""
    config: Any = model.module.get_base_model().config
    config._attn_implementation = "eager"
    return model


@pytest.mark.parametrize(
    "other",
    [
        lambda bert, patch: (load(bert, seed=1), SHAPES, (1,)),
        lambda bert, patch: (load(bert, targets=("query",)), SHAPES, (1,)),
        lambda bert, patch: (load(bert, pooling="first"), SHAPES, (1,)),
        lambda bert, patch: (load(bert, checkpointing=True), SHAPES, (1,)),
        lambda bert, patch: (replace(load(bert), two_texts=True), SHAPES, (1,)),
        lambda bert, patch: (attending_otherwise(load(bert)), SHAPES, (1,)),
        lambda bert, patch: patch.setattr(kept_proofs, "_digest", lambda _: "other") or (load(bert), SHAPES, (1,)),
        lambda bert, patch: (load(bert), Shapes(24, 8, 30.0), (1,)),
        lambda bert, patch: (load(bert), SHAPES, (2,)),
        lambda bert, patch: patch.setenv("MKL_CBWR", "AVX2") or (load(bert), SHAPES, (1,)),
        lambda bert, patch: patch.setattr(kept_proofs, "_code", lambda: "other") or (load(bert), SHAPES, (1,)),
        lambda bert, patch: patch.setattr(kept_proofs, "_processor", lambda: "other") or (load(bert), SHAPES, (1,)),
        lambda bert, patch: patch.setattr(kept_proofs, "_version", lambda _: "9") or (load(bert), SHAPES, (1,)),
    ],
    ids=[
        *("seed", "targets", "pooling", "recomputed", "two texts", "attention", "edited library"),
        *("shapes", "views", "environment", "code", "processor", "library"),
    ],
)
def test_whatever_differs_is_proved_anew(
    bert: Path, proved: list[int], monkeypatch: pytest.MonkeyPatch, other: Callable
) -> None:
    prove(load(bert), SHAPES)
    proved.clear()
    model, shapes, views = other(bert, monkeypatch)
    prove(model, shapes, views)
    assert proved == list(shapes.all_lengths)


def test_one_bit_of_a_frozen_weight_makes_it_another_model(bert: Path, proved: list[int]) -> None:
    model = load(bert)
    prove(model, SHAPES)
    proved.clear()
    frozen = next(p for name, p in model.module.named_parameters() if "word_embeddings" in name)
    before = frozen.detach().clone()
    try:
        with torch.no_grad():
            frozen.view(torch.int32)[-1, -1] ^= 1
        prove(model, SHAPES)
    finally:
        with torch.no_grad():
            frozen.copy_(before)
    assert proved == list(SHAPES.all_lengths)


def lied(kept: Path) -> None:
    kept.write_text(json.dumps([(length, rows + 1) for length, rows in json.loads(kept.read_text())]))


@pytest.mark.parametrize(
    "spoil",
    [
        lied,
        lambda kept: kept.write_text("[[24, 4]]"),
        lambda kept: kept.write_text("{"),
        lambda kept: kept.write_text("[1, 2]"),
        lambda kept: kept.write_bytes(b"\xff\xfe"),
        lambda kept: kept.chmod(0o666),
    ],
    ids=["rows", "lengths", "broken", "numbers", "bytes", "writable by others"],
)
def test_a_file_that_is_not_as_it_was_kept_does_not_count(bert: Path, proved: list[int], spoil: Callable) -> None:
    first = prove(load(bert), SHAPES)
    (kept,) = kept_proofs.folder().iterdir()
    spoil(kept)
    proved.clear()
    assert prove(load(bert), SHAPES) == first
    assert proved[-len(SHAPES.all_lengths) :] == list(SHAPES.all_lengths)


def test_what_was_quick_and_what_was_refused_is_not_kept(
    bert: Path, proved: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = save_architecture("deberta-v3", tmp_path)
    for _ in range(2):
        with pytest.raises(ModelError):
            prove(load(refused, targets=("query_proj", "key_proj")), SHAPES)
    assert not kept_proofs.folder().exists()
    monkeypatch.setattr(kept_proofs, "DEAR", 1e9)
    prove(load(bert), SHAPES)
    assert not kept_proofs.folder().exists()


def test_where_nothing_can_be_kept_each_proves_for_itself(
    bert: Path, proved: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kept_proofs, "folder", lambda: tmp_path / "file" / "proofs")
    assert prove(load(bert), SHAPES) == prove(load(bert), SHAPES)
    assert proved == 2 * list(SHAPES.all_lengths)
    assert np.isfinite(list(prove(load(bert), SHAPES).found.values())).all()
