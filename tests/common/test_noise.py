"""The generator and the grid, with false-alarm rates below 1e-6 (|z| < 5 has 6e-7, two-sided)."""

import numpy as np
import pytest
from scipy import stats

from confide.common.errors import PrivacyError
from confide.common.privacy.noise import (
    LEAST_SHARE,
    from_grid,
    grid_steps,
    l2_sensitivity,
    require_wide,
    secure_generator,
    to_grid,
)

_Z = 5.0


def test_two_generators_differ() -> None:
    assert not np.array_equal(secure_generator().integers(0, 2**62, 4), secure_generator().integers(0, 2**62, 4))


def test_uniform_bits_pass_kolmogorov_smirnov() -> None:
    assert stats.kstest(secure_generator().random(200_000), "uniform").pvalue > 1e-6


def test_stochastic_rounding_is_unbiased_and_moves_less_than_one_step() -> None:
    n, clip, grid = 200_000, 2.0, 2**16
    step = clip / grid
    values = np.full(n, 10.3 * step)
    on_grid = to_grid(values, clip, grid, secure_generator())
    assert set(np.unique(on_grid)) == {10, 11}
    assert abs(on_grid.mean() - 10.3) < _Z * np.sqrt(0.3 * 0.7 / n)
    assert np.abs(from_grid(on_grid, clip, grid) - values).max() < step


def test_rounded_neighbours_stay_within_the_sensitivity() -> None:
    """The same roundings applied to a sum with and without one clipped record differ by at most Δ₂."""
    rng, d, clip = np.random.default_rng(0), 500, 1.0
    record = rng.normal(size=d)
    record *= clip / np.linalg.norm(record)
    total = rng.normal(size=d)
    for seed in range(50):
        without = to_grid(total, clip, grid_steps(d), np.random.default_rng(seed))
        with_it = to_grid(total + record, clip, grid_steps(d), np.random.default_rng(seed))
        assert np.linalg.norm(with_it - without) <= l2_sensitivity(d)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        to_grid(np.array([np.nan]), 1.0, 2**16, secure_generator())


@pytest.mark.parametrize(
    ("coordinates", "bits"), [(1, 16), (2**16, 16), (2**16 + 1, 17), (2**18, 17), (10**6, 18), (42_000_000, 21)]
)
def test_the_grid_grows_with_the_coordinates(coordinates: int, bits: int) -> None:
    """The smallest power of two from 2^16 on with √d/G ≤ 2^-8."""
    assert grid_steps(coordinates) == 2**bits
    assert coordinates**0.5 / grid_steps(coordinates) <= 2**-8
    assert l2_sensitivity(coordinates) <= grid_steps(coordinates) * (1 + 2**-8)


def test_shares_that_are_too_narrow_are_refused() -> None:
    require_wide(LEAST_SHARE**2)
    with pytest.raises(PrivacyError, match="99 grid steps wide; allowed: from 100 on"):
        require_wide(99.0**2)


def test_a_large_sum_is_put_on_the_grid_in_parts() -> None:
    """Chunks follow one another in the generator's stream: the same roundings as in one piece."""
    values = np.random.default_rng(0).normal(size=150_000)
    scaled = values * 2**17 / 1.5
    low = np.floor(scaled)
    whole = low + (np.random.default_rng(1).random(len(values)) < scaled - low)
    assert np.array_equal(to_grid(values, 1.5, 2**17, np.random.default_rng(1)), whole)
