"""What stays loaded at a site: backbone, tokenised data, and the functions that answer a task.

A worker may serve several sites of a process (a simulation's): the backbone is loaded once, adapters are swapped, and a
site is a view of the shared records.
"""

import logging
import math
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from ..common.config.run import RunConfig
from ..common.data.chat_template import chat_template
from ..common.errors import ConfideError, PrivacyError, RecordsError, WireError, contain
from ..common.model.apart import check_apart
from ..common.model.backbones import Folders
from ..common.model.loading import FineTuneModel, model_of
from ..common.model.memory import with_plan
from ..common.model.per_sample import hooked, validate
from ..common.model.proof import check_reached, proved_shapes
from ..common.model.scored import scored_shapes
from ..common.modes import Release, mode_of
from ..common.modes.distillation import answers_shape
from ..common.privacy.audit import NO_CANARIES, GradientCanaries
from ..common.privacy.mechanism import NoiselessControl, PoissonMechanism
from ..common.privacy.noise import secure_generator
from ..common.privacy.plan import privacy_plan
from ..common.secagg.protocol import SecureSite
from ..common.types import Records, RoundTask, Update
from .held_out import counts_of
from .site import Site, SiteAccount
from .teach import answers
from .train import NOBODY, SiteComputation, Work

log = logging.getLogger("confide.worker")


@dataclass(frozen=True)
class SiteData:
    """The records of a process' sites, tokenised once, and who holds which."""

    records: Records
    parts: list[np.ndarray]
    """one (n_i,) index array a site"""
    labels: np.ndarray | None
    """(N,) class of each record, for the partition plot"""
    contents: list[bytes]
    """64 bytes a site: digests of its rows"""
    held_out: tuple[np.ndarray, ...] = ()
    """one (m_i,) index array a site: records that are counted and not in its part; empty where none are held out"""


class Planting(Protocol):
    """Canaries of an audit, put among the records of simulated sites (`simulations.canaries`)."""

    def among(self, records: Records, model: FineTuneModel) -> Records:
        """The records, and behind them every site's canary records."""
        ...

    def of_site(
        self, account: SiteAccount, model: FineTuneModel, number: int, before: int
    ) -> tuple[np.ndarray, GradientCanaries]:
        """The numbers of the site's canary records that are in, and its gradient canaries. before: records in front."""
        ...


class Worker:
    """Loaded once a process; `train` may be called for any site in any order.

    Its construction reads the backbone and no row. A real site's rows are read after its ledger has charged the run.
    """

    def __init__(
        self,
        config: RunConfig,
        load: "Load",
        content: Callable[[], bytes] | None = None,
        planted: Planting | None = None,
        folders: Folders = (),
    ) -> None:
        """load: reads the data of this process' sites. content: the digest of a site's rows that is known before they
        are read; omitted: `load` gives it. planted: an audit's canaries. folders: backbones of the site's own.

        Raises ModelError for a model that cannot be trained, or under privacy not one record at a time.
        """
        self.config = config  # as all of the run agreed on it: secure sums and ledgers hold it
        self._sized = with_plan(config, folders)  # how much a batch holds is each machine's own
        self._load, self._content, self._planted, self._folders = load, content, planted, folders
        mode = mode_of(config)
        self.model = model_of(mode.at_sites(self._sized), folders)
        self._idle = [self.model]
        self._others: dict[str, tuple[FineTuneModel, SiteData]] = {}
        check_reached(self.model)
        if config.data.messages is not None:
            chat_template(self.model.tokenizer, config.data.template)  # refused here, and not for some rows alone
        self.plan = privacy_plan(config, self.model.count()[0])
        if self.plan is not None and mode.BY_RECORD:
            proved = proved_shapes(self._sized, self.model)
            if config.evaluation.sites:
                scored_shapes(self.model, proved)
        elif self.plan is not None:
            (check_apart if mode.TEACHERS else validate)(self.model)
        self._opening = threading.RLock()
        self._data: SiteData | None = None
        self._accounts: dict[int, SiteAccount] = {}

    @property
    def data(self) -> SiteData:
        """Read at the first use. Raises DataError."""
        with self._opening:
            if self._data is None:
                self._data = self._load(mode_of(self.config).at_sites(self.config), self.model)
            return self._data

    @cached_property
    def _records(self) -> Records:
        """All that may be trained on."""
        records = self.data.records
        return records if self._planted is None else self._planted.among(records, self.model)

    def check(self, task: RoundTask) -> None:
        """Raises WireError for a task whose adapter is not this model's, before anything is charged."""
        mode, queries = mode_of(self.config), self.config.distill.queries
        expected = mode.exchanged(self.config, self.model.initial)
        if mode.TEACHERS and len(task.queries) != queries:
            raise WireError(f"{len(task.queries)} queries in the task, distill.queries is {queries}")
        if task.adapter.keys() != expected.keys():
            raise WireError(f"{len(task.adapter)} arrays in the task, not the {len(expected)} of this model")
        for name, array in task.adapter.items():
            if array.shape != expected[name]:
                raise WireError(f"{name}: shape {array.shape} in the task, expected {expected[name]}")

    def account(self, site: Site, number: int, steps_before: int, evaluations_before: int = 0) -> SiteAccount:
        """The account of site `number` in this run, opened at the first call; it reads no row of a real site.

        steps_before, evaluations_before: what the server has asked of it already. Raises PolicyError or BudgetError,
        charging nothing.
        """
        with self._opening:
            if number not in self._accounts:
                content = self.data.contents[number] if self._content is None else self._content()
                self._accounts[number] = site.account(self.config, self.plan, content)
        account = self._accounts[number]
        account.catch_up(steps_before, evaluations_before)
        return account

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

    def _work(self, model: FineTuneModel, account: SiteAccount, number: int, task: RoundTask) -> Work:
        indices, canaries = self.data.parts[number], NO_CANARIES
        if self._planted is not None:
            chosen, canaries = self._planted.of_site(account, self.model, number, len(self.data.records))
            indices = np.concatenate([indices, chosen])
        held_out = self.data.held_out[number] if self.data.held_out else NOBODY
        return Work(self._sized, model, self._records, indices, task, canaries, held_out)

    def _without_records(self, model: FineTuneModel, task: RoundTask) -> Work:
        return Work(self._sized, model, NO_RECORDS, np.empty(0, dtype=np.int64), task)

    def _teachers(self, work: Work, site: Site, number: int) -> Work:
        """The work with the model of this site's teachers, where it is another than the worker's."""
        names = self.config.distill.backbones
        name = site.config.datasets[self.config.data.name].teacher or (names[number % len(names)] if names else None)
        if name is None or name == self.config.model.backbone or not len(work.indices):
            return work
        with self._opening:
            if name not in self._others:
                other = self.config.for_teachers(name)
                model = model_of(other, self._folders)
                check_reached(model)
                if self.plan is not None:
                    check_apart(model)
                self._others[name] = model, self._load(other, model)
        model, data = self._others[name]  # with its own numbers: its tokenizer may fail on other rows
        return replace(work, model=model.copy(), records=data.records, indices=data.parts[number])

    def train(
        self,
        number: int,
        task: RoundTask,
        account: SiteAccount,
        secure: SecureSite | None = None,
        keep: Callable[[Update], object] | None = None,
    ) -> Update:
        """Answers one task; several threads may ask, each for a site of its own.

        secure: the site's part of the run's secure sums; what leaves is masked by it. keep: is given, before a row is
        read, what to answer should this process not live to the end of it: noise alone, under privacy and without
        secure sums (whose keys end with the process).
        Raises BudgetError, with nothing touched, when the run has taken all the steps it reserved. What is returned
        has been committed to the ledger before. Under privacy whatever fails from here on, in reading or in training,
        is answered as draws that were all empty would be: that something failed may depend on what the records are.
        """
        masked: bytes | None = None
        if secure is not None:
            secure.expect(task.round)
        elif self.config.secure:
            raise PrivacyError(f"mode '{self.config.privacy.mode}' releases sums only, and no secure sum is set up")
        steps = self.config.steps_per_round if self.config.trains_in(task.round) else 0
        with account.taking(steps, int(task.evaluate)) as before, self._lend() as model:
            if keep is not None and secure is None and account.plan is not None and not self.config.audit.control:
                keep(self._update(account, self._noise_alone(model, account, number, task, before)))
            if account.plan is None:
                found = self._openly(self._work(model, account, number, task), account, number)
            elif self.config.audit.control:
                mechanism = NoiselessControl(account.plan, secure_generator(), before)
                found = self._released(self._work(model, account, number, task), mechanism, account, number)
            else:
                found = self._privately(model, account, number, task, before)
            if found.share is not None and secure is not None:
                masked = secure.mask(task.round, found.share, found.excess)
        return self._update(account, found, masked)

    def _update(self, account: SiteAccount, found: Release, masked: bytes | None = None) -> Update:
        return Update(
            account.site.name,
            found.delta,
            found.weight,
            account.steps,
            account.epsilon(),
            found.metrics,
            account.site.head(),
            account.reservation.request.commitment,
            masked,
            found.counts,
            account.evaluations,
        )

    def _openly(self, work: Work, account: SiteAccount, number: int) -> Release:
        """Without privacy: the change, what may be told of it, and how many records are behind it."""
        site = self._computation(work, account.site, number)
        found = mode_of(self.config).release(replace(site, counting=lambda: counts_of(work, None)), None)
        return found if account.site.config.policy.metrics else replace(found, metrics={}, counts=None)

    def _computation(self, work: Work, site: Site, number: int) -> SiteComputation:
        coins = np.random.default_rng([self.config.run.seed, 0x7A1, number, work.task.round])
        return SiteComputation(work, coins, lambda: self._votes(work, site, number))

    def _votes(self, work: Work, site: Site, number: int) -> np.ndarray:
        if not len(work.indices):
            return np.zeros(math.prod(answers_shape(self.config)))
        return answers(self._teachers(work, site, number))

    def _privately(
        self, model: FineTuneModel, account: SiteAccount, number: int, task: RoundTask, before: int
    ) -> Release:
        """What leaves a site under privacy, with or without its records."""
        if account.plan is None:
            raise PrivacyError("no plan: nothing says how much noise there is to be")
        try:
            if account.stale:
                raise RecordsError("its records are others than those that the run was charged for; start a new run")
            mechanism = PoissonMechanism(account.plan, secure_generator(), before)
            return self._released(self._work(model, account, number, task), mechanism, account, number)
        except BaseException as error:
            contain(error)
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = str(error) if isinstance(error, ConfideError) else type(error).__name__
            where = f"{place.filename.rsplit('/', 1)[-1]}, line {place.lineno}"
            log.error(
                "%s: round %d is answered with noise alone: %s (%s)", account.site.name, task.round, reason, where
            )
        return self._noise_alone(model, account, number, task, before)

    def _noise_alone(
        self, model: FineTuneModel, account: SiteAccount, number: int, task: RoundTask, before: int
    ) -> Release:
        """What draws that are all empty give."""
        if account.plan is None:
            raise PrivacyError("no plan: nothing says how much noise there is to be")
        mechanism = PoissonMechanism(account.plan, secure_generator(), before)
        return self._released(self._without_records(model, task), mechanism, account, number)

    def _released(self, work: Work, mechanism: PoissonMechanism, account: SiteAccount, number: int) -> Release:
        mode, site = mode_of(self.config), self._computation(work, account.site, number)
        if not mode.BY_RECORD:
            return mode.release(site, mechanism)
        shapes = proved_shapes(self._sized, work.model)
        counts = NOBODY
        if work.task.evaluate:  # before there are hooks
            counts = counts_of(work, scored_shapes(work.model, shapes))
        work.model.set(work.task.adapter)
        with hooked(work.model):
            return mode.release(replace(site, shapes=shapes, counting=lambda: counts), mechanism)


NO_RECORDS = Records(
    np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64), keys=np.empty(0, np.uint64)
)


Load = Callable[[RunConfig, FineTuneModel], SiteData]
