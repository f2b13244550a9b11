"""Accounting against independent references; sampler, clipping and noise as they are released."""

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from opacus.accountants import PRVAccountant

from confide.common.errors import BudgetError, PrivacyError
from confide.common.privacy.mechanism import PoissonMechanism, PrivacyPlan, plan_for
from confide.common.privacy.noise import secure_generator
from confide.tests.rings import slow

_Z = 5.0  # false alarm below 6e-7


@pytest.fixture
def plan() -> PrivacyPlan:
    return plan_for(
        epsilon=8, delta=1e-5, sampling_rate=0.05, steps=30, clip=1.0, coordinates=5000, declared_units=1000
    )


@pytest.mark.parametrize(
    ("epsilon", "q", "steps", "z"),
    [
        (8.0, 0.05, 30, 0.586),
        (3.0, 0.05, 30, 0.883),
        (1.0, 0.05, 30, 1.482),
        (8.0, 0.03, 40, 0.534),
        (3.0, 0.03, 40, None),
        (1.0, 0.03, 40, None),
        (8.0, 0.02, 20, 0.459),
        (3.0, 0.02, 20, None),
        (1.0, 0.02, 20, None),
        (0.1, 0.01, 50, None),
        (2.0, 1.0, 5, None),
    ],
)
def test_calibrated_noise_is_within_half_a_percent_of_prv(
    epsilon: float, q: float, steps: int, z: float | None
) -> None:
    """Opacus' PRV of a Gaussian, its own upper bound taken at its smallest error that is quick."""
    found = plan_for(
        epsilon=epsilon, delta=1e-5, sampling_rate=q, steps=steps, clip=1.0, coordinates=75_000, declared_units=1
    )
    assert epsilon * 0.995 < found.epsilon() <= epsilon
    if z is not None:
        assert found.noise_multiplier == pytest.approx(z, abs=6e-4)
    error = 0.002 * epsilon

    def prv(multiplier: float) -> float:
        account = PRVAccountant()
        account.history = [(multiplier, q, steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return account.get_epsilon(1e-5, eps_error=error) - error

    assert prv(found.noise_multiplier * 1.005) < epsilon < prv(found.noise_multiplier * 0.995)


def test_less_noise_than_calibrated_would_overspend(plan: PrivacyPlan) -> None:
    assert replace(plan, noise_multiplier=plan.noise_multiplier - 2e-4).epsilon() > 8


def test_epsilon_composes_over_steps(plan: PrivacyPlan) -> None:
    spent = [plan.epsilon(steps) for steps in range(31)]
    assert spent[0] == 0
    assert all(a < b for a, b in pairwise(spent))
    assert spent[30] == plan.epsilon() <= 8


def test_unreachable_budget_is_refused() -> None:
    with pytest.raises(PrivacyError, match="no noise multiplier"):
        plan_for(epsilon=1e-3, delta=1e-5, sampling_rate=1, steps=10**6, clip=1, coordinates=10, declared_units=1)


@pytest.mark.parametrize("epsilon", [0.02, 0.99, 20.0, 1e5, *slow(0.1, 0.34, 60.0, 900.0, 2500.0, 3000.0)])
@pytest.mark.parametrize(("q", "steps"), [(1.0, 1), (0.05, 30)])
def test_large_targets_are_kept_to(epsilon: float, q: float, steps: int) -> None:
    """Where noise is next to none, and e^ε·τ is far above δ."""
    found = plan_for(
        epsilon=epsilon, delta=1e-5, sampling_rate=q, steps=steps, clip=1.0, coordinates=75_000, declared_units=1
    )
    assert found.epsilon() <= epsilon


def test_a_delta_above_the_chance_to_be_drawn_is_no_leave_to_release_without_noise() -> None:
    """q·T = 4·10⁻⁶ below δ = 10⁻⁵: without noise at all, (0, δ) would hold."""
    found = plan_for(
        epsilon=8, delta=1e-5, sampling_rate=1e-6, steps=4, clip=1.0, coordinates=100, declared_units=10**7
    )
    assert found.noise_multiplier > 0.2
    assert found.epsilon() <= 8


def test_the_grid_costs_noise_not_epsilon(plan: PrivacyPlan) -> None:
    """z is relative to Δ₂ = G + √d, so ε at the same z does not move with d."""
    assert replace(plan, coordinates=10**8).epsilon() == pytest.approx(plan.epsilon(), rel=1e-9)
    assert replace(plan, coordinates=10**8).variance > 1000 * plan.variance


def test_shares_too_narrow_to_add_up_are_refused(plan: PrivacyPlan) -> None:
    many = replace(plan, shares=10**6)
    with pytest.raises(PrivacyError, match="grid steps wide; allowed: from 100 on"):
        plan_for(
            epsilon=8, delta=1e-5, sampling_rate=0.05, steps=30, clip=1, coordinates=5, declared_units=9, shares=10**6
        )
    mechanism = PoissonMechanism(many, secure_generator())
    mechanism.draw(5)
    with pytest.raises(PrivacyError, match="grid steps wide"):
        mechanism.release(np.zeros(plan.coordinates))


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
    # z·Δ₂ on the grid is z·C·(1 + √d / G) in the units of the gradient
    scale = plan.noise_multiplier * plan.clip * (1 + math.sqrt(plan.coordinates) / plan.grid)
    n = plan.coordinates
    assert abs(noise.mean()) < _Z * scale / math.sqrt(n)
    assert abs(noise.var() / scale**2 - 1) < _Z * math.sqrt(2 / n)
    # every released number is a point of the grid: nothing of the float sum is left
    on_grid = released * plan.denominator * plan.grid / plan.clip
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
