"""A federation's server: its folder, and who is registered.

::

    server.toml    addresses, limits, backbones
    ca.crt ca.key  the federation's own CA; sites get ca.crt
    server.crt …   what the gateway shows to sites; the SuperLink on loopback shows it too
    operator.crt … lets an operator at another machine submit runs (with ca.crt and operator.key)
    sites.json     the registered sites
    removed.json   node keys of sites that were removed: the SuperLink takes none of them a second time
    heads.json     what was seen of the sites' ledgers
    state.db       Flower's: registered nodes, runs, messages under way
    runs/          a folder a run, as a simulation leaves it
    public/        test sets that came with runs from other machines
    logs/          superlink.log, rotated daily

Keys have mode 0600, the folder 0700.
"""

import json
import logging
import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from pydantic import Field

from ...common.config.run import PublicKey
from ...common.config.section import Section, as_toml, read_toml
from ...common.credentials import SiteLine, expiry, fingerprint, issue, make_ca, parse_line
from ...common.errors import ConfigError, DeploymentError
from ...common.ledger.chain import write_json
from ...common.model.backbones import Folders
from ...common.whole import whole_folder
from .control import Control, RefusedError
from .gateway import nginx

log = logging.getLogger("confide.server")
HOME = "CONFIDE_SERVER"
"""names the server's folder to the processes that the SuperLink starts"""
FAILURE = "failure.json"
SITES, REMOVED = "sites.json", "removed.json"

Port = Annotated[int, Field(ge=1, le=65535)]


class ServerFile(Section, frozen=True):
    """server.toml"""

    OVERRIDES = ""
    names: tuple[str, ...]
    """DNS names and addresses by which sites reach the server; the certificate holds these"""
    host: str = "0.0.0.0"  # noqa: S104  # the one public address of a federation
    """where the gateway for sites listens"""
    port: Port = 8443
    operator_host: str = "127.0.0.1"
    operator_port: Port | None = None
    """where operators at other machines submit runs, who show operator.crt; omitted: nowhere"""
    internal_port: Port = 8000
    """of the SuperLink, on loopback"""
    max_message: Annotated[int, Field(ge=1024)] = 64 * 2**20
    """bytes of one request of a site; larger messages travel in pieces"""
    max_connections: Annotated[int, Field(ge=16, le=10_000)] = 512
    """of registered sites at once; whoever is not known yet has half as many places of their own, and seconds"""
    backbones: dict[str, str] = Field(default={})
    """a backbone's name in runs → the folder that holds it here (relative to server.toml)"""

    def folders(self, home: Path) -> Folders:
        """The backbones' folders. home: the server's."""
        return tuple((name, str(home / path)) for name, path in self.backbones.items())

    @classmethod
    def load(cls, folder: Path) -> "ServerFile":
        """Raises ConfigError."""
        path = folder / "server.toml"
        return cls.parse(read_toml(path, "run: confide server init"), str(path))


class RegisteredSite(Section, frozen=True):
    """An entry of sites.json."""

    OVERRIDES = ""
    node: str
    identity: PublicKey


def init_server(folder: Path, names: list[str], port: int) -> None:
    """Makes the folder. Raises DeploymentError when there is one."""
    if folder.exists() and any(folder.iterdir()):
        raise DeploymentError(f"{folder}: is not empty; a server's folder is made once, its CA is not replaced")
    wanted = ServerFile.parse({"names": names, "port": port}, "confide server init")
    with whole_folder(folder) as place:
        _fill(place, wanted)
    folder.chmod(0o700)


def _fill(folder: Path, wanted: ServerFile) -> None:
    make_ca(folder)
    renew(folder, list(wanted.names))
    lines = [
        "# The server of a federation. confide server run reads this file; sites get ca.crt and host:port.",
        f"names = {as_toml(list(wanted.names))}",
        f'host = "{wanted.host}"',
        f"port = {wanted.port}",
        "# operator_host, operator_port: where operators at other machines submit runs, who show operator.crt",
        "# operator_port = 8444",
        f"internal_port = {wanted.internal_port}   # the SuperLink, on loopback only",
        f"max_message = {wanted.max_message}",
        f"# max_connections = {wanted.max_connections}   # of registered sites at once",
        "# [backbones]",
        '# "sentence-transformers/all-MiniLM-L6-v2" = "/srv/models/minilm"',
    ]
    (folder / "server.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("runs", "logs", "flwr"):
        (folder / name).mkdir(mode=0o700)
    write_json(folder / SITES, {})


def renew(folder: Path, names: list[str] | None = None) -> None:
    """Issues the server's and the operator's certificate anew. The loopback names are always among the server's."""
    names = names or list(ServerFile.load(folder).names)
    issue(folder, "server", [*names, *(name for name in ("localhost", "127.0.0.1") if name not in names)])
    issue(folder, "operator", [])


def registered(folder: Path) -> dict[str, RegisteredSite]:
    """Raises DeploymentError for a file that cannot be read."""
    try:
        content = json.loads((folder / SITES).read_text(encoding="utf-8"))
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
    if site.node in _removed(folder):
        raise DeploymentError(
            f"this node key of site '{name}' was removed, and a key comes back no more; at the site: confide site "
            "new-key, restart it, and send the new site.pub (its ledger stays as it is)"
        )
    _write_sites(folder, {**sites, name: entry})
    return site, _sync_if_running(folder)


def remove_site(folder: Path, name: str) -> bool:
    """Takes a site out; its connection is refused from now on. Returns whether the server runs."""
    sites = registered(folder)
    if name not in sites:
        raise ConfigError(f"no site '{name}'; registered: {', '.join(sites) or 'none'}")
    write_json(folder / REMOVED, sorted({*_removed(folder), sites[name].node}))
    _write_sites(folder, {key: entry for key, entry in sites.items() if key != name})
    return _sync_if_running(folder)


def _removed(folder: Path) -> set[str]:
    """Node keys in OpenSSH form."""
    try:
        return set(map(str, json.loads((folder / REMOVED).read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError):
        raise DeploymentError(f"{folder / REMOVED}: not readable; restore it, or remove it") from None


def _write_sites(folder: Path, sites: dict[str, RegisteredSite]) -> None:
    write_json(folder / SITES, {name: sites[name].model_dump() for name in sorted(sites)})


def _sync_if_running(folder: Path) -> bool:
    try:
        with local_control(folder) as control:
            sync_nodes(folder, control)
    except DeploymentError:
        return False
    return True


def sync_nodes(folder: Path, control: Control) -> None:
    """Registers with the SuperLink whom sites.json names, and nobody else. A site that it refuses is left out with a
    warning, and the others are registered all the same."""
    wanted = {node_bytes(entry.node): name for name, entry in registered(folder).items()}
    known = control.nodes()
    for key, node in known.items():
        if key not in wanted:
            control.unregister(node.node_id)
    for key, name in wanted.items():
        if key not in known:
            try:
                control.register(key, name)
            except RefusedError as error:
                log.warning(
                    "site '%s' is left out: %s; its key was removed before; at the site: confide site new-key, then "
                    "confide server remove-site and add-site here",
                    name,
                    error,
                )


def node_bytes(openssh: str) -> bytes:
    """A node's key as Flower writes it."""
    return public_key_to_bytes(load_ssh_public_key(openssh.encode()))  # pyright: ignore[reportArgumentType]


def local_control(folder: Path) -> Control:
    return Control(f"https://127.0.0.1:{ServerFile.load(folder).internal_port}", folder / "ca.crt")


def superlink_log(folder: Path) -> Path:
    return folder / "logs" / "superlink.log"


@dataclass(frozen=True)
class ServerStatus:
    """What `confide server status` shows."""

    running: bool
    healthy_gateway: bool
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
    host = f"[{host}]" if ":" in host else host  # an address of IPv6
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        return httpx.get(f"https://{host}:{file.port}/health", verify=context, timeout=5.0).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return False


def nginx_config(folder: Path) -> str:
    file = ServerFile.load(folder)
    folder = folder.resolve()
    paths = (folder / "ca.crt", folder / "server.crt", folder / "server.key")
    return nginx(f"https://127.0.0.1:{file.internal_port}", file.port, *paths, file.max_message)
