"""Accounting against independent references; sampler, clipping and noise as they are released."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from scipy.stats import skellam

from confide.common.errors import BudgetError, PrivacyError
from confide.common.privacy.mechanism import (
    PoissonMechanism,
    PrivacyPlan,
    _log_binomial,
    _remainder_factors,
    gaussian_epsilon,
    grid_rdp,
    plan_for,
    poisson_sampled_rdp,
    sampled_rdp,
    skellam_epsilon,
    skellam_rdp,
)
from confide.common.privacy.noise import GRID_STEPS_PER_CLIP, secure_generator

_Z = 5.0  # false alarm below 6e-7


@pytest.fixture
def plan() -> PrivacyPlan:
    return plan_for(
        epsilon=8, delta=1e-5, sampling_rate=0.05, steps=30, clip=1.0, coordinates=5000, declared_units=1000
    )


@pytest.mark.parametrize(
    ("q", "z", "steps", "accountant", "expected", "tolerance"),
    [
        (64 / 2000, 1.0, 10, "pld", 1.15, 0.01),
        (64 / 2000, 1.0, 500, "pld", 4.61, 0.01),
        (0.05, 0.7, 200, "pld", 10.55, 0.01),
        (0.05, 0.7, 200, "rdp", 12.0, 0.05),
    ],
)
def test_values_of_the_privacy_page(
    q: float, z: float, steps: int, accountant: str, expected: float, tolerance: float
) -> None:
    assert gaussian_epsilon(q, z, steps, 1e-5, accountant) == pytest.approx(expected, abs=tolerance)


def test_one_round_times_fifty_is_not_the_total() -> None:
    """The naive sum of per-round ε says 57.7; composition says 4.61."""
    assert 50 * gaussian_epsilon(64 / 2000, 1.0, 10, 1e-5) == pytest.approx(57.7, abs=0.2)


@pytest.mark.parametrize(("q", "z"), [(0.01, 0.8), (0.05, 0.7), (0.3, 2.0)])
def test_sampled_rdp_at_vanishing_grid_is_the_sampled_gaussian(q: float, z: float) -> None:
    """ε(α) = α/(2z²) is the s → ∞ limit; dp-accounting computes the sampled Gaussian independently."""
    orders = list(range(2, 33))
    ours = poisson_sampled_rdp(q, np.arange(33) / (2 * z**2))
    theirs = RdpAccountant(orders).compose(PoissonSampledDpEvent(q, GaussianDpEvent(z)))._rdp
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_no_sampling_is_no_amplification() -> None:
    rdp = np.arange(10) / 2.0
    np.testing.assert_array_equal(poisson_sampled_rdp(1.0, rdp), rdp[2:])


def test_grid_rdp_approaches_the_gaussian_from_above() -> None:
    orders = np.arange(2, 64)
    gaussian = orders / (2 * 0.7**2)
    on_grid = grid_rdp(orders, 0.7, 75_000)
    assert (on_grid >= gaussian).all()
    np.testing.assert_allclose(on_grid, gaussian, rtol=1e-5)


@pytest.mark.parametrize(("shift", "mu"), [(1, 40.0), (3, 40.0), (5, 60.0)])
@pytest.mark.parametrize("order", [1.05, 1.5, 2, 2.3, 3, 5.75, 8])
def test_skellam_rdp_bounds_the_exact_divergence(shift: int, mu: float, order: float) -> None:
    """One coordinate, where D_α(P‖Q) can be summed over the integers; the bound is above, and not by much."""
    support = np.arange(-200, 201)
    log_q = skellam.logpmf(support, mu / 2, mu / 2)
    log_p = skellam.logpmf(support - shift, mu / 2, mu / 2)
    terms = order * log_p + (1 - order) * log_q
    terms = terms[np.isfinite(terms)]
    exact = (terms.max() + math.log(np.exp(terms - terms.max()).sum())) / (order - 1)
    bound = skellam_rdp(np.array([order]), shift, shift, mu)[0]
    assert exact <= bound < exact * 1.5


@pytest.mark.parametrize("order", [1.1, 1.5, 2.25, 2.8, 4.6, 9.35])
@pytest.mark.parametrize(("q", "shift", "mu"), [(0.05, 5, 9.0), (0.3, 2, 20.0), (0.01, 4, 6.0)])
def test_sampled_rdp_at_fractions_bounds_the_exact_divergence(q: float, shift: int, mu: float, order: float) -> None:
    """One coordinate, exactly: E_Q[(1 − q + q·P/Q)^α] summed over the integers."""
    support = np.arange(-120, 121)
    q_pmf, p_pmf = skellam.pmf(support, mu / 2, mu / 2), skellam.pmf(support - shift, mu / 2, mu / 2)
    kept = q_pmf > 1e-250
    exact = math.log((q_pmf[kept] * (1 - q + q * p_pmf[kept] / q_pmf[kept]) ** order).sum()) / (order - 1)
    orders, curve = sampled_rdp(q, lambda alpha: skellam_rdp(alpha, shift, shift, mu))
    found = curve[np.flatnonzero(np.isclose(orders, order))[0]]
    assert exact <= found


@pytest.mark.parametrize("order", [1.05, 1.5, 2.4, 3.95, 7.5, 15.2])
def test_the_remainder_of_the_binomial_series_is_bounded(order: float) -> None:
    powers, log_factors = _remainder_factors(order)
    terms = np.arange(math.floor(order) + 1)
    b = np.exp(np.random.default_rng(0).uniform(-3, 9, 2000))
    series = (np.exp(_log_binomial(order, terms)) * b[:, None] ** terms).sum(1)
    for power, log_factor in zip(powers, log_factors, strict=True):
        assert (series + np.exp(log_factor) * b**power >= (1 + b) ** order * (1 - 1e-12)).all()


@pytest.mark.parametrize(("q", "z", "steps"), [(0.03, 0.5776, 40), (0.05, 0.75, 30), (0.05, 1.2, 30), (0.02, 0.55, 20)])
def test_skellam_costs_at_most_one_percent_more_than_the_gaussian(q: float, z: float, steps: int) -> None:
    """At the default scale, both by Rényi DP at the same orders; never less, at any order."""
    orders, curve = sampled_rdp(q, lambda order: grid_rdp(order, z, 75_000))
    gaussian = np.asarray(compute_rdp(q=q, noise_multiplier=z, steps=1, orders=orders.tolist()))
    assert (curve >= gaussian * (1 - 1e-9)).all()
    opacus = RDPAccountant()
    opacus.history = [(z, q, steps)]
    theirs = opacus.get_epsilon(1e-5, alphas=orders.tolist())
    assert theirs <= skellam_epsilon(q, z, steps, 1e-5, 75_000) <= 1.01 * theirs


@pytest.mark.parametrize(("epsilon", "q", "steps"), [(8.0, 0.05, 30), (3.0, 0.02, 100), (1.0, 0.1, 50)])
def test_calibrated_noise_is_confirmed_by_opacus(epsilon: float, q: float, steps: int) -> None:
    found = plan_for(
        epsilon=epsilon, delta=1e-5, sampling_rate=q, steps=steps, clip=1.0, coordinates=75_000, declared_units=1
    )
    assert epsilon * 0.99 < found.epsilon() <= epsilon
    for accountant in (RDPAccountant(), PRVAccountant()):
        accountant.history = [(found.noise_multiplier, q, steps)]
        assert accountant.get_epsilon(1e-5) <= epsilon
    opacus = RDPAccountant()
    opacus.history = [(found.noise_multiplier, q, steps)]
    assert opacus.get_epsilon(1e-5) > epsilon * 0.98  # nothing is wasted


def test_less_noise_than_calibrated_would_overspend(plan: PrivacyPlan) -> None:
    assert replace(plan, noise_multiplier=plan.noise_multiplier - 2e-4).epsilon() > 8


def test_epsilon_composes_over_steps(plan: PrivacyPlan) -> None:
    spent = [plan.epsilon(steps) for steps in range(31)]
    assert spent[0] == 0
    assert all(a < b for a, b in pairwise(spent))
    assert spent[30] == plan.epsilon() <= 8


def test_unreachable_budget_is_refused() -> None:
    with pytest.raises(PrivacyError, match="no noise multiplier"):
        plan_for(epsilon=1e-7, delta=1e-5, sampling_rate=1, steps=10**6, clip=1, coordinates=10, declared_units=1)


def test_unknown_accountant_is_refused() -> None:
    with pytest.raises(PrivacyError, match="allowed: pld, rdp"):
        gaussian_epsilon(0.1, 1, 1, 1e-5, "moments")


def test_the_grid_costs_noise_not_epsilon() -> None:
    """z is relative to Δ₂ = s·C + √d, so ε at the same z does not move with d."""
    assert skellam_epsilon(0.05, 0.7, 30, 1e-5, 10**8) == pytest.approx(
        skellam_epsilon(0.05, 0.7, 30, 1e-5, 10), rel=1e-6
    )


def test_draws_are_independent_bernoulli(plan: PrivacyPlan) -> None:
    """Mean and variance of the batch size, and the rate of single records, as Poisson sampling has them."""
    population, repeats = 2000, 400
    many = PoissonMechanism(replace(plan, steps=repeats), secure_generator())
    sizes, hits = np.empty(repeats), np.zeros(population)
    for step in range(repeats):
        drawn = many.draw(population)
        many.release(np.zeros(plan.coordinates))
        assert len(np.unique(drawn)) == len(drawn)
        sizes[step] = len(drawn)
        hits[drawn] += 1
    q, variance = 0.05, population * 0.05 * 0.95
    assert abs(sizes.mean() - population * q) < _Z * math.sqrt(variance / repeats)
    assert abs(sizes.var(ddof=1) / variance - 1) < _Z * math.sqrt(2 / (repeats - 1)) * 1.1
    # the largest of 2000 deviations: |z| < 7 has a false-alarm rate below 2000 · 3e-12
    assert np.abs((hits / repeats - q) / math.sqrt(q * (1 - q) / repeats)).max() < 7


def test_release_adds_noise_of_the_declared_scale(plan: PrivacyPlan) -> None:
    mechanism = PoissonMechanism(plan, secure_generator())
    mechanism.draw(10)
    released = mechanism.release(np.full(plan.coordinates, 0.25))
    noise = released * plan.denominator - 0.25
    # z·Δ₂ on the grid is z·C·(1 + √d / 2^16) in the units of the gradient
    scale = plan.noise_multiplier * plan.clip * (1 + math.sqrt(plan.coordinates) / GRID_STEPS_PER_CLIP)
    n = plan.coordinates
    assert abs(noise.mean()) < _Z * scale / math.sqrt(n)
    assert abs(noise.var() / scale**2 - 1) < _Z * math.sqrt(2 / n)
    # every released number is a point of the grid: nothing of the float sum is left
    on_grid = released * plan.denominator * GRID_STEPS_PER_CLIP / plan.clip
    np.testing.assert_allclose(on_grid, np.round(on_grid), atol=1e-6)


def test_an_empty_batch_is_noised_and_charged(plan: PrivacyPlan) -> None:
    mechanism = PoissonMechanism(plan, secure_generator())
    assert len(mechanism.draw(0)) == 0
    assert np.abs(mechanism.release(np.zeros(plan.coordinates))).max() > 0
    assert mechanism.steps == 1


def test_the_denominator_is_declared_not_counted(plan: PrivacyPlan) -> None:
    assert plan.denominator == 0.05 * 1000


def test_steps_beyond_the_declaration_are_refused(plan: PrivacyPlan) -> None:
    mechanism = PoissonMechanism(replace(plan, steps=1), secure_generator())
    mechanism.draw(5)
    mechanism.release(np.zeros(plan.coordinates))
    with pytest.raises(BudgetError, match="spent 1 of 1 declared steps, asked 1 more, remaining 0"):
        mechanism.draw(5)


def test_a_draw_is_released_once(plan: PrivacyPlan) -> None:
    mechanism = PoissonMechanism(plan, secure_generator())
    with pytest.raises(PrivacyError, match="nothing was drawn"):
        mechanism.release(np.zeros(plan.coordinates))
    mechanism.draw(5)
    with pytest.raises(PrivacyError, match="not released"):
        mechanism.draw(5)
    mechanism.release(np.zeros(plan.coordinates))
    with pytest.raises(PrivacyError, match="nothing was drawn"):
        mechanism.release(np.zeros(plan.coordinates))


def test_a_sum_of_another_size_is_refused(plan: PrivacyPlan) -> None:
    mechanism = PoissonMechanism(plan, secure_generator())
    mechanism.draw(5)
    with pytest.raises(PrivacyError, match="declared were 5000"):
        mechanism.release(np.zeros(3))
