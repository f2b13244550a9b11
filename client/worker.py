"""What stays loaded at a site: backbone, tokenised data, and the functions that answer a task.

In a simulation one worker serves all sites of a process: the backbone is loaded once, adapters are swapped, and a site
is a view of the shared records.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..common.audit import NO_CANARIES, GradientCanaries, coins
from ..common.augmentation import encode_with_copies
from ..common.clipping import to_vector
from ..common.config import RunConfig
from ..common.data import label_names, training_rows
from ..common.errors import PrivacyError, WireError
from ..common.mechanism import NoiselessControl, PoissonMechanism
from ..common.models import FineTuneModel, canary_records, model_of
from ..common.noise import secure_generator
from ..common.partition import partition, site_name
from ..common.per_sample import validate
from ..common.plan import ANSWERS, answers_shape, privacy_plan
from ..common.robustness.poison import poisoned
from ..common.secagg.protocol import Site as SecureSite
from ..common.types import WHOLE, Records, RoundTask, Update, split
from .site import Site, SiteAccount
from .teach import answers
from .train import Work, train_client, train_distributed, train_plain, train_private


@dataclass(frozen=True)
class SimulatedData:
    """All sites' records of a simulation, tokenised once, and who holds which."""

    records: Records
    parts: list[np.ndarray]
    """one (n_i,) index array a site"""
    labels: np.ndarray | None
    """(N,) class of each record, for the partition plot"""


@dataclass(frozen=True)
class _Holding:
    """What one run may touch at one site, once its account is open."""

    account: SiteAccount
    indices: np.ndarray
    """(n,) numbers of the site's records, an audit's canary records included"""
    canaries: GradientCanaries
    """an audit's gradient canaries that are in"""


class Worker:
    """Loaded once a process; `train` may be called for any site in any order."""

    def __init__(self, config: RunConfig, load: "Load | None" = None) -> None:
        """load: reads the data of this process' sites; omitted: those of a simulation."""
        self.config = config
        self._load = load or load_simulated
        at_sites = config.taught_at(None) if config.distils else config
        self.model = model_of(at_sites)
        self._idle = [self.model]
        self.data = self._load(at_sites, self.model)
        self._others: dict[str, tuple[FineTuneModel, Records]] = {}
        self._records = self.data.records
        if load is None and config.audit.records >= config.clients:  # each site's share behind all sites' records
            for number in range(config.clients):
                name = site_name(number, config.clients)
                self._records = self._records.joined(canary_records(config, self.model, name))
        self.model.check_reached(self._records)
        self.plan = privacy_plan(config, self.model.count()[0])
        if self.plan is not None and not config.distils:
            validate(self.model)
        self._opening = threading.Lock()
        self._holdings: dict[int, _Holding] = {}

    def check(self, task: RoundTask) -> None:
        """Raises WireError for a task whose adapter is not this model's, before anything is charged."""
        expected = self.model.initial
        if self.config.distils:
            expected = {ANSWERS: np.zeros(answers_shape(self.config))}
            if len(task.questions) != self.config.distill.questions:
                raise WireError(
                    f"{len(task.questions)} questions in the task, distill.questions is {self.config.distill.questions}"
                )
        if task.adapter.keys() != expected.keys():
            raise WireError(f"{len(task.adapter)} arrays in the task, not the {len(expected)} of this model")
        for name, array in task.adapter.items():
            if array.shape != expected[name].shape:
                raise WireError(f"{name}: shape {array.shape} in the task, expected {expected[name].shape}")

    def account(self, site: Site, number: int, steps_before: int) -> SiteAccount:
        """The account of site `number` in this run, opened at the first call.

        steps_before: what the server has asked of it already. Raises PolicyError or BudgetError, charging nothing.
        """
        with self._opening:
            if number not in self._holdings:
                indices = self.data.parts[number]
                account = site.account(self.config, self.plan, self.data.records.digest(indices))
                self._holdings[number] = self._hold(account, number)
        account = self._holdings[number].account
        account.catch_up(steps_before)
        return account

    def _hold(self, account: SiteAccount, number: int) -> _Holding:
        """With the canaries that the site's coins put in."""
        config, indices = self.config, self.data.parts[number]
        if account.reservation.request.commitment is None:
            return _Holding(account, indices, NO_CANARIES)
        seed = account.site.coin_seed(config)
        count = config.audit.records // config.clients
        chosen = np.flatnonzero(coins(seed, "records", count))
        indices = np.concatenate([indices, len(self.data.records) + number * count + chosen])
        canaries = GradientCanaries.of_site(config, self.model.trained_initial, account.site.name)
        return _Holding(account, indices, canaries.only(coins(seed, "gradient", len(canaries))))

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

    def _teachers(self, work: Work, site: Site, number: int) -> Work:
        """The work with the model of this site's teachers, where it is another than the worker's."""
        names = self.config.distill.backbones
        name = site.config.datasets[self.config.data.name].teacher or (names[number % len(names)] if names else None)
        if name is None or name == self.config.model.backbone:
            return work
        with self._opening:
            if name not in self._others:
                other = self.config.taught_at(name)
                model = model_of(other)
                self._others[name] = model, self._load(other, model).records
        model, records = self._others[name]
        return replace(work, model=model.copy(), records=records)

    def _answers(
        self, work: Work, account: SiteAccount, number: int, before: int, secure: SecureSite | None
    ) -> np.ndarray | bytes:
        """What leaves of the answers of a site's teachers: (M·K,) the mean over them, or what a secure sum takes."""
        work = self._teachers(work, account.site, number)
        if account.plan is None:
            said = answers(work, np.random.default_rng([work.config.run.seed, 0xDEA1, number]))
            return said / work.config.distill.teachers
        mechanism = PoissonMechanism(account.plan, secure_generator(), before)
        mechanism.draw(0)  # nobody is drawn: every record is with a teacher
        said = answers(work, secure_generator())
        if secure is None:
            return mechanism.release(said)
        return secure.mask(work.task.round, mechanism.share(said, account.plan.clip))

    def train(self, number: int, task: RoundTask, account: SiteAccount, secure: SecureSite | None = None) -> Update:
        """Answers one task; several threads may ask, each for a site of its own.

        secure: the site's part of the run's secure sums; what leaves is masked by it.
        Raises BudgetError, with nothing touched, when the run has taken all the steps it reserved. What is returned
        has been committed to the ledger before.
        """
        config, holding = self.config, self._holdings[number]
        site, metrics, delta, masked = account.site, {}, {}, None
        if secure is not None:
            secure.expect(task.round)
        with account.taking(config.steps_per_round) as before, self._lend() as model:
            work = Work(config, model, self._records, holding.indices, task, holding.canaries)
            if config.distils:
                said = self._answers(work, account, number, before, secure)
                if isinstance(said, bytes):
                    masked = said
                else:
                    delta = {ANSWERS: said.reshape(answers_shape(config)).astype(np.float32)}
            elif account.plan is None:
                rng = np.random.default_rng([config.run.seed, 0x7A1, number, task.round])
                delta, loss = train_plain(work, rng)
                if site.config.policy.metrics:
                    metrics = {"loss": loss}
            else:
                kind = NoiselessControl if config.audit.control else PoissonMechanism
                mechanism = kind(account.plan, secure_generator(), before)
                if config.privacy.mode == "local":
                    delta = train_private(work, mechanism)
                elif secure is not None:
                    masked = secure.mask(task.round, _share(work, mechanism))
                elif config.privacy.mode == "client":
                    contribution = train_client(work, mechanism, secure_generator())
                    delta, metrics = split(contribution.update, model.trained_initial), {WHOLE: contribution.whole}
                else:
                    raise PrivacyError(f"mode '{config.privacy.mode}' releases sums only, and no secure sum is set up")
        return Update(
            site.name,
            delta,
            float(len(holding.indices)) if account.plan is None else 1.0,
            account.steps,
            account.epsilon(),
            metrics,
            site.head(),
            account.reservation.request.commitment,
            masked,
        )


def _share(work: Work, mechanism: PoissonMechanism) -> np.ndarray:
    """A site's noised part of a secure sum, (d,) int64."""
    if work.config.privacy.mode == "distributed":
        return train_distributed(work, mechanism)
    clip = mechanism.plan.clip if work.task.clip is None else work.task.clip
    contribution = train_client(work, mechanism, secure_generator())
    return mechanism.share(to_vector(contribution, mechanism.plan, clip), clip)


Load = Callable[[RunConfig, FineTuneModel], SimulatedData]


def load_simulated(config: RunConfig, model: FineTuneModel) -> SimulatedData:
    """Reads, cuts, tokenises and splits the training data of a simulation. Raises DataError."""
    data = config.data
    labels = list(data.labels) if data.labels else None
    if labels is None and data.partition.kind in ("dirichlet", "shards"):
        labels = label_names([data.training], data)  # a task without classes, dealt out by the values of a column
    natural = data.partition.kind == "natural"
    rows = model.rows(data.training, data, labels=labels, group=natural)
    rows = training_rows(rows, data, config.run.seed)
    parts = partition(data.partition, len(rows), rows.labels, rows.group, config.run.seed)
    rows = poisoned(rows, parts, config)
    classes = None if model.task.READS.label == "number" else rows.labels
    return SimulatedData(encode_with_copies(config, model, rows), parts, classes)


_loading = threading.Lock()


def worker_for(run_config: dict) -> Worker:
    """The worker of this process for a Flower run-config; loads at the first call."""
    with _loading:
        return _worker(json.dumps(run_config, sort_keys=True))


@lru_cache(maxsize=1)
def _worker(run_config: str) -> Worker:
    return Worker(RunConfig.from_flat(json.loads(run_config)))
