"""The Flower ServerApp: evaluates before, plays the rounds, evaluates after, writes adapter and report.

A run folder that holds checkpoints is continued. Everything that can be wrong with a configuration has been checked
before a run is submitted; here files are written.
"""

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..common.config import RunConfig
from ..common.models import FineTuneModel, export_adapter, model_of
from ..common.plan import privacy_plan
from ..common.types import Records
from . import checkpoint
from .checkpoint import Checkpoint
from .evaluation import Evaluation, evaluate, read_public, subset
from .record import Recorder
from .report import write_report
from .rounds import RoundResult, result_row, run_rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of Flower, whichever engine runs it."""
    run_server(grid, RunConfig.from_flat(dict(context.run_config)))


def run_server(grid: Grid, config: RunConfig) -> None:
    """Raises the errors of `run_rounds`; what was done until then is in the checkpoints."""
    folder = config.output
    model = model_of(config)
    test = read_public(config, model, config.data.test)
    validation = read_public(config, model, config.data.validation) if config.data.validation else test
    watched = subset(validation, config.server.evaluation_limit, config.run.seed)
    everything = np.arange(len(test))
    state = _start_or_continue(folder, config, model)
    recorder = Recorder(folder, config.run.rounds, state.history)
    try:
        if not state.before:
            recorder.progress("evaluating before")
            state.before = _as_json(evaluate(model, state.adapter, test, everything))

        def on_round(result: RoundResult, state: Checkpoint) -> None:
            row = result_row(result) | _round_metrics(model, state, validation, watched)
            state.history.append(row)
            checkpoint.save(folder / "checkpoints", state)
            recorder.row(row)
            recorder.progress("training", result.round, accuracy=row["accuracy"])

        def on_reply(number: int, done: int, asked: int) -> None:
            recorder.progress("training", number, done, asked)

        recorder.progress("waiting for sites")
        run_rounds(grid, config, state, list(model.trained), on_round, on_reply)
        recorder.progress("evaluating after", config.run.rounds)
        after = _as_json(evaluate(model, state.adapter, test, everything))
        export_adapter(model, config.model, list(config.data.labels or []), folder / "adapter")
        write_report(folder, config, model.count(), privacy_plan(config, model.count()[0]), state, after)
    finally:
        recorder.close()


def _start_or_continue(folder: Path, config: RunConfig, model: FineTuneModel) -> Checkpoint:
    checkpoints = folder / "checkpoints"
    if any(checkpoints.glob("round-*.safetensors")):
        return checkpoint.load_latest(checkpoints, config.digest())
    # not `model.get()`: whoever shares this process' model may have trained it
    return Checkpoint(0, config.digest(), {name: array.copy() for name, array in model.initial.items()})


def _round_metrics(model: FineTuneModel, state: Checkpoint, records: Records, indices: np.ndarray) -> dict[str, float]:
    return evaluate(model, state.adapter, records, indices).metrics


def _as_json(evaluation: Evaluation) -> dict[str, Any]:
    confusion = None if evaluation.confusion is None else evaluation.confusion.tolist()
    return {**evaluation.metrics, "confusion": confusion}
