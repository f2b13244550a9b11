"""The Flower ServerApp: evaluates before, plays the rounds, evaluates after, writes adapter and report.

A run folder that holds checkpoints is continued. Everything that can be wrong with a configuration has been checked
before a run is submitted; here files are written.
"""

import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..common.config.run import RunConfig
from ..common.errors import ConfideError
from ..common.ledger.chain import write_json
from ..common.model.backbones import FOLDERS
from ..common.model.loading import FineTuneModel, export_adapter, model_of
from ..common.privacy.plan import privacy_plan
from ..common.types import Adapter, Records, Update, joined
from . import checkpoint
from .attacked import attack_facts
from .canaries import CanaryScores, conclude
from .checkpoint import Checkpoint
from .deploy.deployment import FAILURE, HOME, ServerFile, registered
from .evaluation import Evaluation, evaluate, read_public, subset
from .grids import QuickGrid
from .ledger_heads import Heads
from .record import Recorder
from .report import write_report
from .rounds import RoundResult, greet, result_row, reveal, run_rounds
from .start import initial_adapter
from .teaching import Lesson

app = ServerApp()
_HEADS = "server.json"
"""beside simulated sites' ledgers: what the server has seen of them"""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of Flower, whichever engine runs it."""
    config = RunConfig.from_flat(dict(context.run_config))
    home = os.environ.get(HOME)
    if home is None:
        run_server(grid, config)
        return
    try:
        run_server(QuickGrid(grid), config, Path(home))
    except ConfideError as error:
        write_json(config.output / FAILURE, {"reason": str(error)})
        raise
    except Exception as error:
        (config.output / "failure.log").write_text(traceback.format_exc(), encoding="utf-8")
        write_json(config.output / FAILURE, {"reason": f"{type(error).__name__}; see {config.output / 'failure.log'}"})
        raise


def run_server(grid: Grid, config: RunConfig, home: Path | None = None) -> None:
    """Raises the errors of `run_rounds`; what was done until then is in the checkpoints.

    home: the folder of a deployment's server.
    """
    folder = config.output
    if home is None:
        heads = Heads(Path(config.engine.ledger) / _HEADS if config.engine.ledger else None)
    else:
        for name, path in ServerFile.load(home).backbones.items():
            FOLDERS[name] = str(home / path)
        known = {name: site.identity for name, site in registered(home).items()}
        heads = Heads(home / "heads.json", known)
    model = model_of(config)
    lesson = Lesson(config, model) if config.distils else None
    test = read_public(config, model, config.data.test)
    validation = read_public(config, model, config.data.validation) if config.data.validation else test
    watched = subset(validation, config.server.evaluation_limit, config.run.seed)
    everything = np.arange(len(test))
    state = _start_or_continue(folder, config, initial_adapter(config, model) if lesson is None else lesson.nothing())
    plan = privacy_plan(config, model.count()[0])
    recorder = Recorder(folder, config.run.rounds, state.history)
    try:
        if not state.before:
            recorder.progress("evaluating before")
            start = state.adapter if lesson is None else lesson.student(state.adapter)
            state.before = _as_json(evaluate(model, start, test, everything))
        recorder.progress("waiting for sites")
        sites = greet(grid, config, heads)
        scores = CanaryScores(config, model, plan, state) if plan is not None and config.audit.planted else None
        keeps_best = config.server.patience is not None
        saver = _Saver(folder, recorder, model, validation, watched, heads, scores, keeps_best, lesson)
        trained = list(model.trained if lesson is None else state.adapter)
        run_rounds(grid, config, state, plan, trained, saver, sites, lesson.questions if lesson else ())
        recorder.progress("evaluating after", config.run.rounds)
        if state.best:
            state.adapter = state.best
        taught = None
        if lesson is not None:
            taught = lesson.facts(state.adapter, plan)
            state.adapter = lesson.student(state.adapter)
        after = _as_json(evaluate(model, state.adapter, test, everything))
        export_adapter(model, config.model, list(config.data.labels or []), folder / "adapter")
        audit = conclude(config, model, state, reveal(grid, sites)) if scores else None
        attack = attack_facts(config, model, state)
        found = {"audit": audit, "attack": attack, "teaching": taught}
        write_report(folder, config, model.count(), plan, state, after, found)
    finally:
        recorder.close()


@dataclass
class _Saver:
    """Evaluates, saves and tells after each round; saves what is charged before it."""

    folder: Path
    recorder: Recorder
    model: FineTuneModel
    validation: Records
    watched: np.ndarray
    heads: Heads
    scores: CanaryScores | None
    keeps_best: bool
    lesson: Lesson | None = None
    """what the student learns of, in a run that distils"""
    saved: str = ""
    """the set-up of secure sums that is on disk"""

    def asking(self, state: Checkpoint) -> None:
        checkpoint.save_asked(self.folder / "checkpoints", state.asked)
        if state.secure is not None and state.secure["roster"] != self.saved:
            checkpoint.save_secure(self.folder / "checkpoints", state.secure)
            self.saved = state.secure["roster"]

    def replied(self, number: int, done: int, asked: int) -> None:
        self.recorder.progress("training", number, done, asked)

    def received(self, site: str, update: Update) -> None:
        self.heads.saw(site, update.head)
        if self.scores is not None and update.masked is None:
            self.scores.observe(site, update.commitment, -joined(update.delta))

    def summed(self, change: np.ndarray, updates: dict[str, Update]) -> None:
        for site, update in updates.items():
            if self.scores is not None:
                self.scores.observe(site, update.commitment, -change)

    def round_done(self, result: RoundResult, state: Checkpoint) -> None:
        adapter = state.adapter
        if self.lesson is not None:
            adapter = self.lesson.student(
                adapter, lambda what, *done: self.recorder.progress(what, result.round, *done)
            )
        row = result_row(result) | evaluate(self.model, adapter, self.validation, self.watched).metrics
        state.history.append(row)
        best = state.history[state.best_round - 1]["accuracy"] if state.best_round else -1.0
        if self.keeps_best and row["accuracy"] > best:
            state.best, state.best_round = {name: array.copy() for name, array in state.adapter.items()}, result.round
        self.heads.save()
        checkpoint.save(self.folder / "checkpoints", state)
        self.recorder.row(row)
        self.recorder.progress("training", result.round, accuracy=row["accuracy"])


def _start_or_continue(folder: Path, config: RunConfig, initial: Adapter) -> Checkpoint:
    checkpoints = folder / "checkpoints"
    if any(checkpoints.glob("round-*.safetensors")):
        return checkpoint.load_latest(checkpoints, config.digest())
    asked, secure = checkpoint.load_asked(checkpoints), checkpoint.load_secure(checkpoints)
    return Checkpoint(0, config.digest(), initial, asked=asked, secure=secure)


def _as_json(evaluation: Evaluation) -> dict[str, Any]:
    confusion = None if evaluation.confusion is None else evaluation.confusion.tolist()
    return {**evaluation.metrics, "confusion": confusion}
