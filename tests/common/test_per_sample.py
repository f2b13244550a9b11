"""Per-sample gradients: right, clipped, independent of batch-mates, for every kind of backbone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.errors import ModelError, PrivacyError
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.per_sample import clipped_sum, hooked, validate
from confide.common.tasks import collate, ragged
from confide.common.types import Records

LORA = LoraSection(rank=2, alpha=4)
CASES = [("bert", "sequence-classification"), ("gpt2", "causal-lm"), ("llama", "causal-lm")]


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def model(request: pytest.FixtureRequest) -> FineTuneModel:
    backbone, task = request.param
    section = ModelSection(backbone=str(request.getfixturevalue(backbone)), task=task, lora=LORA)
    model = load_model(section, 2 if task == "sequence-classification" else 0, 0)
    rng = np.random.default_rng(1)  # B starts at zero, and a zero B hides errors in A
    model.set({name: (a + 0.1 * rng.normal(size=a.shape)).astype(np.float32) for name, a in model.initial.items()})
    return model


def some_records(lengths: tuple[int, ...] = (3, 9, 5, 7)) -> Records:
    rng = np.random.default_rng(2)
    return ragged([rng.integers(5, 20, n).tolist() for n in lengths], np.ones(len(lengths), dtype=np.int64))


def one_by_one(model: FineTuneModel, records: Records, index: int) -> torch.Tensor:
    batch = collate(model.task, records, np.array([index]), model.pad, model.device)
    loss = model.task.record_losses(model.module, batch).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.trained.values()))]).double()


def together(model: FineTuneModel, records: Records, indices: list[int], clip: float) -> torch.Tensor:
    with hooked(model):
        batch = collate(model.task, records, np.array(indices), model.pad, model.device)
        return clipped_sum(model, model.task.record_losses(model.module, batch), clip)[0]


def test_unclipped_sum_is_the_sum_of_gradients_taken_alone(model: FineTuneModel) -> None:
    records = some_records()
    expected = torch.stack([one_by_one(model, records, i) for i in range(4)]).sum(0)
    torch.testing.assert_close(together(model, records, [0, 1, 2, 3], 1e9), expected, rtol=1e-3, atol=1e-5)


def test_a_clipped_gradient_does_not_depend_on_batch_mates(model: FineTuneModel) -> None:
    """What record 0 adds to a clipped sum is the same among any others: with the others, minus the others alone."""
    records = some_records((4, 12, 3, 9))
    clip = 0.05
    alone = together(model, records, [0], clip)
    for mates in ([1], [2, 3], [1, 2, 3]):
        added = together(model, records, [0, *mates], clip) - together(model, records, mates, clip)
        torch.testing.assert_close(added, alone, rtol=1e-3, atol=1e-6)


def test_no_record_contributes_more_than_the_clip(model: FineTuneModel) -> None:
    records = some_records()
    for clip in (1e-3, 0.3, 5.0):
        for index in range(4):
            assert together(model, records, [index], clip).double().norm() <= clip


def test_a_small_gradient_is_left_as_it_is(model: FineTuneModel) -> None:
    records = some_records()
    expected = one_by_one(model, records, 0)
    torch.testing.assert_close(
        together(model, records, [0], float(expected.norm()) * 2), expected, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_record_that_is_not_finite_counts_as_zero(model: FineTuneModel, bad: float) -> None:
    records = some_records()
    expected = together(model, records, [0, 2], 0.1)
    with hooked(model):
        batch = collate(model.task, records, np.array([0, 1, 2]), model.pad, model.device)
        losses = model.task.record_losses(model.module, batch)
        losses = losses * torch.tensor([1.0, bad, 1.0], device=model.device)
        total, _ = clipped_sum(model, losses, 0.1)
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-6)


def test_a_gradient_that_is_not_finite_counts_as_zero(model: FineTuneModel) -> None:
    """The loss is finite and its derivative is not: √x at 0."""
    records = some_records()
    with hooked(model):
        batch = collate(model.task, records, np.array([0, 1]), model.pad, model.device)
        losses = model.task.record_losses(model.module, batch)
        broken = torch.stack([losses[0], (losses[1] - losses[1].detach()).sqrt()])
        total, norms = clipped_sum(model, broken, 0.1)
    assert not torch.isfinite(norms[1])
    torch.testing.assert_close(total, together(model, records, [0], 0.1), rtol=1e-3, atol=1e-6)


def test_without_hooks_nothing_is_released(model: FineTuneModel) -> None:
    records = some_records()
    losses = model.task.record_losses(
        model.module, collate(model.task, records, np.array([0]), model.pad, model.device)
    )
    with pytest.raises(PrivacyError, match="no per-sample gradient"):
        clipped_sum(model, losses, 1.0)


def test_hooks_leave_nothing_behind(model: FineTuneModel) -> None:
    records = some_records()
    together(model, records, [0, 1], 1.0)
    assert not any(m.training for m in model.module.modules())
    assert all(p.grad is None and vars(p)["grad_sample"] is None for p in model.trained.values())


def test_batch_statistics_are_refused(bert: Path) -> None:
    model = load_model(ModelSection(backbone=str(bert), max_length=63, lora=LORA), 2, 9)
    model.module.add_module("statistics", nn.BatchNorm1d(4))
    with pytest.raises(ModelError, match="not usable under differential privacy"):
        validate(model)
