"""What the sites' held-out records say of a model: counts, with noise under privacy, and what follows from them.

Of each measure the sites' sum is a pair: what records reach, and what they miss. The mean is the first over both, and
its interval is the set of means that the pair does not speak against (Fieller 1954), with the noise of both and the
draw of the records in the variance; without noise it is Wilson's (1927).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import numpy as np

from ..common.config.run import RunConfig
from ..common.counted import by_measure, classes_of, measures_of, numbers_of
from ..common.errors import WireError
from ..common.privacy.mechanism import PrivacyPlan
from ..common.tasks import Counted, Main
from .checkpoint import Counts

_DEVIATIONS = 1.959963984540054
"""of a normal law, within which 95 % of it lie"""
RECALL = Main("macro recall", "macro_recall")
Ends = tuple[float, float, float]
"""low end of an interval, value, high end"""


class SiteFigure(TypedDict):
    """A mean over the sites' held-out records, with a 95 % interval for their draw and for the noise."""

    name: str
    key: str
    higher: bool
    value: float | None
    """None, like the interval: not measurable, the noise is as large as all that was counted"""
    low: float | None
    high: float | None
    records: float
    """or persons: an estimate under privacy"""
    noise: float
    """standard deviation of the noise in that, in records"""


class FigureRow(TypedDict):
    """An evaluation in the row of the round that began with it."""

    after: int
    """rounds behind the model"""
    name: str
    value: float | None
    low: float | None
    high: float | None


@dataclass
class CountsOfRound:
    """What comes of one evaluation."""

    config: RunConfig
    plan: PrivacyPlan | None
    sites: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._total, self._variance = np.zeros(numbers_of(self.config)), 0.0
        self._own = 0.0 if self.plan is None else self.plan.count_variance

    def add(self, site: str, counts: np.ndarray | None) -> None:
        """One site's own. Raises WireError for none, or another number of them."""
        if counts is None or counts.shape != self._total.shape:
            came = "nothing" if counts is None else f"{counts.size} numbers"
            raise WireError(f"of held-out records {came} received, {self._total.size} numbers asked")
        self.summed(self._total + counts, self._variance + self._own, [*self.sites, site])

    def summed(self, total: np.ndarray, variance: float, sites: list[str]) -> None:
        """All that was counted, from a secure sum. variance: of the noise in each number."""
        self._total, self._variance, self.sites = total, variance, sites

    def finished(self, number: int, why: str, *, final: bool) -> Counts:
        """number: rounds behind the model. why: there may be nothing."""
        if not self.sites:
            return Counts(number, final, None, 0.0, [], why or "no site answered with counts")
        return Counts(number, final, self._total.tolist(), self._variance, sorted(self.sites))


class SiteMeasured(TypedDict):
    """One evaluation at the sites."""

    round: int
    """rounds behind the model"""
    sites: int
    """that counted"""
    figures: list[SiteFigure]
    """the task's own first; of classes apart also their mean recall, and each one's"""
    why: NotRequired[str | None]
    """nothing came of it"""


class AtSites(TypedDict):
    """What the sites' held-out records say."""

    holdout: float
    unit: str
    """what is held out: records or persons"""
    evaluations: int
    """that were declared"""
    epsilon: float | None
    """of a held-out record; None: nothing was promised"""
    rounds: list[SiteMeasured]
    """before the last"""
    after: SiteFigure
    """of the model that the run leaves"""
    last: SiteMeasured


def at_sites(
    config: RunConfig, plan: PrivacyPlan | None, found: list[Counts], asked: Mapping[str, int]
) -> AtSites | None:
    """For report.json; None where nobody asked. asked: evaluations by site."""
    if not config.evaluation.sites:
        return None
    lost = Counts(config.run.rounds, True, None, 0.0, [], "it was not asked for")
    last = _measured(config, next((one for one in found if one.final), lost))
    return {
        "holdout": config.evaluation.holdout,
        "unit": "records" if config.data.person is None else "persons",
        "evaluations": config.evaluations,
        "epsilon": None if plan is None else plan.epsilon(0, max(asked.values(), default=0)),
        "rounds": [_measured(config, one) for one in found if not one.final],
        "after": last["figures"][0],
        "last": last,
    }


def _measured(config: RunConfig, found: Counts) -> SiteMeasured:
    facts: SiteMeasured = {"round": found.round, "sites": len(found.sites), "figures": figures(config, found)}
    if found.why:
        facts["why"] = found.why
    return facts


def figures(config: RunConfig, found: Counts) -> list[SiteFigure]:
    """What was counted, the task's own first; with classes apart also their mean recall, and each one's."""
    measures = measures_of(config)
    if found.counts is None:
        return [_figure(one.measure, None, 0.0, 0.0) for one in measures]
    pairs, variance = by_measure(config, np.array(found.counts)), found.variance * len(measures)  # (K, m, 2)
    told = [_counted(one, pairs[:, i].sum(0), len(pairs) * variance) for i, one in enumerate(measures)]
    if classes_of(config) > 1:
        each = [
            _counted(Counted(Main(f"recall of {name}", f"recall: {name}")), pair, variance)
            for name, pair in zip(config.data.labels or [], pairs[:, 0], strict=True)
        ]
        told += [_mean(RECALL, each), *each]
    return told


def figure_row(config: RunConfig, found: Counts) -> FigureRow:
    main = figures(config, found)[0]
    return {
        "after": found.round,
        "name": main["name"],
        "value": main["value"],
        "low": main["low"],
        "high": main["high"],
    }


def _counted(counted: Counted, pair: np.ndarray, variance: float) -> SiteFigure:
    """pair: what records reach of the measure, and what they miss. variance: of the noise in each."""
    reached, missed = map(float, pair)
    ends = interval(reached, missed, variance)
    scaled = None if ends is None else (counted.most * ends[0], counted.most * ends[1], counted.most * ends[2])
    return _figure(counted.measure, scaled, reached + missed, math.sqrt(2 * variance))


def _figure(measure: Main, ends: Ends | None, records: float, noise: float) -> SiteFigure:
    low, value, high = (None, None, None) if ends is None else ends
    return {
        "name": measure.name,
        "key": measure.key,
        "higher": measure.higher,
        "value": value,
        "low": low,
        "high": high,
        "records": records,
        "noise": noise,
    }


def interval(reached: float, missed: float, variance: float) -> Ends | None:
    """Low end, value and high end of a share p in 0 … 1; None where the noise hides how many were counted.

    reached, missed: sums of x and of 1 − x over records, each with noise of this variance. Under p the number
    (1 − p)·reached − p·missed has mean 0 and a variance of at most n·p·(1 − p) + σ²·(p² + (1 − p)²): values between 0
    and 1 have no larger variance than right and wrong. The interval are the p at which it is within 1.96 deviations.
    """
    n, c = reached + missed, _DEVIATIONS**2
    if n <= 0:
        return None
    a = n * n + c * n - 2 * c * variance
    b = -2 * reached * n - c * n + 2 * c * variance
    rest = reached * reached - c * variance
    inside = b * b - 4 * a * rest
    if a <= 0 or inside < 0 or n * n <= 2 * c * variance:
        return None
    root = math.sqrt(inside)
    low, high = ((-b + sign * root) / (2 * a) for sign in (-1, 1))
    value = _share(reached / n)
    return min(value, _share(low)), value, max(value, _share(high))  # rounding must not put it outside


def _share(value: float) -> float:
    return min(1.0, max(0.0, float(value)))


def _mean(measure: Main, each: list[SiteFigure]) -> SiteFigure:
    """The mean of independent shares, not measurable where one of them is not: the ends of their intervals are added up
    as deviations (Zou and Donner 2008)."""
    ends = [(one["low"], one["value"], one["high"]) for one in each]
    records, noise = sum(one["records"] for one in each), math.hypot(*(one["noise"] for one in each))
    if any(value is None for _, value, _ in ends):
        return _figure(measure, None, records, noise)
    low, value, high = np.array(ends, dtype=np.float64).T  # (K,) each
    down, up = (float(np.linalg.norm(value - end)) / len(each) for end in (low, high))
    mean = float(value.mean())
    return _figure(measure, (_share(mean - down), mean, _share(mean + up)), records, noise)
