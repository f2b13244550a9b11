"""Optional concerns of a run, as callbacks with few hooks instead of branches of the round loop.

Everything that is charged or saved is the loop's; a callback watches (progress, tracking, canaries of an audit), or
keeps something of its own (the best round's adapter).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.config.run import RunConfig
from ..common.model.loading import FineTuneModel
from ..common.privacy.mechanism import PrivacyPlan
from ..common.types import Update
from .checkpoint import Checkpoint
from .record import Recorder

if TYPE_CHECKING:
    from .testing import PublicTest


@dataclass(frozen=True)
class RunState:
    """What callbacks see of a run."""

    config: RunConfig
    folder: Path
    model: FineTuneModel
    plan: PrivacyPlan | None
    """None in mode `none`"""
    state: Checkpoint
    """as of the last round that is over; `state.adapter` is the model that the next round starts from"""
    query: Callable[[str], Mapping[str, Mapping[str, Any]]]
    """asks all sites something (e.g. "reveal"): the answers' facts, by site"""
    test: "PublicTest"
    """what before and after are measured on"""


class Callback:
    """Hooks of a run, in the order of their calls; a subclass overrides those that it needs."""

    def started(self, run: RunState) -> None:
        """Sites have answered; no round has been played since the run was started or resumed."""

    def waiting(self, number: int, online: int, needed: int) -> None:
        """Round `number` needs more sites than are online; nobody is asked before they are."""

    def replied(self, number: int, done: int, asked: int) -> None:
        """In round `number`, `done` of the `asked` sites have replied."""

    def received(self, site: str, update: Update) -> None:
        """An update was accepted, before it is aggregated."""

    def summed(self, change: np.ndarray, updates: Mapping[str, Update]) -> None:
        """A sum was opened. change: (d,) of the trained arrays; updates: of the sites in it, without their inputs."""

    def round_done(self, row: dict[str, Any]) -> None:
        """A round is over and evaluated; what this changes in the run's state is saved. row: of report.json's
        rounds[]."""

    def saved(self, row: dict[str, Any]) -> None:
        """The round is in the checkpoint."""

    def finished(self, run: RunState) -> dict[str, Any]:
        """All rounds are over and the adapter is written. Returns parts of report.json, by key."""
        return {}


class EarlyStopping(Callback):
    """Keeps the adapter of the round with the best main metric on the validation set (`server.patience`)."""

    def started(self, run: RunState) -> None:
        self._state, self._measure = run.state, run.model.task.MAIN

    def round_done(self, row: dict[str, Any]) -> None:
        state, measure = self._state, self._measure
        sign = 1.0 if measure.higher else -1.0
        best = sign * state.history[state.best_round - 1][measure.key] if state.best_round else -math.inf
        if sign * row[measure.key] > best:
            state.best, state.best_round = {name: array.copy() for name, array in state.adapter.items()}, row["round"]


class Tracking(Callback):
    """metrics.jsonl, TensorBoard and progress.json. A row also gets the ε spent so far, of the site that spent most."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def started(self, run: RunState) -> None:
        self._measure, self._run = run.model.task.MAIN, run

    def round_done(self, row: dict[str, Any]) -> None:
        plan, state = self._run.plan, self._run.state
        if plan is not None and not self._run.config.audit.control:
            asked, evaluated = (max(counts.values(), default=0) for counts in (state.asked, state.evaluated))
            row["epsilon"] = plan.epsilon(asked, evaluated)

    def waiting(self, number: int, online: int, needed: int) -> None:
        self._recorder.progress(f"waiting for sites: {online} of {needed} are online", number - 1)

    def replied(self, number: int, done: int, asked: int) -> None:
        stage = "training" if self._run.config.trains_in(number) else "evaluating at the sites"
        self._recorder.progress(stage, min(number, self._run.config.run.rounds), done, asked)

    def saved(self, row: dict[str, Any]) -> None:
        self._recorder.row(row)
        self._recorder.progress("training", row["round"], figure=(self._measure.name, row[self._measure.key]))
