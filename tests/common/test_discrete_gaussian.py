"""The sampler against the exact law, with false-alarm rates below 1e-6 a test (|z| < 5.2 has 2e-7, two-sided).

The laws are computed by mpmath with 60 digits and more, independently of the sampler's integer arithmetic.
"""

import hashlib
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
from scipy import stats

from confide.common.privacy import discrete_gaussian
from confide.common.privacy.discrete_gaussian import add_noise, integer_probabilities, words_from, words_of
from confide.common.privacy.discrete_gaussian import discrete_gaussian as draw
from confide.common.privacy.noise import secure_generator

_Z = 5.2
_P = 1e-7


def exact_law(sigma: float, reach: int) -> np.ndarray:
    """P(−reach … reach) of N_Z(0, σ²)."""
    with mpmath.workdps(60):
        variance = mpmath.mpf(sigma) ** 2
        weights = [mpmath.exp(-mpmath.mpf(x * x) / (2 * variance)) for x in range(math.ceil(30 * sigma) + 10)]
        total = 2 * mpmath.fsum(weights) - 1
        half = [float(weight / total) for weight in weights[: reach + 1]]
    return np.array(half[:0:-1] + half)


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0, 3.3, 20.0])
def test_draws_pass_chi_square_against_the_exact_law(sigma: float) -> None:
    n, reach = 400_000, math.ceil(4 * sigma)
    draws = draw(sigma**2, n, words_of(secure_generator()))
    inner = exact_law(sigma, reach)
    found = np.append(np.bincount(draws[np.abs(draws) <= reach] + reach, minlength=2 * reach + 1), 0)
    found[-1] = n - found.sum()
    expected = n * np.append(inner, 1 - inner.sum())
    kept = expected > 5
    found, expected = np.append(found[kept], found[~kept].sum()), np.append(expected[kept], expected[~kept].sum())
    assert stats.chisquare(found[expected > 0], expected[expected > 0] * n / expected.sum()).pvalue > _P


@pytest.mark.parametrize("sigma", [600.0, 1021.7])
def test_a_convolution_passes_chi_square_against_the_exact_law(sigma: float) -> None:
    """Every integer near the middle for itself: a stride of the second table would show as peaks."""
    n, reach = 2_000_000, 40
    draws = draw(sigma**2, n, words_of(secure_generator()))
    law = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    found = np.bincount(draws[np.abs(draws) <= reach] + reach, minlength=2 * reach + 1)
    expected = n * law
    assert stats.chisquare(np.append(found, n - found.sum()), np.append(expected, n - expected.sum())).pvalue > _P


@pytest.mark.parametrize("sigma", [400.0, 513.0, 4e4, 37_211.5, 1e6, 1e7])
def test_wide_noise_is_normal_in_every_respect(sigma: float) -> None:
    """From σ = 100 on the law is a rounded normal's, far closer than draws can tell."""
    n = 400_000
    draws = draw(sigma**2, n, words_of(secure_generator()))
    assert stats.kstest((draws + secure_generator().random(n) - 0.5) / math.hypot(sigma, 12**-0.5), "norm").pvalue > _P
    assert abs(draws.mean()) < _Z * sigma / math.sqrt(n)
    assert abs(draws.var() / sigma**2 - 1) < _Z * math.sqrt(2 / n)
    assert abs(stats.kurtosis(draws)) < _Z * math.sqrt(24 / n)
    for modulus in (2, 3, 255, 256):
        assert stats.chisquare(np.bincount(draws % modulus, minlength=modulus)).pvalue > _P
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < _Z / math.sqrt(n)


def test_tails_are_there() -> None:
    """Beyond 4σ: a table cut too early, or one that is too light, is far off."""
    n, sigma = 4_000_000, 4e4
    beyond = int((np.abs(draw(sigma**2, n, words_of(secure_generator()))) > 4 * sigma).sum())
    expected = n * 2 * stats.norm.sf(4)
    assert abs(beyond - expected) < _Z * math.sqrt(expected)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 7.3, 150.0, 512.0])
def test_integer_probabilities_are_those_of_the_law_to_128_bits(sigma: float) -> None:
    mass = integer_probabilities(Fraction(sigma) ** 2)
    reach = len(mass) // 2
    assert sum(mass) == 2**128
    assert mass == mass[::-1]
    with mpmath.workdps(80):
        variance = mpmath.mpf(sigma) ** 2
        weights = [mpmath.exp(-mpmath.mpf(x * x) / (2 * variance)) for x in range(2 * reach + 10)]
        total = 2 * mpmath.fsum(weights) - 1
        for x in range(1, reach + 1, max(1, reach // 60)):
            assert abs(mass[reach + x] - weights[x] / total * 2**128) <= 1
        missing = 2 * mpmath.fsum(weights[reach + 1 :]) / total
        assert missing < mpmath.mpf(2) ** -128
        moved = abs(mass[reach] - 2**128 / total) / mpmath.mpf(2) ** 128
        assert moved + missing < mpmath.mpf(2) ** -110


@pytest.mark.parametrize("sigma", [2.5, 100.0, 512.0])
def test_an_alias_table_has_exactly_the_integer_probabilities(sigma: float) -> None:
    """Summed over slots, with the 128-bit thresholds that draws are compared with."""
    variance = Fraction(sigma) ** 2
    table, mass = discrete_gaussian.AliasTable(variance), integer_probabilities(variance)
    capacity = 2 ** (128 - table._bits)
    found: dict[int, int] = {}
    for slot in range(2**table._bits):
        threshold = (int(table._high[slot]) << 64) + int(table._low[slot])
        first, second = int(table._values[2 * slot]), int(table._values[2 * slot + 1])
        found[first] = found.get(first, 0) + threshold
        found[second] = found.get(second, 0) + capacity - threshold
    reach = len(mass) // 2
    assert {value: weight for value, weight in found.items() if weight} == {
        value - reach: weight for value, weight in enumerate(mass) if weight
    }


def _given(*words: int) -> discrete_gaussian.Words:
    left = list(words)
    return lambda size: np.array([left.pop(0) for _ in range(size)], dtype=np.uint64)


def test_a_tie_is_broken_by_the_next_64_bits() -> None:
    table = discrete_gaussian.AliasTable(Fraction(4))
    slot = int(np.flatnonzero((table._low > 0) & (table._high > 0))[0])
    word = (slot << (64 - table._bits)) + int(table._high[slot])
    low = int(table._low[slot])
    assert table.draw(1, _given(word, low - 1))[0] == table._values[2 * slot]
    assert table.draw(1, _given(word, low))[0] == table._values[2 * slot + 1]
    assert table.draw(1, _given(word - 1))[0] == table._values[2 * slot]


@pytest.mark.parametrize("sigma", [513.0, 600.0, 4e4, 1e7])
def test_a_convolution_is_the_law_within_the_stated_distance(sigma: float) -> None:
    """Exact variances, and a width σ̃ of at least 2 at every level: 5·e^(−8π²) is below 2⁻¹¹⁰."""
    variance = Fraction(sigma) ** 2
    parts = discrete_gaussian._parts(variance)
    left = variance
    for (stride, _), (further, _) in pairwise(parts):
        factor = further // stride
        here = min(Fraction(512**2), left / 2)
        rest = (left - here) / factor**2
        assert here * rest / left >= 4
        left = rest
    assert 5 * math.exp(-8 * math.pi**2) < 2.0**-110 < discrete_gaussian.DISTANCE


def test_a_convolution_is_the_law_point_by_point() -> None:
    """σ = 600 with 60 digits: the two narrower laws, convolved at single integers, against N_Z(0, 600²)."""
    variance = Fraction(600**2)
    stride = discrete_gaussian._parts(variance)[1][0]
    first, second = variance / 2, variance / 2 / stride**2
    with mpmath.workdps(60):

        def law(x: int, of: Fraction) -> Any:
            return mpmath.exp(-mpmath.mpf(x * x) * of.denominator / (2 * of.numerator))

        def total(of: Fraction) -> Any:
            reach = math.ceil(30 * math.sqrt(of))
            return mpmath.fsum(law(x, of) for x in range(-reach, reach + 1))

        norms = total(first) * total(second), total(variance)
        for z in (0, 1, 77, 150, 600, 3001):
            found = mpmath.fsum(law(z - stride * y, first) * law(y, second) for y in range(-90, 91)) / norms[0]
            assert abs(found * norms[1] / law(z, variance) - 1) < mpmath.mpf(2) ** -105


def test_noise_is_added_in_place_and_in_chunks() -> None:
    values = np.arange(50_000)
    alone = draw(4e8, 50_000, words_of(np.random.default_rng(3)))
    add_noise(values, 4e8, words_of(np.random.default_rng(3)))
    assert np.array_equal(values, np.arange(50_000) + alone)
    assert alone.dtype == np.int64


def test_what_a_key_stands_for_is_fixed() -> None:
    """Sites and server draw the same from one seed, on every machine: these numbers are part of the protocol."""
    drawn = draw(38_400.0**2, 40_000, words_from(b"k" * 32))
    assert drawn[:4].tolist() == [-35213, -6588, -32906, 28512]
    assert hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()[:16] == "19c0144b1be11940"
    assert np.array_equal(drawn, draw(38_400.0**2, 40_000, words_from(b"k" * 32)))
    taken_off = drawn.copy()
    add_noise(taken_off, 38_400.0**2, words_from(b"k" * 32), sign=-1)
    assert not taken_off.any()


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_variance_that_is_none_is_refused(variance: float) -> None:
    with pytest.raises(ValueError, match="finite and above 0"):
        draw(variance, 3, words_of(secure_generator()))


def test_shares_add_up_to_one_mechanism() -> None:
    """Eight shares of variance σ²/8, σ = 12, against the exact law of one draw of N_Z(0, 144)."""
    n, sigma, reach = 400_000, 12.0, 48
    total = np.sum([draw(sigma**2 / 8, n, words_of(secure_generator())) for _ in range(8)], axis=0)
    found = np.bincount(total[np.abs(total) <= reach] + reach, minlength=2 * reach + 1)
    expected = n * exact_law(sigma, reach)
    kept = expected > 5
    rest = n - expected[kept].sum()
    counts, wanted = np.append(found[kept], n - found[kept].sum()), np.append(expected[kept], rest)
    assert stats.chisquare(counts, wanted).pvalue > _P
