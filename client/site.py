"""A data site: its policy, its ledger, and what one run may take from it.

`Site.account` is the one way to the data: the policy may refuse the run, the ledger charges it, and only then is a row
touched. In a simulation there is a site for every client, with a ledger in memory or in a folder.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from ..common import audit
from ..common.chain import Head, SiteKey
from ..common.config import DatasetSection, PolicySection, RunConfig, SiteConfig
from ..common.errors import PolicyError, PrivacyError
from ..common.ledger import Ledger, Limit, Request, Reservation
from ..common.mechanism import PrivacyPlan
from ..common.partition import site_name
from ..common.plan import declared_steps, step_of
from .folder import POLICY


@dataclass(frozen=True)
class SiteAccount:
    """What one run has reserved at one site; `plan` is None in mode `none`."""

    site: "Site"
    plan: PrivacyPlan | None
    reservation: Reservation

    @property
    def steps(self) -> int:
        """Steps taken so far, failed ones included."""
        return self.reservation.charge.used

    def epsilon(self) -> float | None:
        """ε of the steps taken so far."""
        return None if self.plan is None else self.plan.epsilon(self.steps)

    def taking(self, steps: int) -> AbstractContextManager[int]:
        """Within, data may be touched; gives the steps taken before. They are charged however it ends.

        Raises BudgetError, with nothing touched, when the run has not reserved as many.
        """
        return self.reservation.taking(steps)

    def catch_up(self, steps: int) -> None:
        """A ledger in memory forgets with its process: what a server has asked since the run began counts as taken."""
        missing = steps - self.steps
        if missing > 0 and not self.site.ledger.durable:
            with self.taking(missing):
                pass


@dataclass(frozen=True)
class Site:
    """One site as the run's code sees it."""

    name: str
    config: SiteConfig
    ledger: Ledger
    peers: Mapping[str, str]
    """name → public key of every site that secure sums may be made with, this one included"""

    def admit(self, run: RunConfig) -> DatasetSection:
        """The budget that the run would be charged to. Raises PolicyError: what came, what is allowed."""
        policy, dataset = self.config.policy, run.data.name
        self._require(dataset in self.config.datasets, "data set", dataset, ", ".join(self.config.datasets))
        self._require(run.privacy.mode in policy.modes, "mode", run.privacy.mode, ", ".join(policy.modes))
        for what, value, allowed in (
            ("task", run.model.task, policy.tasks),
            ("backbone", run.model.backbone, policy.backbones),
            ("backbone", run.model.image_backbone, policy.backbones),
            *(("backbone", name, policy.backbones) for name in run.distill.backbones),
        ):
            self._require(value is None or allowed is None or value in allowed, what, value, ", ".join(allowed or ()))
        self._require(policy.canaries or not run.audit.planted, "audit canaries", run.audit.planted, "none")
        return self.config.datasets[dataset]

    def _admit_plan(self, run: RunConfig, plan: PrivacyPlan) -> None:
        policy, z, clip = self.config.policy, plan.noise_multiplier, plan.clip
        least, lowest, highest = policy.min_noise_multiplier, policy.min_clip, policy.max_clip
        self._require(least is None or z >= least, "noise multiplier", f"{z:g}", f"{least} and above")
        self._require(lowest is None or clip >= lowest, "clip norm", f"{clip:g}", f"{lowest} and above")
        self._require(highest is None or clip <= highest, "clip norm", f"{clip:g}", f"{highest} and below")
        most, epsilon = policy.max_epsilon_per_run, plan.epsilon()
        self._require(most is None or epsilon <= most, "ε for one run", f"{epsilon:.4g}", f"at most {most}")

    def _require(self, condition: bool, what: str, received: object, allowed: str) -> None:
        if not condition:
            raise PolicyError(f"site {self.name}: its policy refuses the run: {what} {received}; allowed: {allowed}")

    def account(self, run: RunConfig, plan: PrivacyPlan | None, content: bytes) -> SiteAccount:
        """Charges the whole run, or finds what it reserved before. content: digest of the records.

        Raises PolicyError or BudgetError, charging nothing.
        """
        dataset = self.admit(run)
        if plan is not None:
            self._admit_plan(run, plan)
        request = Request(
            run=_run_id(run),
            dataset=run.data.name,
            content=self.ledger.key.derive("content", content).hex(),
            unit="client" if run.privacy.mode == "client" else "example",
            step=step_of(run, plan),
            steps=declared_steps(run),
            delta=run.privacy.delta,
            model=run.model.backbone,
            configuration=run.digest(),
            commitment=audit.commitment(self.coin_seed(run)) if run.audit.planted else None,
        )
        limit = Limit(dataset.epsilon, dataset.delta, dataset.order)
        return SiteAccount(self, plan, self.ledger.reserve(request, limit))

    def coin_seed(self, run: RunConfig) -> bytes:
        """What decides an audit's canaries: only the holder of the site's key can know it before it is revealed."""
        return self.ledger.key.derive("audit coins", _run_id(run).encode())

    def head(self) -> Head | None:
        return self.ledger.head() if self.ledger.durable else None


def _run_id(run: RunConfig) -> str:
    if run.run.id is None:
        raise PrivacyError("run.id: nothing received; a site charges a run by its name")
    return run.run.id


def simulated_policy(run: RunConfig) -> SiteConfig:
    """What simulated sites allow when no site.toml says otherwise: this run once, and no ε beyond its own."""
    unlimited = not run.private or run.audit.control
    budget = DatasetSection(epsilon=None if unlimited else run.privacy.epsilon, delta=run.privacy.delta)
    policy = PolicySection(modes=(run.privacy.mode,), metrics=True, canaries=True)
    return SiteConfig(datasets={run.data.name: budget}, policy=policy)


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
        return SiteKey.from_seed(hashlib.sha256(f"{_run_id(self.run)}/{name}".encode()).digest())

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
        (folder / POLICY).write_text(_POLICY_HEADER + policy.to_toml(), encoding="utf-8")
    SiteConfig.load(folder / POLICY)


_POLICY_HEADER = """# Budgets and policy of every simulated site in this folder, as the first run needs them.
# Raise epsilon, or add data sets and modes, to allow more; what was spent stays spent.
"""


def simulated_site(run_config: dict, index: int) -> Site:
    """The site of this process for a Flower run-config and a partition."""
    return _simulated_sites(json.dumps(run_config, sort_keys=True)).site(index)


@lru_cache(maxsize=1)
def _simulated_sites(run_config: str) -> SimulatedSites:
    return SimulatedSites(RunConfig.from_flat(json.loads(run_config)))
