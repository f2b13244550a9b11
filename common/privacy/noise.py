"""Noise that leaves no floating-point trace: a cryptographic generator, an integer grid, Skellam.

Agarwal, Kairouz, Liu: "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021.
Sums are put on a grid of scale s = 2^16 / C by stochastic rounding; integer noise is added there, so the low bits of a
float tell nothing (Mironov, CCS 2012).
"""

import os
from typing import Any

import numpy as np
from randomgen import AESCounter

GRID_STEPS_PER_CLIP = 2**16
"""s·C: grid steps in one clip norm."""
_BY_POISSON = 2.0**33
"""grid steps²: at a Poisson mean of 2³² a double's rounding moves a probability by less than 1e-5 of itself"""
_FINE = 2.0**24
"""grid steps², 0.2 % of the least variance that it is added to"""


def secure_generator() -> np.random.Generator:
    """A generator over AES-128 in counter mode, its key drawn from the operating system; there is no seed to set."""
    bits: Any = AESCounter(key=int.from_bytes(os.urandom(16), "little"))  # a BitGenerator by interface, not by class
    return np.random.Generator(bits)


def l2_sensitivity(coordinates: int) -> float:
    """Δ₂ = s·C + √d in grid steps: rounding moves each of the d coordinates by less than one step."""
    return GRID_STEPS_PER_CLIP + coordinates**0.5


def skellam_variance(noise_multiplier: float, coordinates: int) -> float:
    """μ = (z·Δ₂)²: the variance, in grid steps², that gives noise multiplier z."""
    return (noise_multiplier * l2_sensitivity(coordinates)) ** 2


def to_grid(values: np.ndarray, clip: float, rng: np.random.Generator) -> np.ndarray:
    """Stochastic rounding onto the grid, unbiased.

    values: (d,) float64. Returns (d,) int64. Raises ValueError for values that are not finite.
    """
    scaled = values * (GRID_STEPS_PER_CLIP / clip)
    if not (np.abs(scaled) < 2.0**62).all():  # and of NaN, too
        raise ValueError("a sum that is not finite, or too large, cannot be put on the grid")
    low = np.floor(scaled)
    return (low + (rng.random(values.shape) < scaled - low)).astype(np.int64)


def from_grid(values: np.ndarray, clip: float) -> np.ndarray:
    """(d,) int64 grid steps → (d,) float64."""
    return values * (clip / GRID_STEPS_PER_CLIP)


def law(variance: float) -> str:
    """In words, what `skellam` draws from."""
    return "Skellam" if variance <= _BY_POISSON else "Rounded Gaussian and Skellam"


def drawn_variance(variance: float) -> float:
    """Of what `skellam` draws for a wanted variance."""
    return variance if variance <= _BY_POISSON else variance + _FINE


def skellam(variance: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) int64: noise of variance μ whose Rényi divergences are at most Skellam(μ)'s.

    Up to `_BY_POISSON` it is Skellam(μ) = Poisson(μ/2) − Poisson(μ/2). numpy draws Poisson in doubles, which round more
    the larger the mean is, from 2⁵³ on to even numbers only: the low bits of a sum would show without noise. Beyond, it
    is round(N(0, μ)) + Skellam(`_FINE`). For a shift Δ the divergence of the first is at most αΔ²/(2μ), which is below
    Skellam(μ)'s, and rounding and adding do not raise it; the second covers what doubles do to low bits. A sum of such
    draws, the shares of a secure sum, is one draw of the sum of their variances but for e^(−2π²σ²), σ² > 2³³: the
    characteristic function of a rounded normal repeats with period 2π and is that small where the copies meet.
    """
    if variance <= _BY_POISSON:
        return rng.poisson(variance / 2, size) - rng.poisson(variance / 2, size)
    return np.rint(rng.normal(0.0, variance**0.5, size)).astype(np.int64) + skellam(_FINE, size, rng)
