"""Intervals of what sites count: how often they hold the truth, with and without noise."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from confide.server.at_sites import figures, interval
from confide.server.checkpoint import Counts

DRAWS, FALSE_ALARM = 1000, 1e-6
SIZES, DEVIATIONS, SHARES = (30, 200, 2000), (0.0, 1.0, 5.0, 25.0), (0.1, 0.5, 0.83, 0.97)
NOMINAL = 0.935
"""what is asked of an interval of 95 %: Wilson's own covers less near 0 and 1, by the jumps of whole numbers"""


def test_without_noise_it_is_wilsons() -> None:
    for right, count in ((0, 9), (9, 9), (31, 40), (500, 2000)):
        found = interval(right, count - right, 0.0)
        assert found is not None
        wilson = binomtest(right, count).proportion_ci(0.95, "wilson")
        assert found[0] == pytest.approx(wilson.low, abs=1e-9)
        assert found[2] == pytest.approx(wilson.high, abs=1e-9)
        assert found[1] == right / count


def test_the_value_is_never_outside() -> None:
    """At 0 and 1 the last bit of an end was on the other side of it."""
    pairs = [(right, count - right) for count in range(1, 60) for right in range(count + 1)]
    for reached, missed in pairs:
        for variance in (0.0, 0.01):
            low, value, high = interval(reached, missed, variance) or (0.0, 0.0, 0.0)
            assert 0 <= low <= value <= high <= 1


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("share", SHARES)
def test_it_covers(count: int, deviation: float, share: float) -> None:
    """The share of right answers in the population that held-out records are drawn from. Each of the 48 cases fails by
    chance with a probability of less than 1e-6 / 48."""
    rng = np.random.default_rng(int(1e6 * share) + 1000 * count + int(deviation))
    right = rng.binomial(count, share, DRAWS)
    reached = right + deviation * rng.standard_normal(DRAWS)
    missed = count - right + deviation * rng.standard_normal(DRAWS)
    found = [interval(a, b, deviation**2) for a, b in zip(reached, missed, strict=True)]
    held = sum(one is None or one[0] <= share <= one[2] for one in found)
    assert held >= binom.ppf(FALSE_ALARM / (len(SIZES) * len(DEVIATIONS) * len(SHARES)), DRAWS, NOMINAL)
    told = [one for one in found if one is not None]
    if len(told) > DRAWS / 2:  # where it mostly says something, what it says holds
        within = sum(low <= share <= high for low, _, high in told)
        assert within >= binom.ppf(FALSE_ALARM / 48, len(told), NOMINAL)
        assert all(0 <= low <= high <= 1 for low, _, high in told)


def test_values_between_right_and_wrong_are_covered_too() -> None:
    rng = np.random.default_rng(5)
    values = rng.beta(2.0, 5.0, (DRAWS, 150))
    reached = values.sum(1) + 3 * rng.standard_normal(DRAWS)
    missed = (1 - values).sum(1) + 3 * rng.standard_normal(DRAWS)
    found = [interval(a, b, 9.0) for a, b in zip(reached, missed, strict=True)]
    held = sum(one is None or one[0] <= 2 / 7 <= one[2] for one in found)
    assert held >= binom.ppf(FALSE_ALARM, DRAWS, 0.95)


def test_an_interval_that_ignored_the_noise_would_be_found_out() -> None:
    rng = np.random.default_rng(6)
    right = rng.binomial(200, 0.83, DRAWS)
    reached = right + 25 * rng.standard_normal(DRAWS)
    missed = 200 - right + 25 * rng.standard_normal(DRAWS)
    found = [interval(a, b, 0.0) for a, b in zip(reached, missed, strict=True)]
    held = sum(one is None or one[0] <= 0.83 <= one[2] for one in found)
    assert held < binom.ppf(FALSE_ALARM, DRAWS, NOMINAL)


@pytest.mark.parametrize(("reached", "missed"), [(0.0, 0.0), (-3.0, 1.0), (5.0, 4.0), (-1.0, -2.0)])
def test_what_the_noise_drowns_is_not_measurable(reached: float, missed: float) -> None:
    assert interval(reached, missed, 100.0) is None


@pytest.mark.parametrize("deviation", [0.0, 2.0, 8.0])
def test_the_mean_of_recalls_is_covered(make_config, deviation: float) -> None:
    evaluation = {"sites": True, "per_class": True}
    config = make_config(data={"labels": ["a", "b", "c"]}, evaluation=evaluation)
    rng, recalls, sizes = np.random.default_rng(7), np.array([0.9, 0.6, 0.75]), np.array([400, 60, 150])
    held = 0
    for _ in range(DRAWS):
        right = rng.binomial(sizes, recalls)
        counts = np.stack([right, sizes - right], 1).ravel() + deviation * rng.standard_normal(6)
        found = figures(config, Counts(1, True, counts.tolist(), deviation**2, ["site-1"]))[1]
        assert found["key"] == "macro_recall"
        low, high = found["low"], found["high"]
        held += low is None or high is None or low <= recalls.mean() <= high
    assert held >= binom.ppf(FALSE_ALARM / 3, DRAWS, NOMINAL)
