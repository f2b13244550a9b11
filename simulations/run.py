"""`confide simulate`: checks everything, writes the run folder, hands over to an engine."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ..client.deploy.folder import POLICY
from ..client.worker import Worker
from ..common.config.resolve import public_sources, resolve
from ..common.config.run import RunConfig, load
from ..common.config.section import assignment
from ..common.data.partition import site_name
from ..common.data.sources import content_digest
from ..common.errors import ConfigError
from ..common.json_file import read_object
from ..common.model.loading import model_of
from ..common.model.memory import sites_at_once, with_plan
from ..common.modes import mode_of
from ..common.run_folder import CONFIG, make_room, require_room, require_run
from ..common.whole import require_writable, write_whole
from ..server.aggregate.strategy import make_strategy
from ..server.callbacks import Callback
from ..server.distillation import Distillation
from ..server.evaluation import read_public
from ..server.start import initial_adapter
from ..server.written import read_questions
from .app import client, play
from .attacks.byzantine import ByzantineGrid
from .canaries import canary_rows_of
from .local import LocalGrid
from .sites import make_ledgers, say_dealt, worker_for

_CONTENTS = "data.json"


def prepare(config: RunConfig, strategy: Strategy | None = None) -> tuple[RunConfig, Worker]:
    """Resolves what depends on data and loads all of it, so that nothing is written for a run that cannot start.

    Raises ConfigError, DataError, ModelError.
    """
    resolved = with_plan(resolve(config))
    model = model_of(resolved)
    for source in public_sources(resolved):
        read_public(resolved, model, source)
    read_questions(resolved, model)
    for number in range(resolved.clients if resolved.audit.records else 0):
        canary_rows_of(resolved, model, site_name(number, resolved.clients))
    make_strategy(resolved, model.trained_initial, given=strategy)
    initial_adapter(resolved, model)
    if mode_of(resolved).TEACHERS:
        Distillation(resolved, model)
    worker = worker_for(resolved.to_flat())
    data = worker.data  # a row that cannot be used is named here, where nobody but its owner sees it
    say_dealt(resolved, data)
    return resolved, worker


def simulate(
    config: RunConfig,
    *,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    strategy: Strategy | None = None,
) -> Path:
    """Runs a simulation from its start; returns the run folder.

    callbacks, strategy: objects of the caller, for the in-process engine. Raises ConfigError when the folder already
    holds a run and `overwrite` is not set.
    """
    _require_engine(config, callbacks, strategy)
    folder = config.output.resolve()
    require_room(folder, overwrite=overwrite)  # before minutes are spent on the model
    if config.engine.ledger is not None:
        require_writable(Path(config.engine.ledger) / POLICY, "engine.ledger")
    resolved, worker = prepare(config, strategy)
    contents, dealt = _contents(resolved, worker), _partition_facts(resolved, worker)
    make_room(folder)
    try:
        write_whole(folder / CONFIG, resolved.to_toml())
        write_whole(folder / "partition.json", json.dumps(dealt))
        write_whole(folder / _CONTENTS, json.dumps(contents, indent=2))
    except OSError:  # nothing has been charged or trained
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _start(resolved, callbacks, strategy)
    return folder


def resume(folder: Path, *, callbacks: Sequence[Callback] = (), strategy: Strategy | None = None) -> Path:
    """Continues an interrupted simulation after its last checkpoint; in mode `none` the result is the same bits.

    Raises ConfigError when the folder holds no run, or the data are no longer those that it began with.
    """
    config = load(require_run(folder), [assignment("run.output", str(folder.resolve()))])
    _require_engine(config, callbacks, strategy)
    resolved, worker = prepare(config, strategy)
    file, now = folder / _CONTENTS, _contents(resolved, worker)
    before = read_object(file, "restore it, or start a new run in another folder") if file.is_file() else {}
    if changed := [source for source, digest in now.items() if before.get(source) != digest]:
        raise ConfigError(
            f"{folder}: the rows of {changed[0]} are not those that the run began with; put them back, or start a new "
            "run in another folder"
        )
    _start(resolved, callbacks, strategy)
    return folder


def _contents(config: RunConfig, worker: Worker) -> dict[str, str]:
    """Of each source that a run reads, a digest of what it holds."""
    sites = hashlib.sha256(b"".join(worker.data.contents)).hexdigest()
    public = {source: content_digest(source, config.data).hex() for source in public_sources(config)}
    return {config.data.training: sites} | public


def _require_engine(config: RunConfig, callbacks: Sequence[Callback], strategy: Strategy | None) -> None:
    """Raises ConfigError."""
    if config.engine.kind != "inprocess" and (callbacks or strategy is not None):
        raise ConfigError(
            f"engine.kind: '{config.engine.kind}' received with objects of this process (callbacks, strategy); "
            "allowed: inprocess"
        )
    if config.engine.kind == "ray":
        from .ray_cluster import require_cluster

        require_cluster(config.engine)


def _partition_facts(config: RunConfig, worker: Worker) -> dict:
    """Label × client counts, for the plot; a simulation knows them, a deployment never would."""
    data = worker.data
    if data.labels is None:
        counts = [[len(part)] for part in data.parts]
        return {"labels": ["records"], "counts": counts}
    names = list(config.data.labels or [str(i) for i in range(int(data.labels.max()) + 1)])
    counts = [np.bincount(data.labels[part], minlength=len(names)).tolist() for part in data.parts]
    return {"labels": names, "counts": counts}


def _start(config: RunConfig, callbacks: Sequence[Callback], strategy: Strategy | None) -> None:
    if config.engine.ledger is not None:
        make_ledgers(config)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    if config.engine.kind == "ray":
        from .ray import run_on_ray

        run_on_ray(config)
        return
    grid: Grid = LocalGrid(client, config.to_flat(), config.clients, sites_at_once(config))
    if config.attack.kind is not None:
        grid = ByzantineGrid(grid, config)
    play(grid, config, callbacks, strategy)
