"""A run as a file: TOML → `RunConfig` → the flat run-config that Flower carries, and back; and a site's own file.

`tables` has the tables and the documentation of their keys, `rules` the combinations of them that are refused;
`docs/reference/configuration.md` is made of both by `reference`.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..errors import ConfigError
from ..modes import mode_of
from ..secagg.params import Parameters
from .byzantine import default_byzantine, most_byzantine
from .probes import AttackSection, AuditSection, BaselinesSection, EvaluationSection
from .rules import check_combinations
from .section import PathText, Positive, PositiveFloat, Section, assign, override, read_toml
from .tables import (
    DataSection,
    DistillSection,
    EngineSection,
    ModelSection,
    PrivacySection,
    RunSection,
    ServerSection,
    TrainingSection,
)

MANY = ("sweep", "active", "compare")
"""tables of recipes of many runs; each is a file of simulations/"""

_MOMENTUM = 0.8

_JSON = "json:"
"""marks a value of the flat run-config that is no scalar"""


class RunConfig(Section, frozen=True):
    """One run, whole; every key: docs/reference/configuration.md."""

    run: RunSection = RunSection()
    model: ModelSection
    data: DataSection
    privacy: PrivacySection = PrivacySection()
    training: TrainingSection = TrainingSection()
    server: ServerSection = ServerSection()
    engine: EngineSection = EngineSection()
    distill: DistillSection = DistillSection()
    evaluation: EvaluationSection = EvaluationSection()
    baselines: BaselinesSection = BaselinesSection()
    audit: AuditSection = AuditSection()
    attack: AttackSection = AttackSection()

    @property
    def private(self) -> bool:
        return self.privacy.mode != "none"

    @property
    def responds(self) -> bool:
        """Whether a record is a prompt and what should follow it."""
        return self.model.task == "causal-lm" and bool(self.data.response or self.data.messages)

    @property
    def augments(self) -> bool:
        """Whether training sees copies of records."""
        made = self.data.augmentation
        return self.training.augmentation is not None or made.of_texts or made.of_images

    @property
    def server_steps(self) -> bool:
        """Whether sites send mean gradients and the server holds the optimizer."""
        averages = self.server.aggregation in ("fedavg", "ffa") or self.server.robust
        return mode_of(self).BY_STEP and self.training.local_steps == 1 and averages

    @property
    def canary_kind(self) -> str:
        """`audit.kind`, with its default."""
        return self.audit.kind or ("random" if self.model.task == "causal-lm" else "words")

    @property
    def output(self) -> Path:
        return self.run.folder

    @property
    def clients(self) -> int:
        """Number of simulated sites; known once the data of a `natural` partition has been read."""
        if self.data.partition.clients is None:
            raise ConfigError("data.partition.clients: not set; a simulation needs the number of sites")
        return self.data.partition.clients

    @property
    def byzantine(self) -> int:
        """f: Byzantine sites of a round that a robust aggregation is to tolerate."""
        if self.server.byzantine is not None:
            return self.server.byzantine
        return default_byzantine(self.server.aggregation, self.compared)

    @property
    def compared(self) -> int:
        """n: updates, or sums of groups, that a robust aggregation compares in a round."""
        return self.server.groups or self.server.cohort or self.clients

    @property
    def most_byzantine(self) -> int:
        """The largest f that the aggregation tolerates in a round."""
        return most_byzantine(self.server.aggregation, self.compared)

    @property
    def momentum(self) -> float:
        """`server.momentum`, with its default."""
        return (_MOMENTUM if self.server.momentum is None else self.server.momentum) if self.server.robust else 0.0

    @property
    def steps_per_round(self) -> int:
        """Releases that a round charges at a site."""
        return self.training.local_steps if mode_of(self).BY_STEP else 1

    def for_teachers(self, backbone: str | None) -> Self:
        """The run with the model that a teacher is. backbone: of its site; None: the student's."""
        update = {"backbone": backbone or self.model.backbone, "train": self.distill.train}
        return self.model_copy(update={"model": self.model.model_copy(update=update)})

    @property
    def evaluations(self) -> int:
        """How often held-out records are counted over the whole run."""
        asked = self.evaluation
        if not asked.sites:
            return 0
        return 1 + (0 if asked.every is None else -(-self.run.rounds // asked.every))

    def evaluated_in(self, number: int) -> bool:
        """Whether round `number` begins with counting held-out records; the one after the last does nothing else."""
        asked = self.evaluation
        if not asked.sites:
            return False
        return number > self.run.rounds or (asked.every is not None and (number - 1) % asked.every == 0)

    def trains_in(self, number: int) -> bool:
        """Whether records are trained on in round `number`: in all but the one after the last."""
        return number <= self.run.rounds or not self.evaluation.sites

    @property
    def last_round(self) -> int:
        """The number of the last round that sites are asked for, which trains nothing where it only evaluates."""
        return self.run.rounds + self.evaluation.sites

    @property
    def trained_share(self) -> float:
        """Of all records or persons, those that are not held out."""
        return 1 - self.evaluation.holdout if self.evaluation.sites else 1.0

    @property
    def secure(self) -> bool:
        """Whether the server sees sums only."""
        asked = self.server.secure_aggregation
        return mode_of(self).summed(self) if asked is None else asked

    @property
    def sites_per_sum(self) -> int:
        """n: sites of one secure sum, over all sites or over a group's."""
        return self.clients // (self.server.groups or 1)

    @property
    def survivors_per_sum(self) -> int:
        """t: inputs without which a secure sum is not opened; `server.min_survivors`, with its default."""
        n, c = self.sites_per_sum, self.privacy.colluders
        may_vanish = max(1, n // 10) if n >= 4 else 0
        least = max(n - may_vanish, min(n, self.server.min_clients), (n + c) // 2 + 1)
        return self.server.min_survivors or min(least, n)

    @property
    def expected_rows(self) -> float | None:
        """Rows that a step is expected to read at all sites together, from the declaration; None without one. Of a
        person two, since many have few: it decides on the time that batches waste, and on nothing else."""
        privacy = self.privacy
        declared = privacy.declared_examples or (privacy.declared_persons or 0) * min(2, self.data.person_rows)
        return privacy.sampling_rate * declared if privacy.sampling_rate is not None and declared else None

    @property
    def secure_parameters(self) -> Parameters:
        """(n, t, c) of a secure sum. Raises SecureSumError for numbers that cannot be."""
        return Parameters(self.sites_per_sum, self.survivors_per_sum, self.privacy.colluders)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        check_combinations(self)
        return self

    def digest(self) -> str:
        """SHA-256 of what decides the result; its folder, its id and its engine do not count."""
        content = self.model_dump(mode="json", exclude={"engine": True, "run": {"output", "id"}})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_flat(self) -> dict[str, str | int | float | bool]:
        """The run-config of a Flower app: dotted keys, scalars; lists and tables as JSON text; omitted means unset."""
        flat: dict[str, str | int | float | bool] = {}
        for section, fields in self.model_dump(mode="json").items():
            _flatten(f"{section}.", fields, flat)
        return flat

    @classmethod
    def from_flat(cls, flat: dict[str, Any]) -> Self:
        """Inverse of `to_flat`. Raises ConfigError as `parse` does."""
        nested: dict[str, Any] = {}
        for key, value in flat.items():
            is_json = isinstance(value, str) and value.startswith(_JSON)
            assign(nested, key, json.loads(value.removeprefix(_JSON)) if is_json else value)
        return cls.parse(nested, "run-config")


Name = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
"""letters, digits, '.', '_' and '-'"""


class DatasetSection(Section, frozen=True):
    """A data set's budget; it belongs to the name, whatever rows or runs come and go."""

    source: PathText | None = None
    """deployment: csv, tsv, jsonl or parquet file (relative to site.toml), or SQL url#table-or-query; read-only"""
    text: str = "text"
    """deployment: the column of the texts; it and the next eight as in a run's [data]"""
    label: str = "label"
    """deployment: the column of the labels"""
    text_pair: str | None = None
    """deployment: the column of the second texts; runs on two texts a record are refused without it"""
    image: str = "image"
    """deployment: the column of the images"""
    prompt: str | None = None
    """deployment: the column of the prompts"""
    response: str | None = None
    """deployment: the column of the responses"""
    messages: str | None = None
    """deployment: the column of the conversations; runs on conversations are refused without it, and runs of
    `causal-lm` on texts with it"""
    chosen: str | None = None
    """deployment: the column of the better of two answers"""
    rejected: str | None = None
    """deployment: the column of the other"""
    person: str | None = None
    """deployment: the column that names whose a row is; omitted: runs whose unit is the person are refused. Rows of
    nobody contribute nothing to any run"""
    teacher: str | None = None
    """backbone of the teachers that are trained on it in runs that distil; omitted: the student's"""

    epsilon: PositiveFloat | None = None
    """limit over all runs together; omitted: none, which alone admits runs without noise"""
    delta: Annotated[float, Field(ge=1e-13, lt=1)] = 1e-5
    """δ of the data set, limited or not; a private run may not ask for a larger one"""
    order: Annotated[float, Field(gt=1, le=512)] | None = None
    """α* of the Rényi filter; omitted: what suits the first private run's declaration; fixed from that run on, limited
    or not"""
    same_as: str | None = None
    """another data set of this file, which holds the same records: its budget (epsilon, delta, order) is this one's,
    and the ledger knows both by its name"""


class PolicySection(Section, frozen=True):
    """What a site lets a run ask for."""

    modes: tuple[Literal["none", "local", "distributed", "client"], ...] = ("local", "distributed", "client")
    """an audit's control run (audit.control) releases without noise and counts as `none`"""
    units: tuple[Literal["example", "person", "client"], ...] = ("example", "person", "client")
    """whom the ε of a private run must be for"""
    tasks: tuple[str, ...] | None = None
    """omitted: all"""
    backbones: tuple[PathText, ...] | None = None
    """hub ids or folders; omitted: all"""
    max_epsilon_per_run: PositiveFloat | None = None
    """at the data set's delta, whatever δ the run declares"""
    min_noise_multiplier: PositiveFloat | None = None
    """standard deviation of the noise over the clip norm"""
    min_clip: PositiveFloat | None = None
    """of the declared clip norm, and of the one that a task carries"""
    max_clip: PositiveFloat | None = None
    """likewise"""
    min_colluders: Annotated[int, Field(ge=0)] = 1
    """secure sums: sites that may work for the server, against which the noise must still hold"""
    min_sites: Annotated[int, Field(ge=2)] = 2
    """secure sums: sites in a sum, of a group where there are groups"""
    min_survivors: Annotated[int, Field(ge=2)] = 2
    """secure sums: inputs without which nothing is opened"""
    metrics: bool = False
    """whether a training loss may leave, in mode `none`"""
    canaries: bool = False
    """whether an audit may put canaries among the records"""
    templates: bool = False
    """whether a run may bring a chat template of its own (data.template), a small program that runs on each record:
    sandboxed, but how long it takes is the run's to decide"""
    trust_server: bool = False
    """whether, in mode `client` without secure sums, a clipped update may leave without noise, for the server to
    add it"""
    approval: bool = False
    """whether a run needs `confide site approve` by hand before any data is read"""


PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""Ed25519, hexadecimal: a site's identity"""


class SiteSection(Section, frozen=True):
    """Deployment: who the site is and where its one outgoing connection goes."""

    name: Name
    """the site's name in the federation: letters, digits, '.', '_' and '-'"""
    server: Annotated[str, Field(pattern=r"^[^/\s]+:\d+$")]
    """host:port of the federation's public address"""
    poll: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    """seconds between two questions for work"""
    deadline: PositiveFloat = 3600.0
    """seconds after which the worker is held to be stuck on a message, and restarted"""
    max_message: Annotated[int, Field(ge=1024)] = 256 * 2**20
    """bytes of a message, either way"""
    max_memory: Annotated[int, Field(ge=2**28)] | None = None
    """bytes of address space of the worker; omitted: no cap of its own (systemd and containers set theirs)"""
    max_rounds: Positive = 100_000
    """rounds that a run may declare"""


class SiteConfig(Section, frozen=True):
    """site.toml: the data sets of a site with their budgets, and the policy that may refuse a run."""

    OVERRIDES = ""
    site: SiteSection | None = None
    """deployment only"""
    backbones: dict[str, PathText] = Field(default_factory=dict)
    """deployment: a backbone's name in runs → the folder that holds it here (relative to site.toml)"""
    datasets: dict[str, DatasetSection]
    policy: PolicySection = PolicySection()
    peers: dict[str, PublicKey] = Field(default_factory=dict)
    """the sites of the federation: name → public key. Secure sums are made with these and with nobody else"""

    @model_validator(mode="after")
    def _check_same(self) -> Self:
        for name, dataset in self.datasets.items():
            if dataset.same_as is not None:
                _check_same_as(name, dataset, self.datasets)
        return self

    def budget(self, name: str) -> tuple[str, DatasetSection]:
        """The data set that a run on `name` is charged to, by its name in the ledger and its table: `same_as` is
        followed. Raises KeyError for a data set that is not listed."""
        name = self.datasets[name].same_as or name
        return name, self.datasets[name]

    def aliases(self, name: str) -> list[str]:
        """Names of other tables that are the same as this one; a ledger may have charged them before they were."""
        return [other for other, dataset in self.datasets.items() if dataset.same_as == name]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ConfigError."""
        return cls.parse(read_toml(path, "a site needs its limits and its policy"), str(path))


def _check_same_as(name: str, dataset: DatasetSection, datasets: dict[str, DatasetSection]) -> None:
    """Raises ValueError with one line: no such data set, a chain of names, or a budget beside the other's."""
    where, other = f"datasets.{name}.same_as: received '{dataset.same_as}'", datasets.get(str(dataset.same_as))
    if other is None or other is dataset:
        allowed = ", ".join(key for key in datasets if key != name) or "none, there is no other"
        raise ValueError(f"{where}; allowed: another data set of this file: {allowed}; correct the name, or remove it")
    if other.same_as is not None:
        raise ValueError(f"{where}, which is the same as '{other.same_as}' itself; name '{other.same_as}' here, too")
    for key in ("epsilon", "delta", "order"):
        own = getattr(dataset, key)
        if own not in (DatasetSection.model_fields[key].default, getattr(other, key)):
            raise ValueError(
                f"datasets.{name}.{key}: {own:g} received beside same_as; the budget is that of '{dataset.same_as}'; "
                "set it there, and remove it here"
            )


def load(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Reads a TOML file and applies `key=value` overrides. Raises ConfigError."""
    content = load_content(path, overrides)
    for table in MANY:  # `confide simulate` plays it; everybody else means the run that it varies
        content.pop(table, None)
    return RunConfig.parse(content, str(path))


def load_content(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The nested content of a file of a run, overrides applied, before it is checked. Raises ConfigError."""
    content = read_toml(path, "give a path or the name of a shipped recipe")
    override(content, overrides or [])
    return content


def _flatten(prefix: str, fields: dict[str, Any], flat: dict[str, Any]) -> None:
    for key, value in fields.items():
        if value is None:
            continue
        if isinstance(value, dict) and key != "options":
            _flatten(f"{prefix}{key}.", value, flat)
        else:
            as_json = isinstance(value, list | dict) or (isinstance(value, str) and value.startswith(_JSON))
            flat[prefix + key] = _JSON + json.dumps(value) if as_json else value
