"""A real site's folder: site.toml, ledger, keys, and what it keeps between messages.

::

    site.toml      data, limits, policy, peers: everything the server cannot name
    ca.crt         whom the connection trusts
    node.key       P-384, proves the connection to the server (mode 0600)
    site.pub       the line that the server registers and other sites list as a peer
    ledger/        the account of spent privacy, with the site's identity key
    approved/      configurations of runs that were approved by hand, by their hash
    pending/       configurations that were refused for want of approval
    replies/       the last answers of a run, so that a server that lost them gets the same ones
    site.log       what the connection did; worker.log: what the worker could not do. No content of a record in either
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from ..common import models
from ..common.config import DataSection, DatasetSection, RunConfig, SiteConfig, SiteSection
from ..common.data import read_rows
from ..common.errors import ConfigError, PolicyError
from ..common.ledger import Ledger
from ..common.models import FineTuneModel
from .site import POLICY, Site
from .worker import SimulatedData, Worker

LEDGER, NODE_KEY, PUBLIC, CA = "ledger", "node.key", "site.pub", "ca.crt"
_REPLIES_KEPT = 8
"""files: two a run"""
_PENDING_KEPT = 20


def load_site(folder: Path) -> tuple[SiteConfig, SiteSection]:
    """site.toml of a deployment. Raises ConfigError."""
    config = SiteConfig.load(folder / POLICY)
    if config.site is None:
        raise ConfigError(
            f"{folder / POLICY}: no [site]; a deployment needs its name and server; see confide site init"
        )
    return config, config.site


def local_path(folder: Path, source: str) -> str:
    """A path of site.toml, relative to it; URLs and absolute paths as they are."""
    if "://" in source:
        scheme, _, rest = source.partition(":///")
        relative = scheme == "sqlite" and rest and not rest.startswith("/")
        return f"sqlite:///{(folder / rest).resolve()}" if relative else source
    return str((folder / source).resolve())


def data_section(folder: Path, dataset: DatasetSection, name: str, labels: list[str] | None) -> DataSection:
    """Where a data set's rows are, in the words of a run. Raises ConfigError without a source."""
    if dataset.source is None:
        raise ConfigError(f"{folder / POLICY}: [datasets.{name}] has no source; name a file or an SQL url")
    source = local_path(folder, dataset.source)
    columns = dataset.model_dump(include={"text", "label", "prompt", "response"})
    return DataSection(name=name, train=source, test=source, labels=labels, **columns)


class DeployedHost:
    """The site of this process; the state of secure sums lives as long as the process."""

    number, discreet = 0, True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run_config: dict = {}
        self._ledger = Ledger.open(folder / LEDGER)
        self._workers: dict[str, Worker] = {}
        self._states: dict[str, RecordDict] = {}
        self.state = RecordDict()

    def enter(self, run_config: Mapping) -> "DeployedHost":
        """The host for messages of this run."""
        self._run_config = dict(run_config)
        key = hashlib.sha256(repr(sorted(self._run_config.items())).encode()).hexdigest()
        if key not in self._states and len(self._states) >= _REPLIES_KEPT:
            del self._states[next(iter(self._states))]
        self.state = self._states.setdefault(key, RecordDict())
        self._key = key
        return self

    @property
    def site(self) -> Site:
        config, section = load_site(self._folder)
        return Site(section.name, config, self._ledger, config.peers)

    def worker(self) -> Worker:
        if self._key in self._workers:
            return self._workers[self._key]
        run = RunConfig.from_flat(self._run_config)
        site = self.site
        dataset = site.admit(run)
        _, section = load_site(self._folder)
        if run.run.rounds > section.max_rounds:
            raise PolicyError(
                f"site {site.name}: {run.run.rounds} rounds asked, site.max_rounds is {section.max_rounds}"
            )
        if run.audit.planted:
            raise PolicyError(f"site {site.name}: audits with canaries are for simulations")
        if "demo:" in (run.data.train or "") or run.data.train:
            raise PolicyError(f"site {site.name}: data.train is the site's to name, not a run's")
        self._require_backbone(site, run)
        if site.config.policy.approval:
            self._require_approval(site, run)
        self._workers.clear()  # one run at a time keeps memory flat
        data = data_section(self._folder, dataset, run.data.name, run.data.labels)

        def load(config: RunConfig, model: FineTuneModel) -> SimulatedData:
            rows = read_rows(data.training, data, config.data.labels)
            records = model.task.encode(rows, model.tokenizer, config.model.max_length)
            return SimulatedData(records, [np.arange(len(records))], None)

        worker = Worker(run, load)
        self._workers[self._key] = worker
        return worker

    def _require_backbone(self, site: Site, run: RunConfig) -> None:
        """The server names a backbone, never a path."""
        name, folders = run.model.backbone, site.config.backbones
        models.FOLDERS.update({key: local_path(self._folder, value) for key, value in folders.items()})
        if name not in folders and (name.startswith((".", "/", "~")) or Path(name).exists()):
            raise PolicyError(
                f"site {site.name}: backbone '{name[:80]}' is a path; allowed: a hub id, or a name under [backbones]"
            )

    def _require_approval(self, site: Site, run: RunConfig) -> None:
        digest = run.digest()
        if (self._folder / "approved" / f"{digest}.toml").is_file():
            return
        pending = self._folder / "pending"
        pending.mkdir(mode=0o700, exist_ok=True)
        path = pending / f"{digest[:16]}.toml"
        if not path.exists() and len(list(pending.iterdir())) < _PENDING_KEPT:
            path.write_text(run.to_toml(), encoding="utf-8")
        raise PolicyError(
            f"site {site.name}: run configuration {digest[:16]} is not approved here; its operator reads "
            f"pending/{path.name} and runs: confide site approve"
        )

    def _reply_path(self, key: str) -> Path:
        run = hashlib.sha256(str(self._run_config.get("run.id")).encode()).hexdigest()[:16]
        kind = "train" if key.startswith("train") else "unmask"
        return self._folder / "replies" / f"{run}.{kind}"

    def recall(self, key: str) -> RecordDict | None:
        try:
            known, _, content = self._reply_path(key).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        return recorddict_from_proto(ProtoRecordDict.FromString(content)) if known.decode() == key else None

    def remember(self, key: str, reply: RecordDict) -> None:
        path = self._reply_path(key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(path, key.encode() + b"\n" + recorddict_to_proto(reply).SerializeToString())
        for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-_REPLIES_KEPT]:
            old.unlink(missing_ok=True)


def approve(folder: Path, run: RunConfig) -> str:
    """Allows the exact configuration; returns its hash."""
    digest = run.digest()
    place = folder / "approved"
    place.mkdir(mode=0o700, exist_ok=True)
    write_private(place / f"{digest}.toml", run.to_toml().encode())
    (folder / "pending" / f"{digest[:16]}.toml").unlink(missing_ok=True)
    return digest


def write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, mode 0600, on disk when it returns."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
