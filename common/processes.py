"""Starting and ending Flower's commands."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from .errors import ConfideError, ConfigError, DeploymentError

_START_SECONDS = 60.0


def tool(name: str) -> str:
    """A command of Flower that belongs to this Python, whatever PATH says."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise ConfigError(f"Flower's command '{name}' is missing beside this Python; install confide again")
    return found


def free_port() -> int:
    """One on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_free(host: str, port: int, what: str) -> None:
    """Raises DeploymentError where something listens there, or the host is no address of this machine. what: the key
    that names it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no other
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        reason = "something listens there already" if error.errno == errno.EADDRINUSE else error.strerror
        raise DeploymentError(f"{what}: cannot listen on {host}:{port} ({reason}); end it, or set another") from None


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise ConfideError(f"Flower's SuperLink did not start: {last_error(log)}; the whole log is {log}")


def last_error(log: Path) -> str:
    """The most telling line of a log: ours first, else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line]
    return (telling or lines or ["the log is empty"])[-1]


def end_group(process: subprocess.Popen) -> None:
    """Ends a process that leads its own session, and its children."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
