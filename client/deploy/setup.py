"""`confide site init | add-peer | check | status`: a site's folder made, examined and described."""

import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import tomli_w
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ...common.config.run import RunConfig, SiteConfig
from ...common.config.section import as_toml, read_toml
from ...common.credentials import SiteLine, expiry, fingerprint, new_node_key, parse_line
from ...common.errors import ConfideError, ConfigError, DeploymentError
from ...common.ledger.ledger import Ledger
from .contents import take_digests
from .folder import CA, LEDGER, NODE_KEY, POLICY, PUBLIC, approve, load_site, write_private
from .own_rows import data_told, in_several

_CLOCK_SECONDS = 30.0
"""further from the server's clock, its authentication refuses"""

_TEMPLATE = """# What this site allows. The server can name nothing that stands here.
[site]
name = {name}
server = {server}            # host:port, the only connection this site makes
# poll = 1.0                   # seconds between two questions for work
# deadline = 3600.0            # seconds after which a stuck worker is restarted
# max_message = 268435456      # bytes, either way
# max_memory = 8589934592      # bytes of address space of the worker

# One table a data set; runs name it by data.name, and its budget belongs to the name.
[datasets.{dataset}]
source = {source}            # csv, tsv, jsonl, parquet, conll, txt, or an SQL url: sqlite:///clinic.db#messages
text = "text"
label = "label"
# text_pair = "second"         # a second text of each row, for runs with data.text_pair
# messages = "messages"        # conversations, for runs with data.messages
epsilon = {epsilon}                # over all runs together
delta = 1e-5

[policy]
modes = ["local", "distributed", "client"]
# tasks = ["sequence-classification"]
# backbones = ["sentence-transformers/all-MiniLM-L6-v2"]
# max_epsilon_per_run = 8.0
# min_noise_multiplier = 0.5
# min_colluders = 1            # secure sums: sites that may work for the server and still learn no more than ε says
# min_sites = 2                # secure sums: sites in one sum
# min_survivors = 2            # secure sums: inputs without which nothing is opened
# templates = true             # runs may bring a chat template (data.template), a program that runs on each record
# approval = true              # every run's configuration is approved by hand: confide site approve

# [backbones]                  # a backbone's name in runs = the folder that holds it here; otherwise the hub's cache
# "sentence-transformers/all-MiniLM-L6-v2" = "/srv/models/minilm"
"""


def init_site(
    folder: Path, name: str, server: str, ca: Path, dataset: str, source: str, epsilon: float
) -> tuple[SiteLine, Path]:
    """Makes the folder; returns the site's public line, and the file that holds it.

    Raises ConfigError, DeploymentError: a folder that is not empty, a CA that is none, a name that cannot be.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DeploymentError(f"{folder}: is not empty; a site's folder is made once, its keys are not replaced")
    expiry(ca)
    if not name.isascii():
        raise ConfigError(f"--name: received '{name}'; allowed: letters without accents, digits, '.', '_' and '-'")
    quoted = {key: as_toml(value) for key, value in {"name": name, "server": server, "source": source}.items()}
    text = _TEMPLATE.format(**quoted, dataset=tomli_w.dumps({dataset: ""}).removesuffix(' = ""\n'), epsilon=epsilon)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    try:
        (partial / POLICY).write_text(text, encoding="utf-8")
        load_site(partial)
        shutil.copyfile(ca, partial / CA)
        node = new_node_key(partial / NODE_KEY)
        ledger = Ledger.create(partial / LEDGER, name)
        line = SiteLine(name, node, ledger.key.public)
        (partial / PUBLIC).write_text(f"{line}\n", encoding="ascii")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return line, folder / PUBLIC


def add_peers(folder: Path, lines: list[str]) -> str:
    """Lists other sites in site.toml, for secure sums; returns the fingerprint of the list, this site included.

    Raises ConfigError for a line that is none, or a name that is listed with another key.
    """
    config, section = load_site(folder)
    own = Ledger.open(folder / LEDGER).key.public
    peers = {**config.peers, section.name: own}
    for text in lines:
        line = parse_line(text, "confide site add-peer")
        if peers.get(line.name, line.identity) != line.identity:
            raise ConfigError(
                f"{folder / POLICY}: [peers] lists '{line.name}' with another key; ask that site which one holds, and "
                "correct the file by hand"
            )
        peers[line.name] = line.identity
    kept = _without_peers((folder / POLICY).read_text(encoding="utf-8"))
    write_private(folder / POLICY, (kept.rstrip() + "\n\n" + tomli_w.dumps({"peers": peers})).encode())
    SiteConfig.load(folder / POLICY)
    return fingerprint(peers)


def new_key(folder: Path) -> SiteLine:
    """Another node key: for a site that was removed and returns, or whose key may have been copied. Ledger, budgets and
    the identity that peers list stay. Returns the new line of site.pub. Raises ConfigError, DeploymentError.

    The key's file is replaced first: stopped between the two, `confide site check` says that site.pub does not belong
    to it, and the command may be given again.
    """
    _, section = load_site(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # mode 0700
        node = new_node_key(Path(scratch) / NODE_KEY)
        (Path(scratch) / NODE_KEY).replace(folder / NODE_KEY)
    line = SiteLine(section.name, node, Ledger.open(folder / LEDGER).key.public)
    write_private(folder / PUBLIC, f"{line}\n".encode())
    return line


def _without_peers(text: str) -> str:
    """site.toml without its [peers] table; other lines, comments included, stay."""
    kept, inside = [], False
    for line in text.splitlines():
        if line.strip().startswith("["):
            inside = line.strip().startswith("[peers]")
        if not inside:
            kept.append(line)
    return "\n".join(kept)


@dataclass(frozen=True)
class Check:
    """One line of `confide site check`."""

    what: str
    passed: bool
    detail: str
    """what was found, or what to do"""


def check_site(folder: Path, run: Path | None = None) -> Iterator[Check]:
    """One after the other; later ones are left out where an earlier one makes them meaningless.

    run: the configuration of a run, by whose model the rows of its data set are read, too.
    """
    try:
        config, section = load_site(folder)
    except ConfideError as error:
        yield Check("site.toml", False, str(error))
        return
    yield Check("site.toml", True, f"site {section.name}; data sets: {', '.join(config.datasets)}")
    yield _checked("node key", lambda: _node_key(folder, section.name))
    yield _checked("ledger", lambda: _ledger(folder, section.name))
    yield _checked("CA certificate", lambda: _certificate(folder / CA))
    people: dict[str, set[str]] = {}
    for name, dataset in config.datasets.items():
        yield _checked(f"data set {name}", lambda name=name, dataset=dataset: data_told(folder, name, dataset, people))
        budget = config.budget(name)
        yield _checked(f"budget of {name}", lambda budget=budget: _budget(folder, *budget))
    if len(people) > 1:
        yield _checked("persons", lambda: in_several(config, people))
    if run is not None:
        yield _checked(f"as {run} reads it", lambda: _as_read(folder, config, run))
    yield _checked("contents", lambda: _contents(folder, config))
    if any(mode in config.policy.modes for mode in ("distributed", "client")):
        yield _checked("peers", lambda: _peers(folder, config, section.name))
    reached = _checked("server", lambda: _reach(folder, section.server))
    yield reached
    if reached.passed:
        yield _checked("clock", lambda: _clock(folder, section.server))
        yield _checked("registration", lambda: _registration(folder))


def _checked(what: str, examine: Callable[[], str]) -> Check:
    try:
        return Check(what, True, examine())
    except ConfideError as error:
        return Check(what, False, str(error))
    except OSError as error:  # this file or folder; the others are looked at all the same
        return Check(what, False, f"{error.filename}: {error.strerror}; correct its owner, mode or kind")


def _node_key(folder: Path, name: str) -> str:
    from .connection import read_node_key

    _, public = read_node_key(folder / NODE_KEY)
    line = parse_line((folder / PUBLIC).read_text(encoding="ascii", errors="replace"), str(folder / PUBLIC))
    if public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() != line.node or line.name != name:
        raise DeploymentError(
            f"{folder / PUBLIC}: does not belong to {NODE_KEY} and site.toml; name or key was changed"
        )
    return "mode 0600, belongs to site.pub"


def _ledger(folder: Path, name: str) -> str:
    ledger = Ledger.open(folder / LEDGER)
    if ledger.site != name:
        raise DeploymentError(f"{folder / LEDGER}: is the ledger of site '{ledger.site}', site.toml says '{name}'")
    return f"holds; {ledger.head().seq} entries"


def _certificate(path: Path) -> str:
    end = expiry(path)
    left = end.timestamp() - time.time()
    if left < 0:
        raise DeploymentError(f"{path}: expired on {end:%Y-%m-%d}; ask the server's operator for the new ca.crt")
    return f"valid until {end:%Y-%m-%d}"


def _as_read(folder: Path, config: SiteConfig, run: Path) -> str:
    from .as_read import as_read

    return as_read(folder, config, RunConfig.parse(read_toml(run, "give the run's config.toml"), str(run)))


def _contents(folder: Path, config: SiteConfig) -> str:
    """Takes the digests that runs are charged for from now on."""
    unread = take_digests(folder, config, Ledger.open(folder / LEDGER))
    if unread:
        return f"{', '.join(unread)} cannot be read: runs on it are answered with noise alone"
    return "runs are charged for the rows as they are now; check again when they change, and restart the site"


def _budget(folder: Path, name: str, dataset: Any) -> str:
    if dataset.epsilon is None:
        return "no limit: runs without noise are admitted where the policy has mode none"
    spent, left = spent_and_left(folder, name, dataset.epsilon)
    if left <= 0.01 * dataset.epsilon:
        raise DeploymentError(f"ε = {spent:.3f} of {dataset.epsilon:g} is spent; no run will be admitted")
    return f"ε = {spent:.3f} of {dataset.epsilon:g} spent"


def spent_and_left(folder: Path, name: str, limit: float) -> tuple[float, float]:
    """ε of everything reserved on a data set, by the accountant that holds its limit, and what a further run finds."""
    from ...common.ledger.verify import audit

    for entry in audit(folder / LEDGER / "ledger.db").datasets:
        if entry["dataset"] == name:
            return float(entry["epsilon_spent"]), max(0.0, limit - (entry["epsilon_filter"] or 0.0))
    return 0.0, limit


def _peers(folder: Path, config: SiteConfig, name: str) -> str:
    own = Ledger.open(folder / LEDGER).key.public
    if config.peers.get(name) != own:
        raise DeploymentError(
            "[peers] does not list this site with its own key; secure sums need all sites' lines: confide site add-peer"
        )
    if len(config.peers) < 2:
        raise DeploymentError("[peers] lists this site alone; secure sums need all sites' lines: confide site add-peer")
    return f"{len(config.peers)} sites, fingerprint {fingerprint(config.peers)} (the same at every site?)"


def _get(folder: Path, server: str) -> httpx.Response:
    context = ssl.create_default_context(cafile=str(folder / CA))
    return httpx.get(f"https://{server}/health", verify=context, timeout=10.0)


def _reach(folder: Path, server: str) -> str:
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=10.0):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DeploymentError(f"{server}: no connection ({reason}); firewall, name or port?") from None
    try:
        answer = _get(folder, server)
    except httpx.HTTPError as error:
        raise DeploymentError(
            f"{server}: the TLS connection fails ({str(error)[:120]}); is ca.crt the one of this server?"
        ) from None
    if answer.status_code != 200:
        raise DeploymentError(f"{server}: answers HTTP {answer.status_code}; is the SuperLink up?")
    return f"{server} answers, its certificate holds"


def _clock(folder: Path, server: str) -> str:
    stamp = _get(folder, server).headers.get("date")
    if stamp is None:
        return "the server tells no time"
    apart = abs(parsedate_to_datetime(stamp).timestamp() - time.time())
    if apart > _CLOCK_SECONDS:
        raise DeploymentError(f"this clock and the server's are {apart:.0f} s apart; synchronise it (NTP)")
    return f"within {max(1.0, apart):.0f} s of the server's"


def _registration(folder: Path) -> str:
    from .node import known_to_server

    return known_to_server(folder)


@dataclass(frozen=True)
class SiteStatus:
    """What `confide site status` shows."""

    name: str
    running: bool
    datasets: list[dict[str, Any]]
    state: dict[str, Any]
    """what the running site wrote last: connected, last message, last error"""


def site_status(folder: Path) -> SiteStatus:
    """Raises ConfideError."""
    from ...common.ledger.verify import audit
    from .node import is_running, read_state

    _, section = load_site(folder)
    outcome = audit(folder / LEDGER / "ledger.db")
    if not outcome.holds:
        raise DeploymentError(f"{folder / LEDGER}: {outcome.findings[0]}")
    return SiteStatus(section.name, is_running(folder), outcome.datasets, read_state(folder))


def approve_file(folder: Path, path: Path) -> str:
    """Approves the run whose resolved configuration is in a file (config.toml of the run, or one of pending/)."""
    load_site(folder)
    return approve(folder, RunConfig.parse(read_toml(path, "give the run's config.toml"), str(path)))
