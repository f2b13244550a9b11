"""A federation's server: its folder, its processes, and the runs that are submitted to it.

::

    server.toml    addresses, limits, backbones
    ca.crt ca.key  the federation's own CA; sites get ca.crt
    server.crt …   what the front shows to sites; the SuperLink on loopback shows it too
    operator.crt … lets an operator at another machine reach the operators' front
    sites.json     the registered sites
    heads.json     what was seen of the sites' ledgers
    state.db       Flower's: registered nodes, runs, messages under way
    runs/          a folder a run, as a simulation leaves it
    logs/          superlink.log, rotated daily

Keys have mode 0600, the folder 0700.
"""

import json
import logging
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import uvicorn
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from pydantic import Field

from ..common.chain import write_json
from ..common.config import PublicKey, RunConfig, Section, load, read_toml
from ..common.credentials import SiteLine, expiry, fingerprint, issue, make_ca, parse_line
from ..common.errors import ConfideError, ConfigError, DeploymentError
from ..common.processes import end_group, tool, wait_for
from ..common.resolve import resolve
from .control import Control
from .front import CONTROL, FLEET, Front, front_server, nginx

log = logging.getLogger("confide.server")
HOME = "CONFIDE_SERVER"
"""names the server's folder to the processes that the SuperLink starts"""
FAILURE = "failure.json"
_WARN_DAYS = 30

Port = Annotated[int, Field(ge=1, le=65535)]


class ServerFile(Section, frozen=True):
    """server.toml"""

    names: tuple[str, ...]
    """DNS names and addresses by which sites reach the server; the certificate holds these"""
    host: str = "0.0.0.0"  # noqa: S104  # the one public address of a federation
    """where the front for sites listens"""
    port: Port = 8443
    operator_host: str = "127.0.0.1"
    operator_port: Port | None = None
    """front for operators at other machines, who show operator.crt; omitted: none"""
    internal_port: Port = 8000
    """of the SuperLink, on loopback"""
    max_message: Annotated[int, Field(ge=1024)] = 64 * 2**20
    """bytes of one request of a site; larger messages travel in pieces"""
    backbones: dict[str, str] = Field(default={})
    """a backbone's name in runs → the folder that holds it here (relative to server.toml)"""

    @classmethod
    def load(cls, folder: Path) -> "ServerFile":
        """Raises ConfigError."""
        path = folder / "server.toml"
        return cls.parse(read_toml(path, "run: confide server init"), str(path))


class RegisteredSite(Section, frozen=True):
    """An entry of sites.json."""

    node: str
    identity: PublicKey


def init_server(folder: Path, names: list[str], port: int) -> None:
    """Makes the folder. Raises DeploymentError when there is one."""
    if folder.exists() and any(folder.iterdir()):
        raise DeploymentError(f"{folder}: is not empty; a server's folder is made once, its CA is not replaced")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    wanted = ServerFile.parse({"names": names, "port": port}, "confide server init")
    make_ca(folder)
    renew(folder, list(wanted.names))
    lines = [
        "# The server of a federation. confide server run reads this file; sites get ca.crt and host:port.",
        f"names = {json.dumps(list(wanted.names))}",
        f'host = "{wanted.host}"',
        f"port = {wanted.port}",
        "# operator_host, operator_port: a second front for operators at other machines, who show operator.crt",
        "# operator_port = 8444",
        f"internal_port = {wanted.internal_port}   # the SuperLink, on loopback only",
        f"max_message = {wanted.max_message}",
        "# [backbones]",
        '# "sentence-transformers/all-MiniLM-L6-v2" = "/srv/models/minilm"',
    ]
    (folder / "server.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("runs", "logs", "flwr"):
        (folder / name).mkdir(mode=0o700)
    write_json(folder / "sites.json", {})


def renew(folder: Path, names: list[str] | None = None) -> None:
    """Issues the server's and the operator's certificate anew. The loopback names are always among the server's."""
    names = names or list(ServerFile.load(folder).names)
    issue(folder, "server", [*names, *(name for name in ("localhost", "127.0.0.1") if name not in names)])
    issue(folder, "operator", [])


def registered(folder: Path) -> dict[str, RegisteredSite]:
    """Raises DeploymentError for a file that cannot be read."""
    try:
        content = json.loads((folder / "sites.json").read_text(encoding="utf-8"))
        return {str(name): RegisteredSite.parse(entry, "sites.json") for name, entry in content.items()}
    except (OSError, ValueError, AttributeError):
        raise DeploymentError(
            f"{folder / 'sites.json'}: not readable; run confide server init, or restore it"
        ) from None


def add_site(folder: Path, name: str, line: str) -> tuple[SiteLine, bool]:
    """Registers a site; now, or when the server starts. Returns the site, and whether the server runs.

    Raises ConfigError, DeploymentError: another name in the line, a name or key that is registered already.
    """
    site = parse_line(line, "confide server add-site")
    if site.name != name:
        raise ConfigError(f"confide server add-site: the line is of site '{site.name}', not '{name}'")
    sites = registered(folder)
    entry = RegisteredSite(node=site.node, identity=site.identity)
    if sites.get(name, entry) != entry:
        raise DeploymentError(
            f"site '{name}' is registered with another key; confide server remove-site {name} first, if it is meant"
        )
    for other, known in sites.items():
        if other != name and known.node == site.node:
            raise DeploymentError(f"this key is registered for site '{other}' already")
    _write_sites(folder, {**sites, name: entry})
    return site, _sync_if_running(folder)


def remove_site(folder: Path, name: str) -> bool:
    """Takes a site out; its connection is refused from now on. Returns whether the server runs."""
    sites = registered(folder)
    if name not in sites:
        raise ConfigError(f"no site '{name}'; registered: {', '.join(sites) or 'none'}")
    _write_sites(folder, {key: entry for key, entry in sites.items() if key != name})
    return _sync_if_running(folder)


def _write_sites(folder: Path, sites: dict[str, RegisteredSite]) -> None:
    write_json(folder / "sites.json", {name: sites[name].model_dump() for name in sorted(sites)})


def _sync_if_running(folder: Path) -> bool:
    try:
        with local_control(folder) as control:
            sync_nodes(folder, control)
    except DeploymentError:
        return False
    return True


def sync_nodes(folder: Path, control: Control) -> None:
    """Registers with the SuperLink whom sites.json names, and nobody else."""
    wanted = {node_bytes(entry.node): name for name, entry in registered(folder).items()}
    known = control.nodes()
    for key, node in known.items():
        if key not in wanted:
            control.unregister(node.node_id)
    for key, name in wanted.items():
        if key not in known:
            control.register(key, name)


def node_bytes(openssh: str) -> bytes:
    """A node's key as Flower writes it."""
    return public_key_to_bytes(load_ssh_public_key(openssh.encode()))  # pyright: ignore[reportArgumentType]


def local_control(folder: Path) -> Control:
    return Control(f"https://127.0.0.1:{ServerFile.load(folder).internal_port}", folder / "ca.crt")


def run_server(folder: Path, *, front: bool = True) -> None:
    """Until SIGTERM or SIGINT. Raises ConfideError when the SuperLink does not start or ends by itself."""
    file = ServerFile.load(folder)
    for name in ("server.crt", "ca.crt", "operator.crt"):
        _warn_of_expiry(folder / name)
    if expiry(folder / "server.crt") < datetime.now(UTC):
        raise DeploymentError(f"{folder / 'server.crt'} has expired; run: confide server renew {folder}")
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with _superlink(folder, file) as link:
        upstream = f"https://127.0.0.1:{file.internal_port}"
        with local_control(folder) as control:
            sync_nodes(folder, control)
        fronts: list[uvicorn.Server] = []
        if front:
            app = Front(upstream, folder / "ca.crt", FLEET, file.max_message)
            fronts.append(front_server(app, file.host, file.port, folder / "server.crt", folder / "server.key"))
        if file.operator_port is not None:
            app = Front(upstream, folder / "ca.crt", CONTROL, file.max_message)
            pair = (folder / "server.crt", folder / "server.key")
            fronts.append(front_server(app, file.operator_host, file.operator_port, *pair, folder / "ca.crt"))
        threads = [threading.Thread(target=_serve, args=(server, over), daemon=True) for server in fronts]
        for thread in threads:
            thread.start()
        log.info("sites connect to %s:%d; stop with Ctrl-C", file.names[0], file.port)
        while not over.wait(0.5):
            if link.poll() is not None:
                raise ConfideError(f"the SuperLink ended with status {link.returncode}; see {_log(folder)}")
        for server in fronts:
            server.should_exit = True
        for thread in threads:
            thread.join(timeout=10)
    log.info("stopped")


def _serve(server: uvicorn.Server, over: threading.Event) -> None:
    """A front that cannot listen ends the whole."""
    try:
        server.run()
    except SystemExit:
        log.error("cannot listen on %s:%d; is the port taken?", server.config.host, server.config.port)
    over.set()


def _log(folder: Path) -> Path:
    return folder / "logs" / "superlink.log"


@contextmanager
def _superlink(folder: Path, file: ServerFile) -> Iterator[subprocess.Popen]:
    path = _log(folder)
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


@dataclass(frozen=True)
class ServerStatus:
    """What `confide server status` shows."""

    running: bool
    healthy_front: bool
    certificates: dict[str, datetime]
    sites: dict[str, str]
    """name → online, offline, or not connected yet"""
    fingerprint: str


def server_status(folder: Path) -> ServerStatus:
    file = ServerFile.load(folder)
    sites = registered(folder)
    states = dict.fromkeys(sites, "unknown: the server does not run")
    running = True
    try:
        with local_control(folder) as control:
            known = control.nodes()
        states = {
            name: known[key].status if (key := node_bytes(entry.node)) in known else "not registered"
            for name, entry in sites.items()
        }
    except DeploymentError:
        running = False
    return ServerStatus(
        running,
        _healthy(folder, file),
        {name: expiry(folder / name) for name in ("ca.crt", "server.crt", "operator.crt")},
        states,
        fingerprint({name: entry.identity for name, entry in sites.items()}),
    )


def _healthy(folder: Path, file: ServerFile) -> bool:
    host = "127.0.0.1" if file.host in ("0.0.0.0", "::") else file.host  # noqa: S104
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        return httpx.get(f"https://{host}:{file.port}/health", verify=context, timeout=5.0).status_code == 200
    except (httpx.HTTPError, OSError):
        return False


def nginx_config(folder: Path) -> str:
    file = ServerFile.load(folder)
    folder = folder.resolve()
    paths = (folder / "ca.crt", folder / "server.crt", folder / "server.key")
    return nginx(f"https://127.0.0.1:{file.internal_port}", file.port, *paths, file.max_message)


def declare(folder: Path, config: RunConfig) -> RunConfig:
    """A run for the registered sites: data, partition and engine of a simulation do not travel.

    Raises ConfigError, DeploymentError.
    """
    sites = registered(folder)
    if not sites:
        raise DeploymentError(f"{folder}: no site is registered; see confide server add-site")
    if config.audit.planted or config.audit.control:
        raise ConfigError("audit: canaries are for simulations; use confide audit canary")
    content = config.model_dump(mode="json", exclude_none=True)
    content["data"].pop("train", None)
    content["data"].pop("limit", None)
    content["data"]["partition"] = {"clients": len(sites)}
    content["engine"] = {}
    content["run"].setdefault("output", str(folder.resolve() / "runs" / config.run.name))
    return resolve(RunConfig.parse(content, "configuration"))


def start(folder: Path, config: RunConfig, *, overwrite: bool = False) -> int:
    """Writes the run's folder and submits it. Raises ConfigError, DeploymentError."""
    output = config.output
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise ConfigError(f"run.output: {output} is not empty; choose --out, or continue it with --resume")
        if not (output / "config.toml").is_file():
            raise ConfigError(f"run.output: {output} holds no run of confide; --overwrite will not remove it")
        shutil.rmtree(output)
    with local_control(folder) as control:
        control.runs()  # whether it is there, before anything is written
        output.mkdir(parents=True)
        (output / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        return _submit(control, config)


def _submit(control: Control, config: RunConfig) -> int:
    (config.output / FAILURE).unlink(missing_ok=True)
    number = control.submit(config)
    write_json(config.output / "deployment.json", {"run": number})
    return number


def proceed(folder: Path, output: Path) -> tuple[RunConfig, int]:
    """Continues an interrupted run after its last checkpoint; what is left of it at the SuperLink is stopped first."""
    if not (output / "config.toml").is_file():
        raise ConfigError(f"--resume: {output} holds no config.toml; give the folder of an interrupted run")
    if (output / "report.json").is_file():
        raise ConfigError(f"--resume: {output} has ended; its report is there")
    config = load(output / "config.toml")
    with local_control(folder) as control:
        number = run_number(output)
        for run in control.runs():
            if run.number == number and not run.over:
                control.stop(run.number)
        return config, _submit(control, config)


def run_number(output: Path) -> int | None:
    """The SuperLink's number of the run in a folder."""
    try:
        return int(json.loads((output / "deployment.json").read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def follow(folder: Path, config: RunConfig, number: int) -> None:
    """Waits for a run's end. Raises ConfideError with the reason when it left no report."""
    report, failed = config.output / "report.json", config.output / FAILURE
    unreachable = 0
    while True:
        try:
            with local_control(folder) as control:
                state = next((run for run in control.runs() if run.number == number), None)
            unreachable = 0
        except DeploymentError:
            unreachable += 1
            state = None
            if unreachable > 10:
                raise ConfideError(
                    f"the server is gone; start it, then: confide run --server {folder} --resume {config.output}"
                ) from None
        if report.is_file() and (state is None or state.over):
            return
        if state is not None and state.over:
            raise ConfideError(f"the run ended without a report ({state.status}): {_reason(failed, folder)}")
        time.sleep(1.0)


def _reason(failed: Path, folder: Path) -> str:
    try:
        return str(json.loads(failed.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"see {_log(folder)}"


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Runs in the server's folder, with what the SuperLink says of them."""
    try:
        with local_control(folder) as control:
            known = {run.number: run for run in control.runs()}
    except DeploymentError:
        known = {}
    rows = []
    for path in sorted((folder / "runs").glob("*/config.toml")):
        output = path.parent
        run = known.get(run_number(output) or -1)
        status = "finished" if (output / "report.json").is_file() else run.status if run else "interrupted"
        try:
            done = len((output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        except OSError:
            done = 0
        rows.append({"name": output.name, "status": status, "rounds": done, "folder": str(output)})
    return rows


def stop_run(folder: Path, name: str) -> None:
    """Raises ConfigError for a name that is no run's."""
    number = run_number(folder / "runs" / name)
    if number is None:
        raise ConfigError(f"{folder / 'runs' / name}: no run there; see confide runs")
    with local_control(folder) as control:
        control.stop(number)
