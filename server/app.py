"""The Flower ServerApp: evaluates before, plays the rounds, evaluates after, writes adapter and report.

A run folder that holds checkpoints is continued. Everything that can be wrong with a configuration has been checked
before a run is submitted; here files are written.
"""

import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from ..common.config.run import RunConfig
from ..common.errors import ConfideError, ConfigError, RoundError
from ..common.ledger.chain import write_json
from ..common.model.adapter import export_adapter
from ..common.model.backbones import Folders
from ..common.model.loading import model_of
from ..common.modes import mode_of
from ..common.privacy.plan import privacy_plan
from ..common.types import Adapter, Update
from . import checkpoint
from .callbacks import Callback, EarlyStopping, RunState, Tracking
from .checkpoint import Checkpoint
from .deploy.deployment import FAILURE, HOME, ServerFile, registered
from .distillation import Distillation
from .evaluation import evaluate, subset
from .grids import QuickGrid
from .handshake import handshake, query
from .ledger_heads import Heads
from .measured import Figure
from .record import Recorder
from .report import write_report
from .rounds import RoundResult, result_row, run_rounds
from .start import initial_adapter
from .testing import BASELINES, Measured, PublicTest, baseline_facts

app = ServerApp()
_HEADS = "server.json"
"""beside simulated sites' ledgers: what the server has seen of them"""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of Flower in a deployment; the folder of the server is named in the environment."""
    config, home = RunConfig.from_flat(dict(context.run_config)), os.environ.get(HOME)
    if home is None:
        raise ConfigError(f"{HOME} is not set: this app is for `confide server run`; to simulate: confide simulate")
    try:
        _serve(grid, config, Path(home))
    except ConfideError as error:
        write_json(config.output / FAILURE, {"reason": str(error)})
        raise
    except Exception as error:
        (config.output / "failure.log").write_text(traceback.format_exc(), encoding="utf-8")
        write_json(config.output / FAILURE, {"reason": f"{type(error).__name__}; see {config.output / 'failure.log'}"})
        raise


def _serve(grid: Grid, config: RunConfig, home: Path) -> None:
    """home: the folder of a deployment's server."""
    folders = ServerFile.load(home).folders(home)
    known = {name: site.identity for name, site in registered(home).items()}
    run_server(QuickGrid(grid), config, Heads(home / "heads.json", known), folders=folders)


def simulated_heads(config: RunConfig) -> Heads:
    """What the server of a simulation has seen of its sites' ledgers."""
    return Heads(Path(config.engine.ledger) / _HEADS if config.engine.ledger else None)


def run_server(
    grid: Grid,
    config: RunConfig,
    heads: Heads,
    callbacks: Sequence[Callback] = (),
    strategy: Strategy | None = None,
    folders: Folders = (),
) -> None:
    """Raises the errors of `run_rounds`; what was done until then is in the checkpoints.

    callbacks: told of everything, after those that every run has. strategy: as in `run_rounds`. folders: backbones of
    the server's own.
    """
    folder = config.output
    model = model_of(config, folders)
    distillation = Distillation(config, model) if mode_of(config).TEACHERS else None
    test = PublicTest(config, model)
    state = _start_or_continue(
        folder, config, initial_adapter(config, model) if distillation is None else distillation.nothing()
    )
    plan = privacy_plan(config, model.count()[0])
    recorder = Recorder(folder, config.run.rounds, state.history)

    def measured(adapter: Adapter, when: str, number: int) -> Measured:
        evaluating, writing = (
            partial(recorder.progress, f"{what} {when}", number) for what in ("evaluating", "writing")
        )
        evaluating()
        return test.measured(adapter, evaluating, writing)

    try:
        start: Figure | None = None
        if not state.before:
            first = measured(initial_adapter(config, model), "before", 0)
            state.before, start = first.facts, first.evaluation.figure
        recorder.progress("waiting for sites")
        present = handshake(grid, config, heads)
        sites = present.sites
        run = RunState(config, folder, model, plan, state, partial(query, grid, sites), test)
        stopping = (EarlyStopping(),) if config.server.patience is not None else ()
        told = _Told([_Seen(heads), *stopping, *callbacks, Tracking(recorder)])
        told.started(run)
        keeper = _Keeper(run, recorder, heads, told, distillation)
        run_rounds(
            grid,
            config,
            state,
            plan=plan,
            trained=list(model.trained if distillation is None else state.adapter),
            sites=sites,
            absent=present.absent,
            callback=told,
            charged=keeper.charged,
            round_done=keeper.round_done,
            queries=distillation.queries if distillation else (),
            strategy=strategy,
            evaluated=keeper.evaluated,
        )
        if state.best:
            state.adapter = state.best
        found: dict[str, Any] = {}
        if distillation is not None:
            found["distillation"] = distillation.facts(state.adapter, plan)
            state.adapter = distillation.student(state.adapter)
        after = measured(state.adapter, "after", config.run.rounds)
        export_adapter(model, config.model, list(config.data.labels or []), folder / "adapter")
        found |= told.finished(run)
        baselines = test.untrained(
            after.evaluation, lambda: start or test.figure(initial_adapter(config, model))
        ) | found.get("baselines", dict.fromkeys(BASELINES[2:], "the data stay at the sites"))
        found["baselines"] = baseline_facts(baselines, after.evaluation.figure)
        found["calibration"] = test.calibration(after.evaluation, state.adapter)
        write_report(folder, config, model.count(), plan, state, after.facts, found)
    finally:
        recorder.close()
    _require_change(state)


def _require_change(state: Checkpoint) -> None:
    """Raises RoundError after a run in which every round was void."""
    if state.history and all("void" in row for row in state.history):
        last = state.history[-1]
        reason = next((failure["reason"] for failure in last["failed"]), last["void"])
        raise RoundError(f"no round changed the model: {reason}; the report is written, and what was charged stays so")


class _Seen(Callback):
    """Notes where each site's ledger stands."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    def received(self, site: str, update: Update) -> None:
        self._heads.saw(site, update.head)


class _Told(Callback):
    """Several callbacks as one, told in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._all = callbacks

    def started(self, run: RunState) -> None:
        for callback in self._all:
            callback.started(run)

    def waiting(self, number: int, online: int, needed: int) -> None:
        for callback in self._all:
            callback.waiting(number, online, needed)

    def replied(self, number: int, done: int, asked: int) -> None:
        for callback in self._all:
            callback.replied(number, done, asked)

    def received(self, site: str, update: Update) -> None:
        for callback in self._all:
            callback.received(site, update)

    def summed(self, change: np.ndarray, updates: Mapping[str, Update]) -> None:
        for callback in self._all:
            callback.summed(change, updates)

    def round_done(self, row: dict[str, Any]) -> None:
        for callback in self._all:
            callback.round_done(row)

    def saved(self, row: dict[str, Any]) -> None:
        for callback in self._all:
            callback.saved(row)

    def finished(self, run: RunState) -> dict[str, Any]:
        return {key: part for callback in self._all for key, part in callback.finished(run).items()}


@dataclass
class _Keeper:
    """Evaluates and saves after each round; saves what is charged before it."""

    run: RunState
    recorder: Recorder
    heads: Heads
    callback: Callback
    distillation: Distillation | None
    """what the student learns of, where sites train teachers"""
    saved: str = ""
    """the set-up of secure sums that is on disk"""

    def __post_init__(self) -> None:
        config = self.run.config
        self.watched = subset(self.run.test.watched, config.server.evaluation_limit, config.run.seed)

    def charged(self) -> None:
        state, folder = self.run.state, self.run.folder / "checkpoints"
        self._save_asked()
        if state.secure is not None and state.secure["roster"] != self.saved:
            checkpoint.save_secure(folder, state.secure)
            self.saved = state.secure["roster"]

    def _save_asked(self) -> None:
        state = self.run.state
        if self.run.plan is not None:  # without privacy nothing is charged, and the round is played again
            checkpoint.save_asked(self.run.folder / "checkpoints", state.asked, state.evaluated)

    def evaluated(self) -> None:
        """After the sites have measured the final model."""
        self.heads.save()
        checkpoint.save(self.run.folder / "checkpoints", self.run.state)
        self._save_asked()  # as sites have said it: a question that was repeated may have been charged once

    def round_done(self, result: RoundResult) -> None:
        state = self.run.state
        adapter = state.adapter
        if self.distillation is not None:
            adapter = self.distillation.student(
                adapter, lambda what, *done: self.recorder.progress(what, result.round, *done)
            )
        row = result_row(result) | evaluate(self.run.model, adapter, self.run.test.watched, self.watched).metrics
        state.history.append(row)
        self.callback.round_done(row)
        self.heads.save()
        checkpoint.save(self.run.folder / "checkpoints", state)
        self._save_asked()
        self.callback.saved(row)


def _start_or_continue(folder: Path, config: RunConfig, initial: Adapter) -> Checkpoint:
    checkpoints = folder / "checkpoints"
    if any(checkpoints.glob("round-*.safetensors")):
        return checkpoint.load_latest(checkpoints, config.digest())
    (asked, evaluated), secure = checkpoint.load_asked(checkpoints), checkpoint.load_secure(checkpoints)
    return Checkpoint(0, config.digest(), initial, asked=asked, evaluated=evaluated, secure=secure)
