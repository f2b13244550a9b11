"""The unit of mode `client`: a site's whole update, clipped, and a clip norm that adapts to what updates are like.

McMahan et al. 2018 (DP-FedAvg); Andrew, Thakkar, McMahan, Ramaswamy 2021 (adaptive clipping).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .noise import from_grid

if TYPE_CHECKING:
    from .mechanism import PrivacyPlan


@dataclass(frozen=True)
class Contribution:
    """One site's part of one round, bounded; zero and 0 when the site's coin kept it out."""

    update: np.ndarray
    """(d,) float64, L2 norm at most the clip norm"""
    whole: float
    """½ when the update was left whole, −½ when it was cut"""


def clipped(update: np.ndarray, clip: float) -> Contribution:
    """f = min(1, C/‖Δ‖). update: (d,) float64; one that is not finite becomes zero."""
    if not np.isfinite(update).all():
        return Contribution(np.zeros_like(update), -0.5)
    norm = float(np.linalg.norm(update))
    return Contribution(update if norm <= clip else update * (clip / norm), 0.5 if norm <= clip else -0.5)


def to_vector(contribution: Contribution, plan: "PrivacyPlan", clip: float) -> np.ndarray:
    """What is put on the grid: the update and, where the clip norm adapts, the count scaled to the same noise.

    Returns (plan.coordinates,) float64.
    """
    if plan.count_noise is None:
        return contribution.update
    return np.append(contribution.update, contribution.whole * plan.count_scale * clip / plan.grid)


def from_total(total: np.ndarray, plan: "PrivacyPlan", clip: float) -> tuple[np.ndarray, float | None]:
    """The mean update (d,), and b̃: the noised share of updates left whole, where the clip norm adapts.

    total: (plan.coordinates,) int64, noise included. Both are divided by declared constants.
    """
    if plan.count_noise is None:
        return from_grid(total, clip, plan.grid) / plan.denominator, None
    return from_grid(total[:-1], clip, plan.grid) / plan.denominator, total[
        -1
    ] / plan.count_scale / plan.denominator + 0.5


def next_clip(clip: float, whole: float, quantile: float, learning_rate: float) -> float:
    """C ← C·exp(−η_C(b̃ − γ)): more whole updates than wanted lower the norm. The change is bounded by e in a round."""
    return clip * math.exp(-min(1.0, max(-1.0, learning_rate * (whole - quantile))))
