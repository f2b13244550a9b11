"""`confide server run`: the SuperLink on loopback, the gateway for sites, and the one for operators elsewhere."""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from ...common.credentials import expiry
from ...common.errors import ConfideError, DeploymentError
from ...common.processes import end_group, require_free, tool, wait_for
from ..doors import Limits, files_for
from .deployment import HOME, ServerFile, local_control, superlink_log, sync_nodes
from .gateway import FLEET, Front, gateway_server
from .identity import Registry
from .operators import operators_app

log = logging.getLogger("confide.server")
_WARN_DAYS = 30


def run_server(folder: Path, *, gateway: bool = True) -> None:
    """Until SIGTERM or SIGINT. Raises ConfideError when the SuperLink does not start or ends by itself."""
    file = ServerFile.load(folder)
    for name in ("server.crt", "ca.crt", "operator.crt"):
        _warn_of_expiry(folder / name)
    if expiry(folder / "server.crt") < datetime.now(UTC):
        raise DeploymentError(f"{folder / 'server.crt'} has expired; run: confide server renew {folder}")
    for name, host, port in _listening(file, gateway=gateway):
        require_free(host, port, f"{folder / 'server.toml'}: {name}")
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with _superlink(folder, file) as link:
        upstream = f"https://127.0.0.1:{file.internal_port}"
        with local_control(folder) as control:
            sync_nodes(folder, control)
        gateways: list[uvicorn.Server] = []
        if gateway:
            limits = Limits(connections=file.max_connections)
            files_for(limits.connections + limits.strangers)
            app = Front(upstream, folder / "ca.crt", FLEET, file.max_message, Registry(folder).sender, limits)
            pair = (folder / "server.crt", folder / "server.key")
            gateways.append(gateway_server(app, file.host, file.port, *pair, limits=limits))
        if file.operator_port is not None:
            app = operators_app(folder, file.max_message)
            pair = (folder / "server.crt", folder / "server.key")
            gateways.append(gateway_server(app, file.operator_host, file.operator_port, *pair, folder))
        failed: list[str] = []
        threads = [threading.Thread(target=_serve, args=(server, over, failed), daemon=True) for server in gateways]
        for thread in threads:
            thread.start()
        log.info("sites connect to %s:%d; stop with Ctrl-C", file.names[0], file.port)
        while not over.wait(0.5):
            if link.poll() is not None:
                raise ConfideError(f"the SuperLink ended with status {link.returncode}; see {superlink_log(folder)}")
        for server in gateways:
            server.should_exit = True
        for thread in threads:
            thread.join(timeout=10)
        if failed:
            raise DeploymentError(failed[0])
    log.info("stopped")


def _listening(file: ServerFile, *, gateway: bool) -> list[tuple[str, str, int]]:
    """Keys of server.toml, and the addresses that they name."""
    found = [("internal_port", "127.0.0.1", file.internal_port)]
    if gateway:
        found.append(("port", file.host, file.port))
    if file.operator_port is not None:
        found.append(("operator_port", file.operator_host, file.operator_port))
    return found


def _serve(server: uvicorn.Server, over: threading.Event, failed: list[str]) -> None:
    """A gateway that cannot listen ends the whole. failed: gets why."""
    try:
        server.run()
    except SystemExit:
        failed.append(f"cannot listen on {server.config.host}:{server.config.port}; is the port taken?")
    over.set()


@contextmanager
def _superlink(folder: Path, file: ServerFile) -> Iterator[subprocess.Popen]:
    path = superlink_log(folder)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    environment = {
        **os.environ,
        "FLWR_HOME": str((folder / "flwr").resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        HOME: str(folder.resolve()),
        "PATH": f"{Path(tool('flwr')).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [
        *(tool("flower-superlink"), "--host", "127.0.0.1", "--port", str(file.internal_port)),
        *("--ssl-certfile", str(folder / "server.crt"), "--ssl-keyfile", str(folder / "server.key")),
        *("--ssl-ca-certfile", str(folder / "ca.crt"), "--enable-supernode-auth"),
        *("--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"),
        *("--log-file", str(path), "--log-rotation-interval-hours", "24", "--log-rotation-backup-count", "14"),
    ]
    output = (folder / "logs" / "superlink.out").open("wb")
    with output:
        process = subprocess.Popen(  # noqa: S603  # our own command
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(file.internal_port, process, folder / "logs" / "superlink.out")
        yield process
    finally:
        end_group(process)


def _warn_of_expiry(path: Path) -> None:
    left = expiry(path) - datetime.now(UTC)
    if left.days < _WARN_DAYS:
        log.warning("%s expires in %d days; run: confide server renew", path, left.days)
