"""Runs of a federation, on the server's machine: declared, submitted, followed, continued, stopped.

`remote.py` gives an operator at another machine the same five things over the operators' gateway.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...common.config.run import RunConfig, load
from ...common.errors import ConfideError, ConfigError, DeploymentError
from ...common.ledger.chain import write_json
from ...common.run_folder import CONFIG, METRICS, make_room, require_room, require_run
from .control import Control
from .deployment import FAILURE, ServerFile, local_control, registered, superlink_log

_UNREACHABLE_TRIES = 10
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class RunRow:
    """One run, as `confide runs` lists it."""

    name: str
    status: str
    """finished, interrupted, or what the SuperLink says"""
    rounds: int
    """rounds done"""
    folder: str


@dataclass(frozen=True)
class Submitted:
    """A run under way."""

    name: str
    folder: Path
    """where its results come to lie, on this machine"""


class Runs(Protocol):
    """A federation's runs, from wherever the operator works."""

    def start(self, config: RunConfig, *, overwrite: bool = False) -> Submitted:
        """Submits a run. Raises ConfigError, DeploymentError."""
        ...

    def proceed(self, run: Path) -> Submitted:
        """Continues an interrupted run after its last whole round. Raises ConfigError, DeploymentError."""
        ...

    def follow(self, run: Submitted) -> None:
        """Waits for its end. Raises ConfideError with the reason when it left no report."""
        ...

    def rows(self) -> list[RunRow]: ...

    def stop(self, name: str) -> None:
        """Raises ConfigError for a name that is no run's."""
        ...


class LocalRuns:
    """`Runs` beside the server."""

    def __init__(self, server: Path) -> None:
        """server: its folder."""
        self._server = server

    def start(self, config: RunConfig, *, overwrite: bool = False) -> Submitted:
        config = declare(self._server, config)
        output = config.output
        require_room(output, overwrite=overwrite)
        with local_control(self._server) as control:
            under_way = {run.number for run in control.runs() if not run.over}  # before anything is written
            if run_number(output) in under_way:
                raise ConfigError(f"run.output: the run in {output} is under way; confide stop {output.name} first")
            make_room(output)
            (output / CONFIG).write_text(config.to_toml(), encoding="utf-8")
            return _submit(control, config)

    def proceed(self, run: Path) -> Submitted:
        """What is left of it at the SuperLink is stopped first."""
        path = require_run(run)
        if (run / "report.json").is_file():
            raise ConfigError(f"--resume: {run} has ended; its report is there")
        config = load(path)
        with local_control(self._server) as control:
            number = run_number(run)
            for known in control.runs():
                if known.number == number and not known.over:
                    control.stop(known.number)
            return _submit(control, config)

    def follow(self, run: Submitted) -> None:
        unreachable = 0
        while True:
            try:
                state = self.state(run.folder)
                unreachable = 0
            except DeploymentError:
                unreachable += 1
                if unreachable > _UNREACHABLE_TRIES:
                    raise ConfideError(
                        f"the server is gone; start it, then: confide run --server {self._server} --resume {run.folder}"
                    ) from None
            else:
                if state.over and state.reason is not None:
                    raise ConfideError(state.reason)
                if state.over:
                    return
            time.sleep(_POLL_SECONDS)

    def state(self, folder: Path) -> "Standing":
        """How far the run in a folder is. Raises DeploymentError when the SuperLink cannot be asked."""
        number = run_number(folder)
        with local_control(self._server) as control:
            known = next((run for run in control.runs() if run.number == number), None)
        finished = (folder / "report.json").is_file()
        if known is not None and not known.over:
            return Standing(known.status, over=False)
        if finished:
            return Standing("finished", over=True)
        status = "interrupted" if known is None else known.status
        return Standing(status, True, f"the run ended without a report ({status}): {self._why(folder)}")

    def _why(self, folder: Path) -> str:
        try:
            return str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"see {superlink_log(self._server)}"

    def rows(self) -> list[RunRow]:
        try:
            with local_control(self._server) as control:
                known = {run.number: run for run in control.runs()}
        except DeploymentError:
            known = {}
        rows = []
        for path in sorted((self._server / "runs").glob(f"*/{CONFIG}")):
            folder = path.parent
            run = known.get(run_number(folder) or -1)
            status = "finished" if (folder / "report.json").is_file() else run.status if run else "interrupted"
            rows.append(RunRow(folder.name, status, rounds_done(folder), str(folder)))
        return rows

    def stop(self, name: str) -> None:
        number = run_number(self._server / "runs" / name)
        if number is None:
            raise ConfigError(f"{self._server / 'runs' / name}: no run there; see confide runs")
        with local_control(self._server) as control:
            control.stop(number)


@dataclass(frozen=True)
class Standing:
    """Whether a run goes on, and why it left no report."""

    status: str
    over: bool
    reason: str | None = None


def declare(server: Path, config: RunConfig) -> RunConfig:
    """A run for the registered sites: data, partition and engine of a simulation do not travel.

    Raises ConfigError, DeploymentError.
    """
    from ...common.config.resolve import resolve  # loads torch: only where a run is submitted

    sites = registered(server)
    if not sites:
        raise DeploymentError(f"{server}: no site is registered; see confide server add-site")
    if config.audit.planted or config.audit.control:
        raise ConfigError("audit: canaries are for simulations; use confide audit canary")
    if config.attack.kind is not None:
        raise ConfigError("attack.kind: Byzantine sites are for simulations; use confide simulate")
    if config.distill.backbones:
        raise ConfigError(
            "distill.backbones: for simulations; a site names its teachers' backbone in its site.toml: "
            "datasets.NAME.teacher"
        )
    content = config.model_dump(mode="json", exclude_none=True)
    content["data"].pop("train", None)
    content["data"].pop("limit", None)
    content["data"]["partition"] = {"clients": len(sites)}
    content["engine"] = {}
    if (start := config.model.init_from) is not None:  # a name, never a path: who submits a run reads no file here
        folder = server.resolve() / "runs" / Path(start).name
        if start != folder.name or not (folder / "adapter").is_dir():
            raise ConfigError(
                f"model.init_from: '{start}' received; allowed: the name of a finished run of this server"
            )
        content["model"]["init_from"] = str(folder)
    content["run"].setdefault("output", str(server.resolve() / "runs" / config.run.name))
    return resolve(RunConfig.parse(content, "configuration"), ServerFile.load(server).folders(server))


def _submit(control: Control, config: RunConfig) -> Submitted:
    (config.output / FAILURE).unlink(missing_ok=True)
    number = control.submit(config)
    write_json(config.output / "deployment.json", {"run": number})
    return Submitted(config.output.name, config.output)


def run_number(folder: Path) -> int | None:
    """The SuperLink's number of the run in a folder."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((folder / "deployment.json").read_text(encoding="utf-8"))["run"])
    return None


def rounds_done(folder: Path) -> int:
    """Of the run in a folder."""
    try:
        return len((folder / METRICS).read_text(encoding="utf-8").splitlines())
    except OSError:
        return 0
