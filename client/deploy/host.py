"""A real site as its worker's handlers see it: the run's model and data, loaded once, and what was answered before."""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from ...common.config.run import RunConfig
from ...common.config.tables import DataSection
from ...common.data.augmentation import encode_with_copies, encodings
from ...common.data.holdout import held_out
from ...common.data.sources import of_persons, read_checked
from ...common.errors import DataError, PolicyError, contain
from ...common.ledger.ledger import Ledger
from ...common.model.backbones import DEMO_VIT, Folders, on_this_machine
from ...common.model.loading import FineTuneModel
from ...common.types import Records, Rows
from ..site import Site
from ..worker import SiteData, Worker
from .contents import content_of, keyed, take_digests, whose
from .folder import APPROVED, LEDGER, PENDING, POLICY, data_section, load_site, own_backbones, write_private

log = logging.getLogger("confide.worker")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_REPLIES_KEPT = 8
"""files: two a run"""
_PENDING_KEPT = 20


class DeployedHost:
    """The site of this process; the state of secure sums lives as long as the process."""

    number, discreet = 0, True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run_config: dict = {}
        self._ledger = Ledger.open(folder / LEDGER)
        self._workers: dict[str, Worker] = {}
        self._rules = b""
        self._states: dict[str, RecordDict] = {}
        self.state = RecordDict()
        take_digests(folder, load_site(folder)[0], self._ledger, only_new=True)  # before any task is known

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
        self._forget_old_rules()
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
        if run.distill.backbones:
            raise PolicyError(f"site {site.name}: distill.backbones are this site's to name, not a run's")
        if "demo:" in (run.data.train or "") or run.data.train:
            raise PolicyError(f"site {site.name}: data.train is the site's to name, not a run's")
        folders = self._admitted_folders(site, run)
        if site.config.policy.approval:
            self._require_approval(site, run)
        self._workers.clear()  # one run at a time keeps memory flat
        data = data_section(self._folder, dataset, run.data)
        content = content_of(self._folder, self._ledger, run.data.name)
        worker = Worker(run, partial(self._load, data, content), lambda: content, folders=folders)
        self._workers[self._key] = worker
        return worker

    def _forget_old_rules(self) -> None:
        """What was admitted is admitted anew where site.toml has changed since."""
        rules = (self._folder / POLICY).read_bytes()
        if rules != self._rules:
            self._workers.clear()
            self._rules = rules

    def _load(self, data: DataSection, content: bytes, config: RunConfig, model: FineTuneModel) -> SiteData:
        """The rows that contribute, and nothing of those that cannot: which they are stays at the site.

        Raises DataError when the rows are not those of `content`, which the run was charged for.
        """
        labels = list(data.labels or []) if model.task.CLASSES else None
        checked = read_checked(data.training, data, labels, reads=model.reads, image=model.image)
        if keyed(self._ledger, whose(data.name, checked.identity), checked.digest) != content.hex():
            raise DataError(
                f"data set '{data.name}': its rows are not those of the last check; run: confide site check "
                f"{self._folder}, and restart the site"
            )
        if checked.problems:
            count = len(checked.problems)
            log.warning("data set '%s': %d rows contribute nothing; see confide site check", data.name, count)
        # site.toml may name persons, and the run's unit be the record all the same
        rows = replace(checked.rows, person=None) if config.data.person is None else of_persons(checked.rows)
        rows, records = readable(config, model, rows, self._ledger.key.derive("records", b""))
        everybody = np.arange(len(records) // encodings(config, model))
        if not config.evaluation.sites:
            return SiteData(records, [everybody], None, [content])
        budget, _ = self.site.config.budget(data.name)  # one split for all runs, by whatever name of the data set
        secret = self._ledger.key.derive("held out", budget.encode())
        apart = held_out(rows, secret, config.evaluation.holdout)
        return SiteData(records, [everybody[~apart]], None, [content], (everybody[apart],))

    def _admitted_folders(self, site: Site, run: RunConfig) -> Folders:
        """Where this site's backbones are. Raises PolicyError for one of the run's that the site does not take.

        The server names a backbone, never a path, and does not make the site ask the hub: a model is downloaded only
        where policy.backbones lists it.
        """
        folders = dict(own_backbones(self._folder, site.config))
        for name in (run.model.backbone, run.model.image_backbone):
            if name is None or name in folders or name == DEMO_VIT:
                continue
            # by the form of the name alone: whether something of that name is on this disk is nobody's business
            if not _HUB_ID.fullmatch(name):
                raise PolicyError(
                    f"site {site.name}: backbone '{name[:80]}' is a path; allowed: a hub id, or a name under "
                    "[backbones]"
                )
            if (cached := on_this_machine(name)) is not None:
                folders[name] = cached
            elif name not in (site.config.policy.backbones or ()) or Path(name).exists():
                raise PolicyError(
                    f"site {site.name}: backbone '{name}' is not at this site; its operator puts it into the hub's "
                    "cache, or names a folder under [backbones], or lists it in policy.backbones, to be downloaded"
                )
        return tuple(folders.items())

    def _require_approval(self, site: Site, run: RunConfig) -> None:
        digest = run.digest()
        if (self._folder / APPROVED / f"{digest}.toml").is_file():
            return
        pending = self._folder / PENDING
        pending.mkdir(mode=0o700, exist_ok=True)
        path = pending / f"{digest[:16]}.toml"
        if not path.exists() and len(list(pending.iterdir())) < _PENDING_KEPT:
            path.write_text(run.to_toml(), encoding="utf-8")
        raise PolicyError(
            f"site {site.name}: run configuration {digest[:16]} is not approved here; its operator reads "
            f"{PENDING}/{path.name} and runs: confide site approve"
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
        _forget_old(path)


def _forget_old(newest: Path) -> None:
    """Keeps the last answers. Their order must not follow a clock that was set back, so each is stamped after all."""
    stamps: dict[Path, int] = {}
    for file in newest.parent.iterdir():
        with suppress(FileNotFoundError):  # another process tidies up, too
            stamps[file] = file.stat().st_mtime_ns
    last = max(stamps.values(), default=0)
    os.utime(newest, ns=(last + 1, last + 1))
    for old in sorted(stamps.keys() - {newest}, key=lambda file: stamps[file])[: 1 - _REPLIES_KEPT]:
        old.unlink(missing_ok=True)


def readable(config: RunConfig, model: FineTuneModel, rows: Rows, secret: bytes) -> tuple[Rows, Records]:
    """The rows that can be read and copied, mostly all, and their records. A row that fails costs nobody else
    anything."""
    try:
        return rows, encode_with_copies(config, model, rows, secret)
    except BaseException as error:
        contain(error)
    alone = [i for i in range(len(rows)) if _is_readable(config, model, rows.take(np.array([i])), secret)]
    rows = rows.take(np.array(alone, dtype=np.int64))
    return rows, encode_with_copies(config, model, rows, secret)


def _is_readable(config: RunConfig, model: FineTuneModel, row: Rows, secret: bytes) -> bool:
    try:
        encode_with_copies(config, model, row, secret)
    except BaseException as error:
        contain(error)
        log.warning("a row contributes nothing: %s in reading it", type(error).__name__)
        return False
    return True
