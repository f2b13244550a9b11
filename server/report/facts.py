"""What report.json holds, as types: what writes it, draws it and renders it agrees on these names.

They are a contract (docs/reference/run-folder.md). What other commands add (audit, robustness, …) is theirs.
"""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from ..at_sites import AtSites


class Spent(TypedDict):
    """One site of a private run."""

    site: str
    rounds: int
    """that counted"""
    steps: int
    """that were charged"""
    epsilon_spent: float
    epsilon_planned: float
    delta: float


class Taken(TypedDict):
    """One site of a run without privacy."""

    site: str
    rounds: int
    steps: int


class CrossCheck(TypedDict):
    what: str
    epsilon: float | None
    """None: that accountant cannot compute it"""


class Privacy(TypedDict):
    """What was promised and what was spent."""

    mode: Literal["local", "distributed", "client"]
    unit: str
    adversary: str
    sampling: str
    noise: str
    secure_aggregation: bool
    delta: float
    epsilon_planned: float
    epsilon_spent: float
    """of the site that spent most"""
    noise_multiplier: float
    sampling_rate: float
    clip: float
    steps: int
    epsilon_by_round: list[float]
    """before the first round, and after each that is declared"""
    composition: str
    accountant: str
    cross_check: CrossCheck
    most_found: NotRequired[dict[str, float] | None]
    """false positive rate → the largest true positive rate of any membership test, by the whole curve of the noise"""
    mechanism: str
    statement: str
    sites: list[Spent]


class NoPrivacy(TypedDict):
    """The same where nothing was promised; what other runs promise is None here."""

    mode: Literal["none"]
    unit: None
    adversary: None
    sampling: None
    delta: None
    epsilon_planned: None
    epsilon_spent: None
    noise_multiplier: None
    steps: int
    statement: str
    sites: list[Taken]


class Model(TypedDict):
    backbone: str
    task: str
    pooling: str
    trainable: int
    total: int
    labels: list[str]
    init_from: dict[str, Any] | None


class Partition(TypedDict):
    """Of a simulation, which knows it."""

    labels: list[str]
    counts: list[list[int]]
    """client × label"""


class Interval(TypedDict):
    value: float
    low: float
    high: float


class MainFigure(Interval):
    """What the task judges a model by, with a 95 % interval."""

    name: str
    """in words"""
    key: str
    """in the metrics beside it"""
    higher: bool
    """whether more of it is better"""
    records: int


class Metrics(TypedDict):
    """And every other metric by its name; of a language model that answers prompts also `generation` and `answers`,
    metrics in parts."""

    main: MainFigure


class Compared(TypedDict):
    """What something else reaches on the same test records."""

    value: float
    """of several sites the mean"""
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    sites: NotRequired[list[float] | None]
    """in place of an interval: each site's"""
    how: str
    gain: Interval
    """the run's own figure less this one"""


class Baselines(TypedDict):
    """None: not measured."""

    majority: Compared | None
    zero_shot: Compared | None
    alone: Compared | None
    pooled: Compared | None
    pooled_private: Compared | None
    not_measured: dict[str, str]
    """why"""


class Evaluated(TypedDict):
    """Beside the public test set."""

    sites: AtSites


class Report(TypedDict):
    schema: int
    name: str
    finished: str
    before: Metrics
    after: Metrics
    privacy: Privacy | NoPrivacy
    rounds: list[dict[str, Any]]
    """`RoundResult`, and the metrics of the evaluation after it"""
    best_round: int | None
    model: Model
    baselines: Baselines
    confusion: dict[str, list[list[int]] | None]
    """before, after"""
    generations: list[dict[str, str]]
    """prompt, reference, before, after: what a language model wrote; empty where none was asked"""
    partition: Partition | None
    environment: dict[str, Any]
    config: dict[str, Any]
    audit: dict[str, Any] | None
    """this and the following: None where nobody asked for it"""
    calibration: dict[str, Any] | None
    """the temperature that fits the validation set, and the calibration error on the test set with it"""
    evaluation: Evaluated | None
    attack: dict[str, Any] | None
    distillation: dict[str, Any] | None
    robustness: dict[str, Any] | None
    personal: dict[str, Any] | None
    compression: dict[str, Any] | None
    explanation: dict[str, Any] | None
    ledger: list[dict[str, Any]] | None
    leakage: dict[str, Any] | None


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers of `before` or `after` by name, those of a part as "part: name"."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if name == "main":  # one of the others once more
            continue
        inner = {f"{name}: {key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: one for key, one in inner.items() if isinstance(one, float)}
    return found


def misfit(value: Any, kind: Any, name: str = "") -> str | None:
    """Where a value, read from a file, is not of a type of this module, in words; None: nowhere. A key whose value may
    be None may be absent."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        found = [misfit(value, one, name) for one in args]
        return None if None in found else found[0]
    if is_typeddict(kind) and isinstance(value, dict):
        parts = ((key, value.get(key), one) for key, one in get_type_hints(kind).items())
        inner = (misfit(part, one, f"{name}.{key}".removeprefix(".")) for key, part, one in parts)
        return next((found for found in inner if found is not None), None)
    if origin is dict and isinstance(value, dict):
        return next((found for key, one in value.items() if (found := misfit(one, args[1], f"{name}.{key}"))), None)
    if origin is list and isinstance(value, list):
        return next((found for one in value if (found := misfit(one, args[0], name))), None)
    if kind is Any or (origin is Literal and value in args):
        return None
    kinds = {float: (int, float), None: NoneType}.get(kind, kind)
    plain = origin is None and not is_typeddict(kind) and isinstance(value, kinds)
    return None if plain and isinstance(value, bool) <= (kind is bool) else f"'{name}' is not as confide wrote it"
