"""Local training: what a site sends, in both modes."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from confide.client.site import SiteAccount
from confide.client.train import Work, _batch_sum
from confide.client.worker import Worker
from confide.common.data.augmentation import Draw
from confide.common.data.partition import site_name
from confide.common.errors import BudgetError, PrivacyError
from confide.common.model.cuts import BATCH_COST, cheapest_cuts
from confide.common.model.per_sample import hooked
from confide.common.privacy.mechanism import PoissonMechanism
from confide.common.types import RoundTask
from confide.simulations.sites import SimulatedSites, simulated_worker

MANY = {"server": {"aggregation": "fedavg"}, "training": {"local_steps": 3}}


@pytest.fixture
def worker(make_config, local):
    def make(**changes) -> Worker:
        return simulated_worker(make_config(run={"id": "r"}, data={"labels": ["negative", "positive"]}, **changes))

    return make


def account_of(worker: Worker, number: int, steps_before: int) -> SiteAccount:
    return worker.account(SimulatedSites(worker.config).site(number), number, steps_before)


def flat(arrays) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()])


def test_one_step_sends_the_negative_mean_gradient(worker) -> None:
    w = worker(training={"batch_size": 1000})  # the batch is the whole site
    update = w.train(1, RoundTask(1, w.model.initial), account_of(w, 1, 0))
    w.model.set(w.model.initial)
    from confide.common.tasks import collate

    batch = collate(w.model.task, w.data.records, w.data.parts[1], w.model.pad, w.model.device)
    loss = w.model.task.record_losses(w.model.module, batch).mean()
    gradients = torch.autograd.grad(loss, list(w.model.trained.values()))
    expected = np.concatenate([g.cpu().numpy().ravel() for g in gradients])
    np.testing.assert_allclose(flat(update.delta), -expected, rtol=1e-3, atol=1e-6)
    assert update.weight == len(w.data.parts[1])
    assert update.metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_what_a_machine_decides_is_no_part_of_what_the_run_agreed_on(worker) -> None:
    """Secure sums compare the run's digest: a site that had written its own batch size into it had keys of another
    configuration than the server, and no round came about."""
    w = worker()
    assert w.config.training.batch_tokens == "auto"
    task = RoundTask(1, w.model.initial)
    assert w._without_records(w.model, task).config.training.tokens > 0


def test_several_steps_send_the_change_and_are_reproducible(worker) -> None:
    w = worker(**MANY)
    first = w.train(0, RoundTask(2, w.model.initial), account_of(w, 0, 0))
    w.train(1, RoundTask(2, w.model.initial), account_of(w, 1, 0))
    again = w.train(0, RoundTask(2, w.model.initial), account_of(w, 0, 0))
    other_round = w.train(0, RoundTask(3, w.model.initial), account_of(w, 0, 0))
    np.testing.assert_array_equal(flat(first.delta), flat(again.delta))
    assert not np.array_equal(flat(first.delta), flat(other_round.delta))
    assert first.steps == 3


def test_the_proximal_term_pulls_back(worker) -> None:
    w = worker(**MANY)
    free = w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0))
    held = w.train(0, RoundTask(1, w.model.initial, proximal_mu=1000.0), account_of(w, 0, 0))
    assert np.linalg.norm(flat(held.delta)) < np.linalg.norm(flat(free.delta))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_every_optimizer_trains_privately(worker, local, optimizer: str) -> None:
    w = worker(privacy=local, training={"local_steps": 2, "optimizer": optimizer})
    update = w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0))
    assert np.isfinite(flat(update.delta)).all()
    assert np.abs(flat(update.delta)).max() > 0


def test_the_rate_of_local_steps_is_that_of_their_round(worker) -> None:
    """With SGD and all of a site's records in a batch, a step is the rate times the gradient: round 3 of 3 has a third
    of a constant rate, whatever local steps came before."""

    def change(number: int, **training) -> np.ndarray:
        w = worker(
            server={"aggregation": "exact"},
            training={"optimizer": "sgd", "learning_rate": 0.01, "batch_size": 1000, **training},
        )
        return flat(w.train(0, RoundTask(number, w.model.initial), account_of(w, 0, 0)).delta)

    whole = change(1)
    for (number, schedule, warmup), share in {
        (3, "linear", 0): 1 / 3,
        (1, "linear", 1): 1 / 2,
        (2, "cosine", 1): 1,
    }.items():
        found = change(number, schedule=schedule, warmup=warmup)
        np.testing.assert_allclose(found, share * whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max())
    assert 0 < np.linalg.norm(change(3, schedule="cosine", local_steps=3)) < np.linalg.norm(change(1, local_steps=3))


def test_weights_decay_at_the_site_apart_from_the_gradient(worker) -> None:
    def change(**training) -> tuple[np.ndarray, np.ndarray]:
        w = worker(
            server={"aggregation": "exact"},
            training={"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 1000, **training},
        )
        return flat(w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0)).delta), flat(w.model.trained_initial)

    (free, start), (decayed, _) = change(), change(weight_decay=0.5)
    np.testing.assert_allclose(decayed - free, -0.1 * 0.5 * start, rtol=1e-3, atol=1e-7)


def test_under_privacy_nothing_but_the_noisy_update_leaves(worker, local) -> None:
    w = worker(privacy=local)
    update = w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0))
    assert update.metrics == {}
    assert update.weight == 1.0  # the number of records would be a release
    assert update.epsilon == pytest.approx(w.plan.epsilon(1))
    again = w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0))
    assert not np.array_equal(flat(update.delta), flat(again.delta))  # the seed decides no noise


def test_the_noise_of_an_update_has_the_declared_scale(worker, local) -> None:
    """With C tiny against the noise grid nothing but noise is left: its scale is z·C/(q·N)."""
    w = worker(privacy=local)
    plan = w.plan
    update = flat(w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0)).delta)
    scale = plan.noise_multiplier * plan.clip / plan.denominator
    # the clipped sum has norm at most (drawn records)·C spread over d coordinates; noise dominates the variance
    signal = (30 * plan.clip / plan.denominator) ** 2 / plan.coordinates
    n = plan.coordinates
    assert (
        scale**2 * (1 - 5 * np.sqrt(2 / n)) < np.mean(update**2) < (scale**2 + signal) * (1 + 5 * np.sqrt(2 / n) + 0.1)
    )
    assert plan.denominator == local["sampling_rate"] * local["declared_examples"] / 4


def test_an_empty_batch_still_releases_noise(worker, local) -> None:
    w = worker(privacy={**local, "sampling_rate": 1e-9, "declared_examples": 10**9})
    account = account_of(w, 0, 0)
    update = w.train(0, RoundTask(1, w.model.initial), account)
    assert np.abs(flat(update.delta)).max() > 0
    assert account.steps == 1


def test_a_poisoned_record_does_not_poison_the_update(worker, local, monkeypatch) -> None:
    """One record whose loss is NaN: its gradient is zero, the step is charged, the update is finite."""
    w = worker(privacy={**local, "sampling_rate": 1.0})
    real = w.model.task.record_losses

    def poisoned(module, batch):
        losses = real(module, batch)
        return losses * torch.where(torch.arange(len(losses), device=losses.device) == 0, float("nan"), 1.0)

    monkeypatch.setattr(w.model.task, "record_losses", poisoned)
    account = account_of(w, 0, 0)
    update = w.train(0, RoundTask(1, w.model.initial), account)
    assert np.isfinite(flat(update.delta)).all()
    assert account.steps == 1


def test_a_model_that_does_not_move_is_noticed(worker, local, monkeypatch) -> None:
    w = worker(privacy=local, training={"local_steps": 2})
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    with pytest.raises(PrivacyError, match="no trained array moved"):
        w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0))


def test_what_fails_is_answered_with_noise_alone(worker, local, monkeypatch) -> None:
    """When the sum cannot be bounded nothing of it is released; that it failed may depend on the records, so the answer
    looks as after empty draws, and is charged."""
    w = worker(privacy={**local, "sampling_rate": 1.0, "clip": 100.0})
    signal = flat(w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0)).delta)

    def broken(*args, **kwargs):
        raise PrivacyError("no per-sample gradient")

    monkeypatch.setattr("confide.client.train.record_gradients", broken)
    account = account_of(w, 1, 0)
    update = w.train(1, RoundTask(1, w.model.initial), account)
    assert account.steps == 1
    scale, n = w.plan.noise_multiplier * w.plan.clip / w.plan.denominator, w.plan.coordinates
    assert np.mean(flat(update.delta) ** 2) == pytest.approx(scale**2, rel=6 * np.sqrt(2 / n))
    assert update.metrics == {}
    assert update.weight == 1.0
    assert flat(update.delta).shape == signal.shape


def test_a_record_that_cannot_be_computed_costs_itself_alone(worker, local, monkeypatch) -> None:
    w = worker(privacy={**local, "sampling_rate": 1.0})
    released: list[np.ndarray] = []
    monkeypatch.setattr(PoissonMechanism, "share", lambda self, total, clip: released.append(total) or no_share(self))
    w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0))
    real, bad = Work.losses, int(w.data.parts[0][7])

    def fails(self, part, draw, length=None):
        if bad in part:
            raise RuntimeError("a record's text is in here")
        return real(self, part, draw, length)

    monkeypatch.setattr(Work, "losses", fails)
    w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0))
    w.data.parts[0] = w.data.parts[0][w.data.parts[0] != bad]
    w.train(0, RoundTask(1, w.model.initial), account_of(w, 0, 0))
    whole, failed, without = released
    np.testing.assert_allclose(failed, without, rtol=0, atol=1e-12)
    assert 0.5 < np.linalg.norm(whole - failed) <= w.plan.clip


def no_share(mechanism: PoissonMechanism) -> np.ndarray:
    mechanism._awaiting_release = False
    return np.zeros(mechanism.plan.coordinates, dtype=np.int64)


def test_the_reservation_comes_before_the_data(worker, local, monkeypatch) -> None:
    w = worker(privacy=local)
    monkeypatch.setattr("confide.client.train._drawn_sum", lambda *a: pytest.fail("data was touched"))
    account = account_of(w, 0, 3)  # all three declared rounds are spent
    with pytest.raises(BudgetError, match=r"spent 3 steps, asked 1, limit 3, remaining 0"):
        w.train(0, RoundTask(4, w.model.initial), account)
    assert account.steps == 3


def test_a_site_derives_its_own_noise(worker, local) -> None:
    assert (
        worker(privacy=local).plan.noise_multiplier > worker(privacy={**local, "epsilon": 20.0}).plan.noise_multiplier
    )


def test_site_names_sort_as_they_count() -> None:
    assert [site_name(i, 10) for i in (0, 9)] == ["site-01", "site-10"]


def test_cuts_are_the_cheapest() -> None:
    rng = np.random.default_rng(0)
    for count, size in ((1, 4), (7, 3), (9, 9)):
        lengths = np.sort(rng.integers(3, 300, count))

        def cost(cuts: list[int], lengths: np.ndarray = lengths, size: int = size) -> float:
            pieces = list(pairwise([*cuts, len(lengths)]))
            if any(end - start > size for start, end in pieces):
                return np.inf
            return sum(BATCH_COST + (end - start) * lengths[end - 1] for start, end in pieces)

        inner = range(1, count)
        every = [cost([0, *chosen]) for n in range(count) for chosen in combinations(inner, n)]
        assert cost(cheapest_cuts(lengths, size)) == min(every)
    assert cheapest_cuts(np.empty(0, dtype=int), 4) == []


def test_a_record_without_numbers_does_not_reach_its_mates(worker, local, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel that multiplies what stands behind a row by zero: 0 · NaN is NaN, and a mate's gradient is gone."""
    w = worker(privacy=local)
    draw = Draw.of(np.random.default_rng(0))
    work = Work(w.config, w.model, w.data.records, w.data.parts[0], RoundTask(1, w.model.initial))
    w.model.set(w.model.initial)
    rows, real, bad = np.resize(w.data.parts[0][:5], 8), w.model.task.record_losses, 2
    length = int(w.data.records.lengths(rows).max())

    def leaking(module, batch):
        losses = real(module, batch)
        broken = (batch["input_ids"] == spoilt).all(1)
        losses = losses + torch.where(broken, torch.nan, 0.0)
        return losses + 0 * losses.detach().roll(-1)

    texts = w.model.batch(w.data.records, rows[:5], length)["input_ids"]
    spoilt = texts[bad]
    good = rows[:5][(texts != spoilt).any(1).numpy()]
    with hooked(w.model):
        expected = sum(_batch_sum(work, np.full(8, row), 1, length, draw, 0.3) for row in good)
        monkeypatch.setattr(w.model.task, "record_losses", leaking)
        found = _batch_sum(work, rows, 5, length, draw, 0.3)
    assert np.linalg.norm(expected) > 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
