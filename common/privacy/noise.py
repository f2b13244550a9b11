"""Noise that leaves no floating-point trace: a cryptographic generator and an integer grid.

Sums are put on a grid of scale G / C by stochastic rounding; integer noise is added there (discrete_gaussian.py), so
the low bits of a float tell nothing (Mironov, CCS 2012; docs/explanation/privacy.md).
"""

import math
import os
from functools import lru_cache
from typing import Any

import numpy as np
from randomgen import AESCounter

from ..errors import PrivacyError

_LEAST_GRID = 2**16
_ROUNDING = 2.0**-8
"""what rounding may add to the sensitivity, as a part of it"""
_CHUNK = 2**16
"""coordinates put on the grid at once"""
LEAST_SHARE = 100.0
"""σ in grid steps that a share of the noise has at least: sums of such shares are one draw but for a factor of
1 ± 10^−40000 (Kairouz, Liu, Steinke 2021)"""


def secure_generator() -> np.random.Generator:
    """A generator over AES-128 in counter mode, its key drawn from the operating system; there is no seed to set."""
    bits: Any = AESCounter(key=int.from_bytes(os.urandom(16), "little"))  # a BitGenerator by interface, not by class
    return np.random.Generator(bits)


@lru_cache(maxsize=64)
def grid_steps(coordinates: int) -> int:
    """G: grid steps in one clip norm, the smallest power of two from 2^16 on with √d/G ≤ 2^-8."""
    return max(_LEAST_GRID, 2 ** math.ceil(math.log2(math.sqrt(coordinates) / _ROUNDING)))


def l2_sensitivity(coordinates: int) -> float:
    """Δ₂ = G + √d in grid steps: rounding moves each of the d coordinates by less than one step."""
    return grid_steps(coordinates) + coordinates**0.5


def grid_variance(noise_multiplier: float, coordinates: int) -> float:
    """σ² in grid steps², of N_Z(0, σ²) that is accounted as a Gaussian of multiplier z: (z·Δ₂)² + 1/12.

    The twelfth is what rounding a Gaussian to integers adds to its variance (accounting.py).
    """
    return (noise_multiplier * l2_sensitivity(coordinates)) ** 2 + 1 / 12


def require_wide(variance: float) -> None:
    """Raises PrivacyError for a share of the noise that is so narrow that shares do not add up to one draw."""
    if variance < LEAST_SHARE**2:
        raise PrivacyError(
            f"privacy: a share of the noise is {variance**0.5:.3g} grid steps wide; allowed: from {LEAST_SHARE:g} on; "
            "lower privacy.epsilon, or have fewer sites"
        )


def to_grid(values: np.ndarray, clip: float, grid: int, rng: np.random.Generator) -> np.ndarray:
    """Stochastic rounding onto a grid of `grid` steps per clip norm, unbiased.

    values: (d,) float64. Returns (d,) int64. Raises ValueError for values that are not finite.
    """
    on_grid = np.empty(values.shape, dtype=np.int64)
    scale = grid / clip
    for start in range(0, len(values), _CHUNK):
        scaled = values[start : start + _CHUNK] * scale
        if not (np.abs(scaled) < 2.0**62).all():  # and of NaN, too
            raise ValueError("a sum that is not finite, or too large, cannot be put on the grid")
        low = np.floor(scaled)
        on_grid[start : start + _CHUNK] = low + (rng.random(scaled.shape) < scaled - low)
    return on_grid


def from_grid(values: np.ndarray, clip: float, grid: int) -> np.ndarray:
    """(d,) int64 grid steps → (d,) float64."""
    return values * (clip / grid)
