"""What held-out records may add to a release: counts, in coordinates behind those of the gradients.

A record is trained on or held out, never both, so one noise of multiplier z serves both: a trained record moves the
first coordinates by at most C, a held-out one the last k by at most s·C. For it the release has multiplier z/s, and it
takes part in every evaluation (docs/explanation/privacy.md, "Held-out records").
"""

from dataclasses import dataclass

from ..errors import PrivacyError
from .noise import grid_steps, l2_sensitivity

_SPARE = 1 - 2.0**-10
"""left for the rounding of sums in float64"""


@dataclass(frozen=True)
class HeldOut:
    """What a run declares of its evaluations at the sites."""

    numbers: int
    """k: coordinates that count"""
    evaluations: int
    """E: releases that hold counts, over the whole run"""
    sensitivity: float
    """s: what one held-out record moves a release by at most, in Δ₂ = G + √(d + k)"""

    def scale(self, coordinates: int) -> float:
        """The L2 bound on one record's part, in C: with rounding, which moves k coordinates by less than a grid step
        each, it moves a release by at most s·Δ₂. coordinates: d + k."""
        room = self.sensitivity * l2_sensitivity(coordinates) - self.numbers**0.5
        return min(1.0, room / grid_steps(coordinates)) * _SPARE

    def require_room(self, coordinates: int) -> None:
        """Raises PrivacyError where rounding alone would move a release by as much as a record may."""
        if self.scale(coordinates) < 2.0**-12:
            raise PrivacyError(
                f"evaluation: {self.numbers} counts in {self.evaluations} evaluations leave a held-out record "
                f"{self.sensitivity:.2g} of the clip norm, which rounding takes up; raise evaluation.every, or remove "
                "evaluation.per_class"
            )
