"""What others got wrong, one test a line (docs/explanation/pitfalls.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from confide.client.worker import Worker
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.common.ledger.ledger import Ledger
from confide.common.privacy.accounting import epsilon_pld
from confide.common.privacy.events import history_of, repeated
from confide.common.privacy.plan import privacy_plan, step_of
from confide.common.types import RoundTask
from confide.server.report import read_report
from confide.simulations.run import simulate
from confide.simulations.sites import SimulatedSites, simulated_worker


@pytest.fixture
def private(make_config, local):
    def make(**changes) -> RunConfig:
        changes["privacy"] = {**local, **changes.get("privacy", {})}
        changes["data"] = {"labels": ["negative", "positive"], **changes.get("data", {})}
        changes["run"] = {"id": "r", **changes.get("run", {})}
        return make_config(**changes)

    return make


def train(worker: Worker, number: int, round_: int) -> np.ndarray:
    account = worker.account(SimulatedSites(worker.config).site(number), number, 0)
    update = worker.train(number, RoundTask(round_, worker.model.initial), account)
    return np.concatenate([array.ravel() for array in update.delta.values()])


def test_the_total_epsilon_is_printed_not_that_of_one_round(private) -> None:
    """Per-round ε printed as the total, because the engine was rebuilt each round."""
    config = private(run={"rounds": 8})
    privacy = read_report(simulate(config))["privacy"]
    plan = privacy_plan(config, read_report(config.output)["model"]["trainable"])
    assert plan is not None
    assert privacy["epsilon_spent"] == pytest.approx(plan.epsilon(8))
    assert plan.epsilon(1) < 0.9 * privacy["epsilon_spent"]


def test_a_late_or_restarted_site_trains_with_noise(private) -> None:
    """Engine built only in round 0: here the first task of a fresh worker is for round 3, and is as noisy as any."""
    config = private(privacy={"sampling_rate": 1e-6, "declared_examples": 10**8})  # empty batches: noise is all
    spreads = [train(simulated_worker(config), number, round_).std() for number, round_ in ((0, 1), (0, 3), (2, 3))]
    assert min(spreads) > 0
    n = 500  # released numbers: more than this; a relative standard error of 1/√(2n), six of them
    assert max(spreads) / min(spreads) < 1 + 6 * 2 / np.sqrt(2 * n)


def test_sites_weigh_alike_whatever_they_hold(private) -> None:
    """Noise calibrated to equal weights, aggregation weighted by examples."""
    worker = simulated_worker(private(data={"partition": {"clients": 4, "kind": "dirichlet", "alpha": 0.3}}))
    sizes = [len(part) for part in worker.data.parts]
    assert len(set(sizes)) > 1
    weights = set()
    for number in range(4):
        account = worker.account(SimulatedSites(worker.config).site(number), number, 0)
        weights.add(worker.train(number, RoundTask(1, worker.model.initial), account).weight)
    assert weights == {1.0}


def test_sensitivity_is_the_clip_norm(private) -> None:
    """Sensitivity given independently of the clip: there is no such key, and the noise grows with C."""
    with pytest.raises(ConfigError, match=r"privacy\.sensitivity: unknown key"):
        private(privacy={"sensitivity": 0.5})
    empty = {"sampling_rate": 1e-6, "declared_examples": 10**8}
    small, large = (train(simulated_worker(private(privacy={**empty, "clip": c})), 0, 1).std() for c in (1.0, 10.0))
    assert large / small == pytest.approx(10, rel=0.3)


def test_a_clip_that_adapts_moves_towards_the_updates(private, tmp_path: Path) -> None:
    """Adaptive clipping with the wrong sign: a norm that cuts every update must grow, one that cuts none must fall."""
    with pytest.raises(ConfigError, match="mode client"):
        private(privacy={"clip_quantile": 0.5})
    for clip, grows in ((1e-3, True), (1e3, False)):
        privacy = {"mode": "client", "epsilon": 1e4, "sampling_rate": 1.0, "clip": clip, "clip_quantile": 0.5}
        config = private(privacy=privacy | {"clip_learning_rate": 1.0}, run={"output": str(tmp_path / str(clip))})
        norms = [row["clip"] for row in read_report(simulate(config))["rounds"]]
        assert (norms[-1] > norms[0]) is grows


def test_the_rate_at_which_clients_are_drawn_is_not_multiplied_in(private) -> None:
    """Client rate × batch rate for steps inside one round: the server picks the cohort, so it amplifies nothing."""
    all_sites, cohort = private(), private(server={"cohort": 2})
    plans = [privacy_plan(config, 1000) for config in (all_sites, cohort)]
    assert plans[0] == plans[1]
    assert plans[0] is not None
    assert plans[0].sampling_rate == 0.1
    several = privacy_plan(private(training={"local_steps": 5}), 1000)
    assert several is not None
    assert several.steps == 15


def test_one_error_reply_leaves_the_others_round_as_it_is(private, monkeypatch) -> None:
    """One error voids a round whose budget was spent."""
    real = Worker.train

    def fails(self, number, task, account, *rest):
        if number == 2 and task.round == 2:
            raise RuntimeError
        return real(self, number, task, account, *rest)

    monkeypatch.setattr(Worker, "train", fails)
    rounds = read_report(simulate(private()))["rounds"]
    assert [len(row["sites"]) for row in rounds] == [4, 3, 4]
    assert rounds[1]["loss"] != rounds[0]["loss"]


def test_an_empty_batch_is_a_step(private) -> None:
    """Empty batch skipped."""
    worker = simulated_worker(private(privacy={"sampling_rate": 1e-6, "declared_examples": 10**8}))
    assert train(worker, 0, 1).std() > 0
    assert worker.account(SimulatedSites(worker.config).site(0), 0, 0).steps == 1


def test_the_denominator_does_not_count(private, monkeypatch) -> None:
    """Private batch size as the denominator: twice the records give twice the sum, over the same public constant."""
    monkeypatch.setattr("confide.common.privacy.pieces.add_noise", lambda *_, **__: None)
    config = private(privacy={"sampling_rate": 1.0, "clip": 100.0})
    worker = simulated_worker(config)
    part = worker.data.parts[0]
    once = train(worker, 0, 1)
    worker.data.parts[0] = np.concatenate([part, part])
    np.testing.assert_allclose(train(worker, 0, 1), 2 * once, rtol=1e-2, atol=1e-4)


def test_one_nan_record_leaves_every_parameter_finite(private, monkeypatch) -> None:
    """One NaN sample makes every parameter NaN."""
    worker = simulated_worker(private(privacy={"sampling_rate": 1.0}))
    real = worker.model.task.record_losses

    def poisoned(module, batch):
        losses = real(module, batch)
        return losses * torch.where(torch.arange(len(losses)) == 0, float("nan"), 1.0)

    monkeypatch.setattr(worker.model.task, "record_losses", poisoned)
    assert np.isfinite(train(worker, 0, 1)).all()


def test_what_was_spent_outlives_the_process(private, tmp_path) -> None:
    """Accountant state lost on restart."""
    config = private(engine={"ledger": str(tmp_path / "ledgers")})
    simulate(config)
    book = Ledger.open(tmp_path / "ledgers" / "site-1").book()  # as a new process would
    plan = privacy_plan(config, read_report(config.output)["model"]["trainable"])
    assert plan is not None
    expected = epsilon_pld(history_of([repeated(step_of(config, plan), 3)]), 1e-5)
    assert epsilon_pld(book.history("default"), 1e-5) == pytest.approx(expected)
    assert expected == pytest.approx(plan.epsilon())


def test_clipping_alone_is_not_called_private(make_config, local) -> None:
    """Gradient clipping called differential privacy: a clip norm in mode none, and a control without noise."""
    clipped = read_report(simulate(make_config(privacy={"clip": 1.0})))["privacy"]
    assert clipped["epsilon_spent"] is None
    assert clipped["statement"].startswith("No privacy")
    control = make_config(privacy=local, audit={"canaries": 40, "control": True})
    privacy = read_report(simulate(control, overwrite=True))["privacy"]
    assert privacy["mode"] == "none"
    assert privacy["epsilon_spent"] is None
