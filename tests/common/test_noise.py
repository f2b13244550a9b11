"""The generator, the grid and Skellam, with false-alarm rates below 1e-6 (|z| < 5 has 6e-7, two-sided)."""

import numpy as np
import pytest
from scipy import stats

from confide.common.privacy.noise import (
    GRID_STEPS_PER_CLIP,
    drawn_variance,
    from_grid,
    l2_sensitivity,
    secure_generator,
    skellam,
    skellam_variance,
    to_grid,
)

_Z = 5.0


def test_two_generators_differ() -> None:
    assert not np.array_equal(secure_generator().integers(0, 2**62, 4), secure_generator().integers(0, 2**62, 4))


def test_uniform_bits_pass_kolmogorov_smirnov() -> None:
    assert stats.kstest(secure_generator().random(200_000), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.3, 2.0, 60.0, 3959.0, 10_000.0])
def test_skellam_has_the_declared_moments(noise_multiplier: float) -> None:
    n, d = 400_000, 1000
    variance = skellam_variance(noise_multiplier, d)
    draws = skellam(variance, n, secure_generator()).astype(float)
    assert abs(draws.mean()) < _Z * np.sqrt(variance / n)
    # the variance of a sample variance of a near-normal is 2σ⁴/n
    assert abs(draws.var() / drawn_variance(variance) - 1) < _Z * np.sqrt(2 / n)
    assert variance <= drawn_variance(variance) <= 1.002 * variance
    assert draws.dtype == float
    assert np.array_equal(draws, np.round(draws))


@pytest.mark.parametrize("noise_multiplier", [0.6, 40.0, 1000.0, 3959.0, 10_000.0])
def test_low_bits_are_noise(noise_multiplier: float) -> None:
    """Poisson of a large mean gives multiples of 2 or 4: the low bits of a sum then showed who was in it."""
    n = 100_000
    draws = skellam(skellam_variance(noise_multiplier, 2000), n, secure_generator())
    for power in (1, 2, 8):
        counts = np.bincount(draws % 2**power, minlength=2**power)
        assert stats.chisquare(counts).pvalue > 1e-7


@pytest.mark.parametrize("noise_multiplier", [1.2, 30.0, 5000.0])
def test_large_noise_is_normal(noise_multiplier: float) -> None:
    variance = skellam_variance(noise_multiplier, 2000)
    draws = skellam(variance, 200_000, secure_generator()) / variance**0.5
    assert stats.kstest(draws, "norm").pvalue > 1e-7


def test_small_skellam_matches_its_probabilities() -> None:
    n, mu = 200_000, 3.0
    draws = skellam(mu, n, secure_generator())
    values = np.arange(-4, 5)
    expected = stats.skellam.pmf(values, mu / 2, mu / 2)
    found = np.array([(draws == v).mean() for v in values])
    assert (np.abs(found - expected) < _Z * np.sqrt(expected * (1 - expected) / n)).all()


def test_stochastic_rounding_is_unbiased_and_moves_less_than_one_step() -> None:
    n, clip = 200_000, 2.0
    step = clip / GRID_STEPS_PER_CLIP
    values = np.full(n, 10.3 * step)
    on_grid = to_grid(values, clip, secure_generator())
    assert set(np.unique(on_grid)) == {10, 11}
    assert abs(on_grid.mean() - 10.3) < _Z * np.sqrt(0.3 * 0.7 / n)
    assert np.abs(from_grid(on_grid, clip) - values).max() < step


def test_rounded_neighbours_stay_within_the_sensitivity() -> None:
    """The same roundings applied to a sum with and without one clipped record differ by at most Δ₂."""
    rng, d, clip = np.random.default_rng(0), 500, 1.0
    record = rng.normal(size=d)
    record *= clip / np.linalg.norm(record)
    total = rng.normal(size=d)
    for seed in range(50):
        without = to_grid(total, clip, np.random.default_rng(seed))
        with_it = to_grid(total + record, clip, np.random.default_rng(seed))
        assert np.linalg.norm(with_it - without) <= l2_sensitivity(d)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        to_grid(np.array([np.nan]), 1.0, secure_generator())


@pytest.mark.parametrize("mu", [0.5, 3.0, 40.0])
def test_skellam_passes_chi_square_against_the_exact_law(mu: float) -> None:
    n = 300_000
    draws = skellam(mu, n, secure_generator())
    width = int(4 * mu**0.5) + 1
    values = np.arange(-width, width + 1)
    inner = stats.skellam.pmf(values, mu / 2, mu / 2)
    expected = n * np.append(inner, 1 - inner.sum())  # the last cell: everything outside
    found = np.append([(draws == v).sum() for v in values], (np.abs(draws) > width).sum())
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-6


def test_noise_of_a_release_passes_kolmogorov_smirnov() -> None:
    """At the scale of a run the law is a normal's to within 1/(8μ), far below what 400,000 draws can tell."""
    variance = skellam_variance(0.6, 75_000)
    draws = skellam(variance, 400_000, secure_generator())
    assert stats.kstest(draws / np.sqrt(variance), "norm").pvalue > 1e-6


def test_shares_add_up_to_one_mechanism() -> None:
    """A sum of eight Skellams of variance μ/8 is a Skellam of variance μ."""
    n, mu = 200_000, 16.0
    total = np.sum([skellam(mu / 8, n, secure_generator()) for _ in range(8)], axis=0)
    values = np.arange(-14, 15)
    expected = stats.skellam.pmf(values, mu / 2, mu / 2)
    found = np.array([(total == v).mean() for v in values])
    assert (np.abs(found - expected) < _Z * np.sqrt(expected * (1 - expected) / n)).all()
