"""The same run on Flower's simulation engine: ray actors as clients, on several cores or a running Ray cluster.

What is submitted is a bundle without code: it names our installed apps and carries the configuration. A SuperLink of
our own, bound to loopback, lives as long as the run; it has no authentication, so it is for machines that you trust.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from ..common.bundle import write_bundle
from ..common.config.run import RunConfig
from ..common.errors import ConfideError
from ..common.processes import end_group, free_port, last_error, tool, wait_for
from .ray_cluster import cluster_address

_CONNECTION = "confide"
APPS = {"serverapp": "confide.simulations.app:server", "clientapp": "confide.simulations.app:client"}


def run_on_ray(config: RunConfig) -> None:
    """Runs to the end, after `require_cluster`. Raises ConfideError with the log's last words when the run fails."""
    with tempfile.TemporaryDirectory(prefix="confide-ray-") as scratch:
        home, log = Path(scratch), config.output / "ray.log"
        write_bundle(config, home / "app", APPS)
        with _superlink(home, log, cluster_address(config.engine)) as (port, environment):
            connection = {"superlink": {_CONNECTION: {"address": f"127.0.0.1:{port}", "insecure": True}}}
            (home / "config.toml").write_text(tomli_w.dumps(connection), encoding="utf-8")
            federation = f"num-supernodes={config.clients} client-resources-num-cpus={config.engine.cpus_per_client}"
            command = [tool("flwr"), "run", str(home / "app"), _CONNECTION, "--federation-config", federation]
            with log.open("a") as output:
                finished = subprocess.run(  # noqa: S603  # our own command, arguments of numbers and paths
                    [*command, "--stream"], env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
                )
        if finished.returncode or not (config.output / "report.json").is_file():
            raise ConfideError(f"the Ray engine ended without a report: {last_error(log)}; the whole log is {log}")


@contextmanager
def _superlink(home: Path, log: Path, cluster: str) -> Iterator[tuple[int, dict[str, str]]]:
    port = free_port()
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": cluster,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [tool("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("a") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command
            [*command, "--disable-runtime-dependency-installation"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children end with it, and only they
        )
        try:
            wait_for(port, process, log)
            yield port, environment
        finally:
            end_group(process)
