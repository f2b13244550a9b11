"""The same run on Flower's simulation engine: ray actors as clients, on several cores or a running Ray cluster.

What is submitted is a bundle without code: it names our installed apps and carries the configuration. A SuperLink of
our own, bound to loopback, lives as long as the run; it has no authentication, so it is for machines that you trust.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from .. import __version__
from ..common.config import RunConfig
from ..common.errors import ConfideError, ConfigError

_START_SECONDS = 60.0
_CONNECTION = "confide"


def write_bundle(config: RunConfig, folder: Path) -> None:
    """A Flower app that holds configuration only: `serverapp` and `clientapp` resolve from the installed package."""
    nested: dict = {}
    for key, value in config.to_flat().items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    components = {"serverapp": "confide.server.app:app", "clientapp": "confide.client.app:app"}
    content = {
        "project": {
            "name": "confide-run",
            "version": __version__,
            "description": "configuration of a confide run; no code",
            "license": {"text": "Apache-2.0"},
            "dependencies": [],
        },
        "tool": {"flwr": {"app": {"publisher": "confide", "components": components, "config": nested}}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(tomli_w.dumps(content), encoding="utf-8")


def run_on_ray(config: RunConfig) -> None:
    """Runs to the end. Raises ConfigError without ray, ConfideError with the log's last words when the run fails."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError("engine.kind: 'ray' needs ray; install confide[ray], or choose inprocess") from None
    with tempfile.TemporaryDirectory(prefix="confide-ray-") as scratch:
        home, log = Path(scratch), config.output / "ray.log"
        write_bundle(config, home / "app")
        with _superlink(home, log, config.engine.address) as (port, environment):
            connection = {"superlink": {_CONNECTION: {"address": f"127.0.0.1:{port}", "insecure": True}}}
            (home / "config.toml").write_text(tomli_w.dumps(connection), encoding="utf-8")
            federation = f"num-supernodes={config.clients} client-resources-num-cpus={config.engine.cpus_per_client}"
            command = [_tool("flwr"), "run", str(home / "app"), _CONNECTION, "--federation-config", federation]
            with log.open("a") as output:
                finished = subprocess.run(  # noqa: S603  # our own command, arguments of numbers and paths
                    [*command, "--stream"], env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
                )
        if finished.returncode or not (config.output / "report.json").is_file():
            raise ConfideError(f"the Ray engine ended without a report: {_last_error(log)}; the whole log is {log}")


def _tool(name: str) -> str:
    """A command of Flower that belongs to this Python, whatever PATH says."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise ConfigError(f"engine.kind: 'ray' needs Flower's command '{name}'; install confide[ray]")
    return found


def free_port() -> int:
    """One on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _superlink(home: Path, log: Path, cluster: str | None) -> Iterator[tuple[int, dict[str, str]]]:
    port = free_port()
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if cluster:
        environment["RAY_ADDRESS"] = cluster
    command = [_tool("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("a") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command
            [*command, "--disable-runtime-dependency-installation"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children end with it, and only they
        )
        try:
            _wait_for(port, process, log)
            yield port, environment
        finally:
            for how in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, how)
                except ProcessLookupError:
                    break
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    continue


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise ConfideError(f"Flower's SuperLink did not start: {_last_error(log)}; the whole log is {log}")


def _last_error(log: Path) -> str:
    """The most telling line of a log: ours first, else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line]
    return (telling or lines or ["the log is empty"])[-1]
