"""A data site: its policy, its ledger, and what one run may take from it.

`Site.account` is the one way to the data: the policy may refuse the run, the ledger charges it, and only then is a row
touched.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from ..common.config.run import DatasetSection, RunConfig, SiteConfig
from ..common.config.tables import CLIP_RANGE
from ..common.errors import PolicyError, PrivacyError, RecordsError, SecureSumError
from ..common.ledger.chain import Head
from ..common.ledger.ledger import Ledger, Limit, Request, Reservation
from ..common.modes import mode_of
from ..common.privacy import audit
from ..common.privacy.mechanism import PrivacyPlan
from ..common.privacy.plan import declared_steps, step_of
from ..common.secagg.params import Parameters


@dataclass(frozen=True)
class SiteAccount:
    """What one run has reserved at one site; `plan` is None in mode `none`."""

    site: "Site"
    plan: PrivacyPlan | None
    reservation: Reservation
    stale: bool = False
    """the records are others by now than those that the run was charged for: it is answered with noise alone"""

    @property
    def steps(self) -> int:
        """Steps taken so far, failed ones included."""
        return self.reservation.charge.used

    def epsilon(self) -> float | None:
        """ε of the steps taken so far."""
        return None if self.plan is None else self.plan.epsilon(self.steps, self.evaluations)

    @property
    def evaluations(self) -> int:
        """Evaluations taken so far, failed ones included."""
        return self.reservation.charge.evaluated

    def taking(self, steps: int, evaluations: int = 0) -> AbstractContextManager[int]:
        """Within, data may be touched; gives the steps taken before. They are charged however it ends.

        Raises BudgetError, with nothing touched, when the run has not reserved as many.
        """
        if self.reservation.request.held_out is None:  # without privacy nothing is counted against a budget
            evaluations = 0
        return self.reservation.taking(steps, evaluations)

    def catch_up(self, steps: int, evaluations: int) -> None:
        """A ledger in memory forgets with its process: what a server has asked since the run began counts as taken."""
        missing = max(0, steps - self.steps), max(0, evaluations - self.evaluations)
        if any(missing) and not self.site.ledger.durable:
            with self.taking(*missing):
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
        """The table of the run's data set; its budget may be another's, see `SiteConfig.budget`.

        Needs no plan and no data. Raises PolicyError: what came, what is allowed.
        """
        policy, dataset = self.config.policy, run.data.name
        self._require(dataset in self.config.datasets, "data set", dataset, "what its site.toml names")
        mode, control = released_mode(run), " (audit.control)" if run.audit.control else ""
        self._require(mode in policy.modes, "mode", f"{mode}{control}", ", ".join(policy.modes))
        for what, value, allowed in (
            ("task", run.model.task, policy.tasks),
            ("backbone", run.model.backbone, policy.backbones),
            ("backbone", run.model.image_backbone, policy.backbones),
            *(("backbone", name, policy.backbones) for name in run.distill.backbones),
        ):
            told = "what its policy lists" if what == "backbone" else ", ".join(allowed or ())  # may be folders
            self._require(value is None or allowed is None or value in allowed, what, value, told)
        if run.private:
            unit = mode_of(run).ledger_unit(run)
            self._require(unit in policy.units, "unit of privacy", unit, ", ".join(policy.units))
        table = self.config.datasets[dataset]
        if run.data.person is not None and table.source is not None and table.person is None:
            raise PolicyError(
                f"site {self.name}: data set '{dataset}' names no column of persons, and the run's unit is the person; "
                f'set person = "…" in [datasets.{dataset}] of site.toml'
            )
        if run.data.text_pair is not None and table.source is not None and table.text_pair is None:
            raise PolicyError(
                f"site {self.name}: data set '{dataset}' names no column of second texts, and the run reads two a "
                f'record; set text_pair = "…" in [datasets.{dataset}] of site.toml'
            )
        self._admit_conversations(run, table)
        self._require(policy.canaries or not run.audit.planted, "audit canaries", run.audit.planted, "none")
        if run.secure:
            self._admit_sum(run)
        elif trusts_server(run) and not policy.trust_server:
            raise PolicyError(
                f"site {self.name}: its policy refuses the run: mode {mode} without secure sums shows the server a "
                "clipped update before any noise; allowed: with secure sums, or policy.trust_server = true"
            )
        return self.config.datasets[dataset]

    def _admit_conversations(self, run: RunConfig, table: DatasetSection) -> None:
        """A run reads conversations where the site has some, by a template that the site lets it bring."""
        asked, held = run.data.messages is not None, table.messages is not None
        if run.model.task == "causal-lm" and table.source is not None and asked != held:
            names = "conversations (data.messages)", "texts"
            raise PolicyError(
                f"site {self.name}: the run reads {names[not asked]}, and data set '{run.data.name}' holds "
                f'{names[not held]}; set messages = "…" in [datasets.{run.data.name}] of site.toml, or name another '
                "data set"
            )
        brought = run.data.template is not None
        self._require(self.config.policy.templates or not brought, "data.template", "a text", "the tokenizer's own")

    def _admit_sum(self, run: RunConfig) -> None:
        """n, t and c decide how the noise is shared out. The server declares them; this site's policy and peers hold.

        With peers listed, no sum is set up that would be unsafe among all of them: t > (n + c)/2 for n of this site's
        own, or two disjoint sets of survivors could be opened, or one colluder left with too little noise.
        """
        policy, c, groups = self.config.policy, run.privacy.colluders, run.server.groups or 1
        self._require(c >= policy.min_colluders, "colluders", c, f"{policy.min_colluders} and above")
        most = len(self.peers)
        self._require(not most or run.clients <= most, "sites", run.clients, f"at most {most}, as [peers] lists")
        declared = run.secure_parameters
        n, t = declared.sites, declared.survivors
        self._require(n >= policy.min_sites, "sites in a sum", n, f"{policy.min_sites} and above")
        self._require(t >= policy.min_survivors, "survivors", t, f"{policy.min_survivors} and above")
        if most:
            try:
                Parameters(most // groups, t, c)
            except SecureSumError as error:
                raise PolicyError(
                    f"site {self.name}: its policy refuses the run: {n} sites with {t} survivors and {c} colluders "
                    f"declared, {most} listed in [peers]: {error}"
                ) from None

    def _admit_plan(self, run: RunConfig, plan: PrivacyPlan) -> None:
        policy, z = self.config.policy, plan.noise_multiplier
        least, most = policy.min_noise_multiplier, policy.max_epsilon_per_run
        self._require(least is None or z >= least, "noise multiplier", f"{z:g}", f"{least} and above")
        self._admit_norm(plan.clip)
        _, budget = self.config.budget(run.data.name)
        epsilon = replace(plan, delta=budget.delta).epsilon()
        allowed = f"at most {most} (δ = {budget.delta:g})"
        self._require(most is None or epsilon <= most, "ε for one run", f"{epsilon:.4g}", allowed)

    def admit_clip(self, run: RunConfig, plan: PrivacyPlan | None, clip: float | None) -> None:
        """Checks the clip norm that a task carries, which only a run with `privacy.clip_quantile` may move.

        plan: None in mode `none`. clip: None where the task carries none. Raises PolicyError.
        """
        if clip is None:
            return
        least, most = CLIP_RANGE
        self._require(least <= clip <= most, "a task's clip norm", clip, "1e-12 to 1e12")
        fixed = None if plan is None or run.privacy.clip_quantile is not None else plan.clip
        declared = f"{fixed}, as the run declares: privacy.clip_quantile is not set"
        self._require(fixed is None or clip == fixed, "a task's clip norm", clip, declared)
        self._admit_norm(clip)

    def _admit_norm(self, clip: float) -> None:
        lowest, highest = self.config.policy.min_clip, self.config.policy.max_clip
        self._require(lowest is None or clip >= lowest, "clip norm", f"{clip:g}", f"{lowest} and above")
        self._require(highest is None or clip <= highest, "clip norm", f"{clip:g}", f"{highest} and below")

    def _require(self, condition: bool, what: str, received: object, allowed: str) -> None:
        if not condition:
            raise PolicyError(f"site {self.name}: its policy refuses the run: {what} {received}; allowed: {allowed}")

    def account(self, run: RunConfig, plan: PrivacyPlan | None, content: bytes) -> SiteAccount:
        """Charges the whole run, or finds what it reserved before. content: digest of the records, its first 32 bytes
        of whose they are alone: what is charged under one name is refused under another.

        A private run whose records have changed since goes on, and `stale` says so: a refusal would tell the server
        that a record came or went. Raises PolicyError or BudgetError, charging nothing.
        """
        self.admit(run)
        if plan is not None:
            self._admit_plan(run, plan)
        name, budget = self.config.budget(run.data.name)
        derive = self.ledger.key.derive
        request = Request(
            run=run_id(run),
            dataset=name,
            content=(derive("content", content[:32]) + derive("content", content)).hex(),
            unit=mode_of(run).ledger_unit(run),
            step=step_of(run, plan),
            steps=declared_steps(run),
            delta=run.privacy.delta,
            model=run.model.backbone,
            configuration=run.digest(),
            commitment=audit.commitment(self.coin_seed(run)) if run.audit.planted else None,
            held_out=None if plan is None else plan.evaluation,
            evaluations=0 if plan is None else run.evaluations,
        )
        limit = Limit(budget.epsilon, budget.delta, budget.order)
        same = self.config.aliases(name)
        try:
            return SiteAccount(self, plan, self.ledger.reserve(request, limit, same))
        except RecordsError:
            held = self.ledger.content_of(name, request.run)
            if plan is None or held is None:
                raise
            reserved = self.ledger.reserve(replace(request, content=held), limit, same)
            return SiteAccount(self, plan, reserved, stale=True)

    def coin_seed(self, run: RunConfig) -> bytes:
        """What decides an audit's canaries: only the holder of the site's key can know it before it is revealed."""
        return self.ledger.key.derive("audit coins", run_id(run).encode())

    def head(self) -> Head | None:
        return self.ledger.head() if self.ledger.durable else None


def run_id(run: RunConfig) -> str:
    """Raises PrivacyError for a run without one."""
    if run.run.id is None:
        raise PrivacyError("run.id: nothing received; a site charges a run by its name")
    return run.run.id


def released_mode(run: RunConfig) -> str:
    """The mode as a policy sees it: an audit's control run declares noise and adds none."""
    return "none" if run.audit.control else run.privacy.mode


def trusts_server(run: RunConfig) -> bool:
    """Whether updates leave the sites before the noise, which the server adds to their sum."""
    return not run.audit.control and not run.secure and mode_of(run).summed(run)
