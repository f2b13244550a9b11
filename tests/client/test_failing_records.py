"""Records that the tokenizer or the model fails on cost nobody else anything, whatever the failure is."""

import logging

import numpy as np
import pytest

from confide.client.deploy.host import readable
from confide.client.train import Work
from confide.common.errors import contain
from confide.common.model.loading import FineTuneModel, model_of
from confide.common.privacy.mechanism import PoissonMechanism
from confide.common.types import RoundTask, Rows
from confide.simulations.run import simulate
from confide.simulations.sites import SimulatedSites, simulated_worker


class PanicError(BaseException):
    """As Rust's panics arrive: no Exception."""


def test_a_panic_is_contained_and_ctrl_c_is_not() -> None:
    contain(PanicError())
    with pytest.raises(KeyboardInterrupt):
        contain(KeyboardInterrupt())


@pytest.mark.parametrize("where", ["the record", "a copy of it"])
def test_a_record_that_cannot_be_read_is_left_out_alone(make_config, monkeypatch, where: str) -> None:
    config = make_config(data={"labels": ["negative", "positive"]}, training={"augmentation": 0.3, "views": 2})
    model = model_of(config)
    rows = Rows("x", [f"the film was good {'and warm ' * i}" for i in range(6)], labels=np.arange(6) % 2)
    real, bad = FineTuneModel.tokenised, rows.text[3]

    def panics(self: FineTuneModel, some: Rows, variant: int = 0):
        whole = bad in some.text
        perturbed = any(len(text.split()) == len(bad.split()) and text != bad for text in some.text)
        if whole if where == "the record" else perturbed:
            raise PanicError
        return real(self, some, variant)

    _, wanted = readable(config, model, rows.take(np.array([0, 1, 2, 4, 5])), b"s")
    monkeypatch.setattr(FineTuneModel, "tokenised", panics)
    _, found = readable(config, model, rows, b"s")
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.keys, wanted.keys)


def test_a_panic_in_training_costs_one_record(make_config, local, monkeypatch) -> None:
    config = make_config(
        run={"id": "r"}, data={"labels": ["negative", "positive"]}, privacy={**local, "sampling_rate": 1.0}
    )
    worker, sums = simulated_worker(config), []
    bad, real = int(worker.data.parts[0][5]), Work.losses

    def panics(self, part, draw, length=None):
        if bad in part:
            raise PanicError
        return real(self, part, draw, length)

    def share(self: PoissonMechanism, total: np.ndarray, clip: float) -> np.ndarray:
        sums.append(total)
        self._awaiting_release = False
        return np.zeros(self.plan.coordinates, dtype=np.int64)

    monkeypatch.setattr(PoissonMechanism, "share", share)
    account = worker.account(SimulatedSites(config).site(0), 0, 0)
    worker.train(0, RoundTask(1, worker.model.initial), account)
    monkeypatch.setattr(Work, "losses", panics)
    worker.train(0, RoundTask(1, worker.model.initial), account)
    assert 0 < np.linalg.norm(sums[0] - sums[1]) <= config.privacy.clip
    assert np.linalg.norm(sums[1]) > 2 * config.privacy.clip


@pytest.mark.slow
@pytest.mark.usefixtures("real_proofs")
def test_sites_side_by_side_prove_before_they_draw(make_config, local, caplog: pytest.LogCaptureFixture) -> None:
    """Threads of a pool have another number of torch's threads than the main one, and prove for themselves."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with caplog.at_level(logging.WARNING, logger="confide.worker"):
            simulate(make_config(privacy={**local, "sampling_rate": 0.5}, engine={"workers": 2}))
    finally:
        torch.set_num_threads(before)
    assert "noise alone" not in caplog.text
