"""ε of a history, against dp-accounting, Opacus and the values of the privacy page; the Rényi filter; the slack."""

import math
from collections import Counter

import mpmath
import numpy as np
import pytest
from dp_accounting import (
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NeighboringRelation,
    NonPrivateDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from scipy.special import ndtr
from scipy.stats import norm

from confide.common.errors import PrivacyError
from confide.common.privacy import accounting, discrete_gaussian
from confide.common.privacy.accounting import (
    ORDERS,
    SLACK,
    added,
    conversion,
    delta_pld,
    distance,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    filter_epsilon,
    filter_order,
    nearest_order,
    ratio,
    rdp_at,
    with_slack,
)
from confide.common.privacy.events import (
    DiscreteGaussianDpEvent,
    History,
    check,
    from_json,
    history_of,
    repeated,
    step_event,
    to_json,
)
from confide.common.privacy.mechanism import noise_multiplier
from confide.common.privacy.noise import grid_variance
from confide.tests.rings import slow


def steps(q: float, z: float, count: int, d: int = 1000):
    return repeated(step_event(q, DiscreteGaussianDpEvent(z, d)), count)


def independently(events: list[tuple[float, float, int]], account):
    """By dp-accounting's own accountants, on their own meshes and orders."""
    for q, z, count in events:
        account.compose(SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(z)), count))
    return account.get_epsilon(1e-5)


def test_values_of_the_privacy_page() -> None:
    assert epsilon_pld(history_of([steps(64 / 2000, 1.0, 10)]), 1e-5) == pytest.approx(1.15, abs=0.01)
    assert epsilon_pld(history_of([steps(64 / 2000, 1.0, 500)]), 1e-5) == pytest.approx(4.61, abs=0.01)
    assert 50 * epsilon_pld(history_of([steps(64 / 2000, 1.0, 10)]), 1e-5) == pytest.approx(57.7, abs=0.2)
    many = history_of([steps(0.05, 0.7, 200)])
    assert epsilon_pld(many, 1e-5) == pytest.approx(10.55, abs=0.01)
    assert epsilon_rdp(many, 1e-5) == pytest.approx(12.0, abs=0.05)
    for z, expected in ((0.6336, 6.62), (0.9613, 2.46), (1.6254, 0.85)):
        assert epsilon_pld(history_of([steps(0.05, z, 30)]), 1e-5) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    "parts",
    [
        [(0.05, 0.586, 30)],
        [(0.02, 0.8, 30), (0.1, 2.0, 5), (1.0, 10.0, 3)],
        [(1.0, 3.0, 10)],
        [(0.001, 0.9, 2000)],
        [(0.05, 0.25, 8)],
        [(0.9, 20.0, 400)],
        [(0.01, 30.0, 5)],
    ],
)
def test_histories_agree_with_independent_accountants(parts: list[tuple[float, float, int]]) -> None:
    history = history_of([steps(*part) for part in parts])
    mesh = min(5e-5 if min(z for _, z, _ in parts) > 0.5 else 5e-4, epsilon_pld(history, 1e-5) / 300)
    finest = independently(parts, PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, mesh))
    assert finest * (1 - 1e-3) <= epsilon_pld(history, 1e-5) <= finest * 1.005
    prv = epsilon_prv(history, 1e-5)
    assert prv is not None
    assert abs(prv - finest) <= 0.012 + 0.005 * finest
    assert epsilon_pld(history, 1e-5) <= epsilon_rdp(history, 1e-5) * 1.001
    theirs = independently(parts, RdpAccountant(ORDERS.tolist()))
    assert epsilon_rdp(history, 1e-5) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(
    ("q", "z", "count"), [(1.0, 1e4, 10**6), (0.001, 1.0, 10**6), (1.0, 0.02, 1000), (0.5, 30.0, 10**5)]
)
def test_a_long_run_takes_little_memory(q: float, z: float, count: int) -> None:
    """Cells are counted before they are made; ε stays an upper bound that is near Rényi's or below."""
    history = history_of([steps(q, z, count)])
    found = epsilon_pld(history, 1e-5)
    composed = accounting._composed(accounting.items_of(history), 1.0)
    assert composed._pmf_remove.size <= 2 * accounting._CELLS
    assert 0 < found <= 1.05 * epsilon_rdp(history, 1e-5)


@pytest.mark.parametrize(
    ("history", "delta"),
    [
        (history_of([steps(0.05, 1.0, 30)]), 1e-15),  # "Floating point errors will dominate"
        (history_of([steps(0.5, 0.02, 1000)]), 1e-5),  # a mesh of gigabytes
    ],
)
def test_what_opacus_cannot_compute_is_no_number(history: History, delta: float) -> None:
    assert epsilon_prv(history, delta) is None
    assert epsilon_pld(history, delta) >= 0


def test_very_many_steps_are_accounted_by_rdp() -> None:
    many = history_of([steps(0.001, 30.0, 10**9)])
    assert epsilon_pld(many, 1e-5) == epsilon_rdp(many, 1e-5) > 0


def test_one_step_agrees_with_integration() -> None:
    """δ(ε) = ∫ max(0, P − e^ε·Q) over the line, the worse of adding and removing, at the ε that was found."""
    q, z = 0.1, 0.8
    found = epsilon_pld(history_of([steps(q, z, 1)]), 1e-5)
    x = np.linspace(-30, 34, 2_000_001)
    without, moved = norm.pdf(x, 0, z), norm.pdf(x, 1, z)
    present = (1 - q) * without + q * moved
    width = x[1] - x[0]
    deltas = [np.maximum(0, a - np.exp(found) * b).sum() * width for a, b in ((present, without), (without, present))]
    assert max(deltas) == pytest.approx(1e-5, rel=0.01)
    assert delta_pld(history_of([steps(q, z, 1)]), found) == pytest.approx(1e-5, rel=0.01)


def test_equal_steps_are_composed_together_in_any_order() -> None:
    one = history_of([steps(0.03, 0.6, 1)] * 40)
    assert one == history_of([steps(0.03, 0.6, 40)])
    assert epsilon_pld(one, 1e-5) == epsilon_pld(history_of([steps(0.03, 0.6, 25), steps(0.03, 0.6, 15)]), 1e-5)
    two = [steps(0.03, 0.6, 25), steps(0.1, 0.9, 15)]
    assert epsilon_pld(history_of(two), 1e-5) == epsilon_pld(history_of(two[::-1]), 1e-5)


def test_nothing_spends_nothing_and_no_noise_spends_all() -> None:
    bare = history_of([repeated(NonPrivateDpEvent(), 3), steps(0.03, 0.6, 40)])
    for epsilon in (epsilon_rdp, epsilon_pld, epsilon_prv):
        assert epsilon(Counter(), 1e-5) == 0
        assert epsilon(bare, 1e-5) == math.inf
    assert filter_epsilon(bare, 3.0, 1e-5) == math.inf
    assert filter_epsilon(Counter(), 3.0, 1e-5) == 0


def rounded_gaussian(sigma: float, reach: int) -> tuple[list, list]:
    """N_Z(0, σ²) and round(N(0, σ² − 1/12)) at 0 … reach, with 60 digits."""
    variance = mpmath.mpf(sigma) ** 2
    weights = [mpmath.exp(-mpmath.mpf(x * x) / (2 * variance)) for x in range(reach + 1)]
    total = 2 * mpmath.fsum(weights) - 1
    scale = mpmath.sqrt(2 * (variance - mpmath.mpf(1) / 12))
    edges = [mpmath.erfc((mpmath.mpf(x) - 0.5) / scale) / 2 for x in range(reach + 2)]
    return [weight / total for weight in weights], [edges[x] - edges[x + 1] for x in range(reach + 1)]


@pytest.mark.parametrize(
    ("sigma", "expected"), [(1, 1.478e-6), (2, 5.660e-9), (4, 2.2078e-11), (8, 8.6234e-14), (16, 3.3685e-16)]
)
def test_the_divergence_from_a_rounded_gaussian_is_that_of_the_table(sigma: int, expected: float) -> None:
    """docs/explanation/privacy.md, step 2; what is charged is above it."""
    with mpmath.workdps(60):
        ours, theirs = rounded_gaussian(sigma, 22 * sigma)
        terms = [p * mpmath.log(p / r) for p, r in zip(ours, theirs, strict=True)]
        found = float(2 * mpmath.fsum(terms) - terms[0])
    assert found == pytest.approx(expected, rel=2e-4)
    assert found <= accounting._KL * sigma**-8 <= 1.1 * found
    assert found == pytest.approx((1 / 120) ** 2 / (48 * sigma**8), rel=0.03 / sigma)


@pytest.mark.parametrize("sigma", [100, 160])
@pytest.mark.parametrize("far", [8, 60, *slow(12, 20, 40)])
def test_the_ratio_to_a_rounded_gaussian_is_bounded(sigma: int, far: int) -> None:
    with mpmath.workdps(900):
        variance = mpmath.mpf(sigma) ** 2
        scale = mpmath.sqrt(2 * (variance - mpmath.mpf(1) / 12))
        total = sigma * mpmath.sqrt(2 * mpmath.pi)  # but for 1 ± 2·e^(−2π²σ²), below 10^−80000
        for x in range(0, far * sigma + 1, max(1, far * sigma // 12)):
            law = mpmath.exp(-mpmath.mpf(x * x) / (2 * variance)) / total
            cell = (mpmath.erfc((x - mpmath.mpf("0.5")) / scale) - mpmath.erfc((x + mpmath.mpf("0.5")) / scale)) / 2
            assert abs(mpmath.log(law / cell)) <= far**4 / (2000 * sigma**4)


@pytest.mark.parametrize(("sigma", "shares"), [(1.0, 2), (1.0, 5), (1.5, 3)])
def test_a_sum_of_shares_is_one_draw_within_the_bound(sigma: float, shares: int) -> None:
    """Kairouz, Liu, Steinke 2021: 10·Σ_{k<n} exp(−2π²σ²·k/(k+1)) bounds the largest log ratio, σ of each share."""
    reach = 60
    single = [math.exp(-x * x / (2 * sigma**2)) for x in range(-reach, reach + 1)]
    one = np.array(single) / math.fsum(single)
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    middle = len(total) // 2
    wide = [math.exp(-x * x / (2 * shares * sigma**2)) for x in range(-400, 401)]
    bound = 10 * sum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, shares))
    for x in range(-6, 7):
        assert abs(math.log(total[middle + x] / (wide[400 + x] / math.fsum(wide)))) <= bound
    at_least = 2 * math.pi**2 * 100.0**2 * 0.5 / math.log(10)
    assert at_least > 40_000  # shares of σ = 100: 10^−40000, and nothing of it is charged


def test_the_slack_is_what_the_page_says() -> None:
    """At σ ≥ 10⁴ and T·d ≤ 10¹²: (1 + e⁸)·τ is below 10⁻⁹, a part of 10⁻⁴ of δ."""
    z = 1e4 / grid_variance(1.0, 10**6) ** 0.5
    worst = history_of([steps(0.05, z, 10**6, 10**6)])
    assert (1 + math.exp(8)) * distance(worst) < 1e-9
    assert added(worst, 8.0, 1e-5) == 0


def test_a_slack_that_does_not_fit_into_delta_is_charged_to_epsilon_or_refused() -> None:
    history = history_of([steps(0.05, 0.586, 30)])
    assert added(history, 8.0, 1e-5) == 0
    assert added(history, 45.0, 1e-5) == 2e-4
    assert ratio(history, 45.0, 1e-5) < 1e-8
    narrow = history_of([steps(0.05, 0.002, 10**6, 10**6)])
    assert added(narrow, 8.0, 1e-5) == math.inf


@pytest.mark.parametrize(("z", "coordinates", "delta"), [(0.107, 10**7, 1e-5), (0.12, 10**7, 1e-13), (0.05, 10, 1e-5)])
def test_no_epsilon_is_claimed_that_the_ends_of_the_draws_break(z: float, coordinates: int, delta: float) -> None:
    """A draw ends at 13.5 σ. What lies from there to the end of a neighbour's, 1/z σ away, only one of two can give."""
    only_one = ndtr(-(discrete_gaussian.TAIL - 1 / z))
    assert only_one > delta or z > 0.107
    history = history_of([steps(1.0, z, 1, coordinates)])
    assert epsilon_pld(history, delta) == epsilon_rdp(history, delta) == math.inf


@pytest.mark.parametrize("less", [1e-16, 7e-15, 1e-12, 1e-10])
def test_a_rate_that_is_almost_one_counts_as_one(less: float) -> None:
    """dp-accounting raised an error of its own for some."""
    for z, count in ((0.6, 2), (1.5, 40)):
        almost, one = (epsilon_pld(history_of([steps(q, z, count)]), 1e-9) for q in (1 - less, 1.0))
        assert almost == pytest.approx(one, rel=1e-4)
        assert math.isfinite(almost)
    epsilon_pld(history_of([steps(1 - less, 0.272, 41)]), 1e-13)


@pytest.mark.parametrize("epsilon", [30.0, 60.0, 2000.0])
def test_a_plan_for_a_huge_epsilon_spends_what_can_be_claimed(epsilon: float) -> None:
    """… and the tails that only one of two neighbours can give are far below δ."""
    z = noise_multiplier(epsilon, 1e-5, 1.0, 1, 10**7)
    spent = epsilon_pld(history_of([steps(1.0, z, 1, 10**7)]), 1e-5)
    assert spent <= min(epsilon, 60.0)
    assert ndtr(-(discrete_gaussian.TAIL - 1 / z)) < 1e-3 * 1e-5


def test_a_limit_beyond_what_can_be_claimed_admits_until_there() -> None:
    history = history_of([steps(0.05, 0.586, 30)])
    assert filter_epsilon(history, 4.0, 1e-5, 1e5) == pytest.approx(filter_epsilon(history, 4.0, 1e-5, 20.0), rel=1e-3)
    assert filter_epsilon(Counter({step: 20 * n for step, n in history.items()}), 4.0, 1e-5, 1e5) == math.inf


def test_the_conversion_is_that_of_dp_accounting_and_tighter_than_the_classical() -> None:
    for order, rho in ((2.0, 3.0), (5.0, 1.0), (32.0, 0.2)):
        expected, _ = compute_epsilon([order], [rho], 1e-5)
        assert rho + conversion(order, 1e-5) == pytest.approx(expected)
        assert conversion(order, 1e-5) < math.log(1e5) / (order - 1)


def test_the_filter_adds_up_at_its_one_order_and_is_never_below_the_best() -> None:
    first, second = history_of([steps(0.03, 0.9, 20)]), history_of([steps(0.1, 1.5, 10)])
    order = filter_order(first, 8.0, 1e-5)
    both = filter_epsilon(first + second, order, 1e-5)
    assert both == pytest.approx(rdp_at(first + second, order) + conversion(order, 1e-5), rel=1e-3)
    assert both >= epsilon_rdp(first + second, 1e-5)
    # repetitions of the first request exhaust the limit later at this order than at any other
    many = Counter({step: 10 * count for step, count in first.items()})
    fits = [filter_epsilon(many, other, 1e-5) for other in ORDERS.tolist()]
    assert filter_epsilon(many, filter_order(first, min(fits), 1e-5), 1e-5) == pytest.approx(min(fits), rel=1e-3)


@pytest.mark.parametrize("limit", [0.5, 8.0, 40.0])
@pytest.mark.parametrize(
    ("q", "z", "count"), [(0.5, 1.1, 40), (0.03, 0.9, 20), (0.2, 30.0, 3), (1.0, 4.0, 5), (0.01, 0.4, 9)]
)
def test_the_best_order_is_that_of_the_whole_curve(q: float, z: float, count: int, limit: float) -> None:
    """Where not every order is computed."""
    history, at = history_of([steps(q, z, count)]), 1e-5 * (1 - SLACK)
    curve = np.array([rdp_at(history, order) for order in ORDERS.tolist()])
    left = np.array([limit - conversion(order, at) for order in ORDERS.tolist()])
    expected = np.where(left > 0, curve / np.where(left > 0, left, 1), np.inf)
    assert filter_order(history, limit, 1e-5) == ORDERS[np.argmin(expected)]
    best, _ = compute_epsilon(ORDERS.tolist(), curve.tolist(), at)
    assert epsilon_rdp(history, 1e-5) == with_slack(lambda _: best, history, 1e-5)


def test_the_filter_agrees_with_dp_accounting_at_one_order() -> None:
    history: History = history_of([steps(0.03, 0.9, 20), steps(0.1, 1.5, 10)])
    for order in (2.5, 4.0, 8.0):
        theirs = independently([(0.03, 0.9, 20), (0.1, 1.5, 10)], RdpAccountant([order]))
        assert filter_epsilon(history, order, 1e-5) == pytest.approx(theirs, rel=2e-3)


def test_what_the_filter_costs_above_the_claim_of_one_run() -> None:
    """Why a first run is admitted by PLD: calibrated to ε = 8, it costs 9.5 at the filter."""
    one = history_of([steps(0.05, 0.586, 30)])
    assert filter_epsilon(one, filter_order(one, 9.5, 1e-5), 1e-5) == pytest.approx(9.5, abs=0.1)


def test_a_filter_keeps_to_the_orders_in_use() -> None:
    assert nearest_order(3.01) == 3.0
    with pytest.raises(PrivacyError, match="a filter's order cannot change"):
        filter_epsilon(history_of([steps(0.03, 0.6, 1)]), 3.01, 1e-5)


@pytest.mark.parametrize(
    "event",
    [
        steps(0.02, 0.8, 30),
        steps(1.0, 2.0, 1),
        repeated(NonPrivateDpEvent(), 4),
        step_event(0.5, DiscreteGaussianDpEvent(1.0, 7)),
    ],
)
def test_events_come_back_as_they_were_written(event: DpEvent) -> None:
    assert from_json(to_json(event)) == event


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"type": "laplace"}, "unknown"),
        ({"type": "discrete-gaussian"}, "missing"),
        ({"type": "gaussian", "noise_multiplier": 1.0}, "an earlier version of confide wrote it"),
        ({"type": "skellam", "noise_multiplier": 1.0, "coordinates": 9}, "make a new ledger in another folder"),
        ({}, "missing"),
        ([], "missing"),
        ({"type": "discrete-gaussian", "noise_multiplier": 0.0, "coordinates": 9}, "noise multiplier 0"),
        ({"type": "discrete-gaussian", "noise_multiplier": -1.0, "coordinates": 9}, "noise multiplier -1"),
        ({"type": "discrete-gaussian", "noise_multiplier": math.nan, "coordinates": 9}, "noise multiplier nan"),
        ({"type": "discrete-gaussian", "noise_multiplier": math.inf, "coordinates": 9}, "noise multiplier inf"),
        ({"type": "discrete-gaussian", "noise_multiplier": 1e-200, "coordinates": 9}, "noise multiplier 1e-200"),
        ({"type": "discrete-gaussian", "noise_multiplier": 1e300, "coordinates": 9}, "allowed: from 0.001 to 1000000"),
        ({"type": "discrete-gaussian", "noise_multiplier": 1.0, "coordinates": 10**400}, "whole number from 1 to 2"),
        ({"type": "self-composed", "count": 10**15, "event": {"type": "non-private"}}, "from 1 to 10"),
        ({"type": "discrete-gaussian", "noise_multiplier": "1", "coordinates": 9}, "noise multiplier 1"),
        ({"type": "discrete-gaussian", "noise_multiplier": True, "coordinates": 9}, "noise multiplier True"),
        ({"type": "discrete-gaussian", "noise_multiplier": 1.0, "coordinates": 0}, "coordinates 0"),
        ({"type": "self-composed", "count": 0, "event": {"type": "non-private"}}, "count 0"),
        ({"type": "self-composed", "count": -3, "event": {"type": "non-private"}}, "count -3"),
        ({"type": "self-composed", "count": 1.5, "event": {"type": "non-private"}}, "count 1.5"),
        (
            {
                "type": "poisson-sampled",
                "probability": 0.0,
                "event": {"type": "discrete-gaussian", "noise_multiplier": 1.0, "coordinates": 9},
            },
            "sampling rate 0",
        ),
        (
            {
                "type": "poisson-sampled",
                "probability": math.nan,
                "event": {"type": "discrete-gaussian", "noise_multiplier": 1.0, "coordinates": 9},
            },
            "sampling rate nan",
        ),
        ({"type": "poisson-sampled", "probability": 0.5, "event": {"type": "non-private"}}, "only discrete-gaussian"),
    ],
)
def test_events_that_cannot_be_accounted_for_are_refused(content, text: str) -> None:
    with pytest.raises(PrivacyError, match=text):
        from_json(content)


def test_unknown_mechanisms_are_refused_not_guessed() -> None:
    for event in (LaplaceDpEvent(1.0), repeated(repeated(DiscreteGaussianDpEvent(1.0, 9), 2), 2), GaussianDpEvent(1.0)):
        with pytest.raises(PrivacyError):
            check(event)
    with pytest.raises(PrivacyError, match="LaplaceDpEvent: cannot be accounted for"):
        to_json(LaplaceDpEvent(1.0))
    with pytest.raises(PrivacyError, match="has no noise multiplier"):
        epsilon_rdp(Counter({PoissonSampledDpEvent(0.1, LaplaceDpEvent(1.0)): 1}), 1e-5)
