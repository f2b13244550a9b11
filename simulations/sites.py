"""The sites of a simulation: their policy, ledgers and records, and the host that answers for each in this process.

One worker serves all sites of a process: the backbone is loaded once, adapters are swapped, and a site is a view of the
shared records. A real site loads nothing of this.
"""

import hashlib
import json
import logging
import threading
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from ..client.deploy.folder import POLICY
from ..client.site import Site, released_mode, run_id, trusts_server
from ..client.worker import SiteData, Worker
from ..common.config.run import DatasetSection, PolicySection, RunConfig, SiteConfig
from ..common.data.augmentation import encode_with_copies
from ..common.data.classes import label_names
from ..common.data.holdout import held_out, simulated_holdout_secret
from ..common.data.partition import partition, site_name
from ..common.data.record_keys import rows_digest, simulated_secret
from ..common.data.sources import training_rows
from ..common.errors import DataError
from ..common.ledger.chain import SiteKey
from ..common.ledger.ledger import Ledger
from ..common.model.loading import FineTuneModel
from ..common.types import Rows
from ..common.whole import write_whole
from ..server.evaluation import say_cut
from .attacks.poison import poisoned
from .canaries import Planted

log = logging.getLogger("confide.data")


def simulated_policy(run: RunConfig) -> SiteConfig:
    """What simulated sites allow when no site.toml says otherwise: this run once, and no ε beyond its own."""
    mode = released_mode(run)
    noised = run.private and not run.audit.control
    budget = DatasetSection(epsilon=run.privacy.epsilon if noised else None, delta=run.privacy.delta)
    allowed = {"modes": (mode,), "trust_server": trusts_server(run)}
    allowed |= dict.fromkeys(("metrics", "canaries", "templates"), True)
    policy = PolicySection.model_validate({**allowed, **_lowered(run)})
    return SiteConfig(datasets={run.data.name: budget}, policy=policy)


def _lowered(run: RunConfig) -> dict[str, int]:
    """The policy's minimums for secure sums, where this run needs lower ones."""
    if not run.secure:
        return {}
    needed, usual = run.secure_parameters, PolicySection()
    return {
        "min_colluders": min(needed.colluders, usual.min_colluders),
        "min_sites": min(needed.sites, usual.min_sites),
        "min_survivors": min(needed.survivors, usual.min_survivors),
    }


class SimulatedSites:
    """The sites of one simulation, made as they are asked for."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self._folder = None if run.engine.ledger is None else Path(run.engine.ledger)
        self._config = simulated_policy(run) if self._folder is None else SiteConfig.load(self._folder / POLICY)
        self._sites: dict[int, Site] = {}

    def site(self, index: int) -> Site:
        if index not in self._sites:
            name = site_name(index, self.run.clients)
            self._sites[index] = Site(name, self._config, self._ledger(name), self._peers)
        return self._sites[index]

    @cached_property
    def _peers(self) -> dict[str, str]:
        if self._folder is not None:
            return self._config.peers
        names = [site_name(index, self.run.clients) for index in range(self.run.clients)]
        return {name: self._key(name).public for name in names}

    def _key(self, name: str) -> SiteKey:
        """Processes of one simulation must agree on a site's coins, so the key follows from the run's random id."""
        return SiteKey.from_seed(hashlib.sha256(f"{run_id(self.run)}/{name}".encode()).digest())

    def _ledger(self, name: str) -> Ledger:
        if self._folder is None:
            return Ledger.in_memory(name, self._key(name))
        return Ledger.open(self._folder / name)


def make_ledgers(run: RunConfig) -> None:
    """Creates what `engine.ledger` names and does not hold yet: site.toml, and a ledger for each site."""
    folder = Path(str(run.engine.ledger))
    folder.mkdir(parents=True, exist_ok=True)
    peers: dict[str, str] = {}
    for index in range(run.clients):
        name = site_name(index, run.clients)
        if not (folder / name).exists():
            Ledger.create(folder / name, name)
        peers[name] = Ledger.open(folder / name).key.public
    if not (folder / POLICY).exists():
        policy = simulated_policy(run).model_copy(update={"peers": peers})
        write_whole(folder / POLICY, _POLICY_HEADER + policy.to_toml())
    SiteConfig.load(folder / POLICY)


_POLICY_HEADER = """# Budgets and policy of every simulated site in this folder, as the first run needs them.
# Raise epsilon, or add data sets and modes, to allow more; what was spent stays spent.
"""


def simulated_data(config: RunConfig, model: FineTuneModel) -> SiteData:
    """Reads, cuts, tokenises and splits the training data of a simulation. Raises DataError."""
    data = config.data
    labels = list(data.labels) if data.labels else None
    if labels is None and data.partition.kind in ("dirichlet", "shards"):
        labels = label_names([data.training], data)  # a task without classes, dealt out by the values of a column
    rows = model.rows(data.training, data, labels=labels, whose=True)
    rows = training_rows(rows, data, config.run.seed)
    parts = partition(data.partition, len(rows), rows.labels, rows.group, config.run.seed, rows.person)
    rows = poisoned(rows, parts, config)
    classes = None if model.task.READS.label in ("classes", "number") else rows.labels
    contents = [rows_digest(rows.take(part)) for part in parts]
    records = encode_with_copies(config, model, rows, simulated_secret(config))
    say_cut(records, data.training, model.max_length, len(rows))
    if not config.evaluation.sites:
        return SiteData(records, parts, classes, contents)
    apart = [_held_out(config, rows.take(part), site_name(number, len(parts))) for number, part in enumerate(parts)]
    trained = [part[~held] for part, held in zip(parts, apart, strict=True)]
    counted = tuple(part[held] for part, held in zip(parts, apart, strict=True))
    return SiteData(records, trained, classes, contents, counted)


def _held_out(config: RunConfig, rows: Rows, site: str) -> np.ndarray:
    """(n,) bool, of a site's rows. Raises DataError for a site that would train on nothing, where nothing hides that
    from the server."""
    found = held_out(rows, simulated_holdout_secret(config, site), config.evaluation.holdout)
    if not config.private and found.all():
        raise DataError(
            f"{config.data.training}: all {len(rows)} records of {site} are held out, and none is left to train on; "
            "lower data.partition.clients, or evaluation.holdout"
        )
    return found


def say_dealt(config: RunConfig, data: SiteData) -> None:
    """Logs what a simulation will hardly learn from: sites of one record, classes without any."""
    alone = [site_name(site, len(data.parts)) for site, part in enumerate(data.parts) if len(part) == 1]
    if alone:
        told = config.data.training, len(alone), len(data.parts), alone[0]
        log.warning("%s: %d of %d sites hold one record alone (the first is %s); lower data.partition.clients", *told)
    if data.labels is None or not config.data.labels:
        return
    held = np.bincount(data.labels[np.concatenate(data.parts)], minlength=len(config.data.labels))
    missing = [name for name, count in zip(config.data.labels, held, strict=True) if not count]
    if missing:
        told = config.data.training, len(missing), len(held), missing[0]
        log.warning("%s: no record of %d of %d classes (the first is '%s'): nothing will be learned of them", *told)
    if len(missing) == len(held) - 1:
        log.warning("%s: all records are of one class; a model that always answers it is right", config.data.training)


def simulated_worker(config: RunConfig) -> Worker:
    """A worker for all sites of a simulation. Raises as `Worker` does."""
    return Worker(config, simulated_data, planted=Planted(config) if config.audit.planted else None)


_loading = threading.Lock()


def worker_for(run_config: dict) -> Worker:
    """The worker of this process for a Flower run-config; loads at the first call."""
    with _loading:
        return _worker(json.dumps(run_config, sort_keys=True))


@lru_cache(maxsize=1)
def _worker(run_config: str) -> Worker:
    return simulated_worker(RunConfig.from_flat(json.loads(run_config)))


@lru_cache(maxsize=1)
def _sites(run_config: str) -> SimulatedSites:
    return SimulatedSites(RunConfig.from_flat(json.loads(run_config)))


def forget_sites() -> None:
    """As a new process would: ledgers in memory are gone, and nothing is loaded."""
    _sites.cache_clear()
    _worker.cache_clear()


class SimulatedHost:
    """One of a simulation's sites; the worker is shared by all of this process."""

    discreet = False

    def __init__(self, run_config: dict, number: int, state: RecordDict) -> None:
        self._run_config, self.number, self.state = run_config, number, state

    @property
    def site(self) -> Site:
        return _sites(json.dumps(self._run_config, sort_keys=True)).site(self.number)

    def worker(self) -> Worker:
        return worker_for(self._run_config)

    def recall(self, key: str) -> RecordDict | None:
        """Nothing: a simulation's server does not lose its answers."""
        return None

    def remember(self, key: str, reply: RecordDict) -> None:
        pass
