"""Whether a Ray cluster can run a simulation, looked at before anything is loaded or written: ray itself would wait."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from ..common.config.tables import EngineSection
from ..common.errors import ConfigError

_CONNECT_SECONDS, _ANSWER_SECONDS = 3.0, 6.0
_SOCKET, _SESSION = 107, "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""bytes of a socket's path on Linux; what ray puts behind its folder"""
_PROBE = """
import json, sys, ray
print("imported", flush=True)
ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
print(json.dumps([node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]))
"""


def require_cluster(engine: EngineSection) -> None:
    """Raises ConfigError: ray is not installed, nothing answers at the address, no machine has the cores that a client
    is to hold, or the folder for ray's sockets has too long a name."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine.kind: 'ray' needs ray; install confide[ray], or choose inprocess")
    address = cluster_address(engine)
    if address == "local":
        _require_short_folder()
        most, where = float(os.cpu_count() or 1), "this machine"
    else:
        _require_answer(address)
        most, where = max(_cores(address), default=0.0), f"the largest machine of {address}"
    if engine.cpus_per_client > most:
        raise ConfigError(
            f"engine.cpus_per_client: received {engine.cpus_per_client}; allowed: at most {most:g}, the cores of "
            f"{where}; lower it"
        )


def cluster_address(engine: EngineSection) -> str:
    """`local` (a cluster of its own) where neither the run nor the environment names one: ray would join what this
    machine last belonged to, or wait a minute for it if it has ended."""
    return engine.address or os.environ.get("RAY_ADDRESS") or "local"


def _require_short_folder() -> None:
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")  # noqa: S108  # where ray itself goes
    most = _SOCKET - len(_SESSION)
    if len(os.fsencode(folder)) > most:
        raise ConfigError(
            f"{name}: received {len(os.fsencode(folder))} bytes ({folder}); allowed: at most {most}, since ray puts "
            "sockets there; set RAY_TMPDIR to a shorter folder, e.g. /tmp"
        )
    if not Path(folder).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: received {folder}; allowed: a folder that this user may write to; set another")


def _require_answer(address: str) -> None:
    """Of a HOST:PORT, that something listens there; other forms are ray's to find."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        if address == "auto":
            return
        raise ConfigError(f"engine.address: received '{address}'; allowed: HOST:PORT, ray://HOST:PORT, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            f"engine.address: received '{address}', where nothing answers ({reason}); start the cluster there (ray "
            "start --head), or correct it"
        ) from None


def _cores(address: str) -> list[float]:
    """Of each machine of a cluster; asked in a process of its own, since one process joins one cluster."""
    with subprocess.Popen(  # noqa: S603  # our own command
        [sys.executable, "-c", _PROBE, address],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as probe:
        try:
            if probe.stdout is not None:
                probe.stdout.readline()  # ray is imported, which takes what it takes
            return [float(cores) for cores in json.loads(probe.communicate(timeout=_ANSWER_SECONDS)[0])]
        except (subprocess.TimeoutExpired, ValueError, TypeError):
            probe.kill()
            raise ConfigError(
                f"engine.address: received '{address}', which answers, but not as a cluster of this version of ray; "
                "compare the versions, or correct it"
            ) from None
