"""What stays loaded at a site: backbone, tokenised data, and the functions that answer a task.

In a simulation one worker serves all sites of a process: the backbone is loaded once, adapters are swapped, and a site
is a view of the shared records.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..common.config import RunConfig
from ..common.data import label_names, read_rows, shuffled_limit
from ..common.mechanism import PoissonMechanism
from ..common.models import FineTuneModel, model_of
from ..common.noise import secure_generator
from ..common.partition import partition
from ..common.per_sample import validate
from ..common.plan import declared_steps, privacy_plan
from ..common.types import Records, RoundTask, Update
from .site import SiteAccount, site_name
from .train import train_plain, train_private


@dataclass(frozen=True)
class SimulatedData:
    """All sites' records of a simulation, tokenised once, and who holds which."""

    records: Records
    parts: list[np.ndarray]
    """one (n_i,) index array a site"""
    labels: np.ndarray | None
    """(N,) class of each record, for the partition plot"""


class Worker:
    """Loaded once a process; `train` may be called for any site in any order."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.model = model_of(config)
        self._idle = [self.model]
        self.data = load_simulated(config, self.model)
        self.plan = privacy_plan(config, self.model.count()[0])
        if self.plan is not None:
            validate(self.model)

    def account(self, site: int, steps: int) -> SiteAccount:
        """The account of a site that has been charged `steps` so far."""
        return SiteAccount(site_name(site, len(self.data.parts)), self.plan, declared_steps(self.config), steps)

    @contextmanager
    def _lend(self) -> Iterator[FineTuneModel]:
        """A model that no other thread uses: sites of one process may train side by side."""
        try:
            model = self._idle.pop()
        except IndexError:
            model = self.model.copy()
        try:
            yield model
        finally:
            self._idle.append(model)

    def train(self, site: int, task: RoundTask, account: SiteAccount) -> Update:
        """Answers one task; several threads may ask, each for a site of its own.

        What it takes is reserved first; raises BudgetError, with nothing touched, when over.
        """
        config, indices = self.config, self.data.parts[site]
        before = account.reserve(config.training.local_steps)
        if account.plan is None:
            key = [config.run.seed, 0x7A1, site]
            with self._lend() as model:
                delta, loss = train_plain(config, model, self.data.records, indices, task, key)
            return Update(account.site, delta, float(len(indices)), account.steps, None, {"loss": loss})
        mechanism = PoissonMechanism(account.plan, secure_generator(), before)
        with self._lend() as model:
            delta = train_private(config, model, self.data.records, indices, task, mechanism)
        return Update(account.site, delta, 1.0, account.steps, account.epsilon())


def load_simulated(config: RunConfig, model: FineTuneModel) -> SimulatedData:
    """Reads, cuts, tokenises and splits the training data of a simulation. Raises DataError."""
    data = config.data
    labels = list(data.labels) if data.labels else None
    if labels is None and data.partition.kind in ("dirichlet", "shards"):
        labels = label_names([data.train], data)  # a task without classes, dealt out by the values of a column
    rows = read_rows(data.train, data, labels, group=data.partition.kind == "natural")
    rows = shuffled_limit(rows, data.limit, config.run.seed)
    parts = partition(data.partition, len(rows), rows.labels, rows.group, config.run.seed)
    return SimulatedData(model.task.encode(rows, model.tokenizer, config.model.max_length), parts, rows.labels)


_loading = threading.Lock()


def worker_for(run_config: dict) -> Worker:
    """The worker of this process for a Flower run-config; loads at the first call."""
    with _loading:
        return _worker(json.dumps(run_config, sort_keys=True))


@lru_cache(maxsize=1)
def _worker(run_config: str) -> Worker:
    return Worker(RunConfig.from_flat(json.loads(run_config)))
