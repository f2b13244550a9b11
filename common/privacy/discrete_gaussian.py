"""Discrete Gaussian noise N_Z(0, σ²): P(x) ∝ exp(−x²/(2σ²)) over the integers, from tables of integer probabilities.

Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy". A draw looks up an alias table (Walker
1977; Vose 1991) whose probabilities are integers that sum to 2¹²⁸, and compares whole random words: no floating point
number stands between the generator and the result. A law too wide for one table is x + k·y of two narrower ones
(Micciancio and Walter 2017, "Gaussian Sampling over the Integers: Efficient, Generic, Constant-Time", Section 4.1).

A draw differs from the exact law by less than `DISTANCE` in total variation, which accounting.py charges.
"""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

DISTANCE = 2.0**-96
"""bound on the total variation between a draw and N_Z: tables are off by at most 2⁻¹¹⁰ each, a convolution by e⁻⁷⁸"""
WIDEST = 512
"""σ of the widest table: 2¹⁴ slots, which a second-level cache holds"""
_BITS = 128
_FIXED = 192
"""bits after the point of weights while a table is made"""
TAIL = 13.5
"""standard deviations: the mass beyond is below 2⁻¹³⁰"""
_SMOOTH = 2
"""σ̃ of a convolution: the law of x + k·y is N_Z within a factor 1 ± 5·e^(−2π²σ̃²)"""
_CHUNK = 2**14
"""coordinates drawn at once: what a draw needs beside its result. It decides which words go where, so sites and server
have the same one"""


Words = Callable[[int], np.ndarray]
"""n → (n,) uint64, uniform and independent of all words before"""


def words_of(rng: np.random.Generator) -> Words:
    return lambda size: rng.integers(0, 2**64, size, dtype=np.uint64)


def words_from(key: bytes) -> Words:
    """The key stream of ChaCha20 under a key of 32 bytes that serves nothing else: the same words wherever it is."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return lambda size: np.frombuffer(stream.update(bytes(8 * size)), "<u8").astype(np.uint64)


def discrete_gaussian(variance: float, size: int, words: Words) -> np.ndarray:
    """(size,) int64, independent draws of N_Z(0, variance). Raises ValueError for a variance that is not above 0."""
    drawn = np.zeros(size, dtype=np.int64)
    add_noise(drawn, variance, words)
    return drawn


def add_noise(values: np.ndarray, variance: float, words: Words, sign: int = 1) -> None:
    """Adds an independent draw of N_Z(0, variance), times `sign`, to each of `values` (d,) int64, in place.

    What is drawn follows from the words, on every machine. Raises ValueError for a variance that is not finite and
    above 0.
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"variance {variance} received; allowed: finite and above 0")
    parts = _parts(Fraction(variance))
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        for stride, table in parts:
            drawn = table.draw(len(chunk), words)
            if stride * sign != 1:
                drawn *= stride * sign
            chunk += drawn


@lru_cache(maxsize=8)
def _parts(variance: Fraction) -> tuple[tuple[int, "AliasTable"], ...]:
    """Strides and tables whose sum Σ stride·draw is N_Z(0, variance).

    For x of variance V₁ and y of variance (V − V₁)/k², x + k·y has variance V, and P(z)/N_Z(z) is constant up to the
    mass of a Gaussian of width σ̃ = √(V₁·V_y/V) over a shifted ℤ: within 2·Σ_j exp(−2π²σ̃²j²) of 1.
    """
    parts, stride = [], 1
    while variance > WIDEST**2:
        here = min(Fraction(WIDEST**2), variance / 2)
        factor = math.isqrt(math.floor(here * (variance - here) / (variance * _SMOOTH**2)))
        parts.append((stride, AliasTable(here)))
        variance, stride = (variance - here) / factor**2, stride * factor
    return *parts, (stride, AliasTable(variance))


class AliasTable:
    """N_Z(0, variance) cut off where less than 2⁻¹³⁰ is left, in 2^m slots of probability 2⁻ᵐ each.

    A slot gives one of two values: the first when the random word's other bits, read as a number, lie below the
    slot's threshold. 64 bits decide but for a tie, which the next 64 break: 128 bits in all.
    """

    def __init__(self, variance: Fraction) -> None:
        mass = integer_probabilities(variance)
        reach = len(mass) // 2
        self._bits = max(1, math.ceil(math.log2(len(mass))))
        slots = 2**self._bits
        thresholds, others = _alias(mass + [0] * (slots - len(mass)), 2 ** (_BITS - self._bits))
        self._high = np.array([threshold >> 64 for threshold in thresholds], dtype=np.uint64)
        self._low = np.array([threshold % 2**64 for threshold in thresholds], dtype=np.uint64)
        self._values = np.stack([np.arange(slots), others], axis=1).ravel() - reach

    def draw(self, size: int, words: Words) -> np.ndarray:
        """(size,) int64."""
        drawn = words(size)
        slots = (drawn >> np.uint64(64 - self._bits)).view(np.int64)
        drawn &= np.uint64(2 ** (64 - self._bits) - 1)
        thresholds = self._high.take(slots)
        second = drawn >= thresholds
        ties = np.flatnonzero(drawn == thresholds)
        if len(ties):
            second[ties] = words(len(ties)) >= self._low[slots[ties]]
        slots <<= 1
        slots += second
        return self._values.take(slots)


def integer_probabilities(variance: Fraction) -> list[int]:
    """P(−R) … P(R) of N_Z(0, variance) in units of 2⁻¹²⁸, which sum to 2¹²⁸; each is off by less than one unit but
    the middle one, which takes what rounding left over."""
    reach = math.ceil(TAIL * math.sqrt(variance))
    one = 1 << _FIXED
    ratio, shrink = _exponential(-1 / (2 * variance)), _exponential(-1 / variance)
    weights = [one]
    for _ in range(reach):  # exp(−(x+1)²/(2V)) = exp(−x²/(2V)) · exp(−(2x+1)/(2V))
        weights.append(weights[-1] * ratio >> _FIXED)
        ratio = ratio * shrink >> _FIXED
    total = 2 * sum(weights) - one
    half = [(weight << _BITS) // total for weight in weights]
    half[0] += (1 << _BITS) - (2 * sum(half) - half[0])
    return half[:0:-1] + half


def _exponential(exponent: Fraction) -> int:
    """e^exponent, in units of 2^−_FIXED."""
    with localcontext(prec=90):
        value = (Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()
        return int(value * (1 << _FIXED))


def _alias(mass: list[int], capacity: int) -> tuple[list[int], list[int]]:
    """Thresholds and second values of slots that hold `capacity` each (Vose 1991), in integers, so without rounding."""
    thresholds, others = list(mass), list(range(len(mass)))
    small = [slot for slot, weight in enumerate(mass) if weight < capacity]
    large = [slot for slot, weight in enumerate(mass) if weight >= capacity]
    left = list(mass)
    while small and large:
        slot, giver = small.pop(), large[-1]
        thresholds[slot], others[slot] = left[slot], giver
        left[giver] -= capacity - left[slot]
        if left[giver] < capacity:
            small.append(large.pop())
    for slot in large + small:
        thresholds[slot] = capacity
    return thresholds, others
