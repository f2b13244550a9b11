"""The object that draws the batch is the one that says q: sampler, noise and accountant in one place.

A run declares (q, z, T) before it starts; ε follows from the declaration (accounting.py). The noise is discrete
Gaussian on a grid.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq

from ..errors import BudgetError, PrivacyError
from .accounting import epsilon_at_scale, epsilon_pld, items_of
from .discrete_gaussian import words_of
from .events import DiscreteGaussianDpEvent, History, Step, history_of, repeated, step_event
from .noise import from_grid, grid_steps, grid_variance, l2_sensitivity, require_wide, to_grid
from .pieces import Pieces

_LEAST_DELTA = 1e-13
_COARSER = 8.0
_LEAST, _MOST = 1e-2, 1e4
"""noise multipliers among which one is looked for"""


@dataclass(frozen=True)
class PrivacyPlan:
    """What one site declares for one run; ε is a function of it and of nothing else.

    Unit: one record of the site (`example`), or the site's whole contribution (`client`). Relation: add or remove one.
    Sampling: Poisson, rate q.
    """

    sampling_rate: float
    """q: probability that a unit is drawn in a step"""
    noise_multiplier: float
    """z = noise standard deviation ÷ sensitivity, both on the grid"""
    steps: int
    """T: steps that release something, over all rounds"""
    clip: float
    """C: L2 bound on one unit's contribution; where it adapts, the first"""
    delta: float
    coordinates: int
    """d: numbers released in a step"""
    denominator: float
    """public constant by which the noisy sum is divided: q × declared units behind the sum"""
    shares: int = 1
    """t − c: the fewest sites whose noise shares must make up the full noise; each adds variance σ²/shares"""
    most_shares: int = 1
    """n − c: honest sites where nobody is absent; what is then too much comes off (pieces.py)"""
    count_noise: float | None = None
    """σ_b: with an adaptive clip norm, noise on the count of whole updates, which is the last coordinate"""

    @property
    def variance(self) -> float:
        """σ² in grid steps², of the whole noise in one coordinate: (z·Δ₂)² + 1/12, or more beside a count.

        Update and count together are a release of z (Andrew et al. 2021, Theorem 1, where nothing is rounded): the
        count adds half of σ/σ_b to what one site moves, and less than one step, to which it is rounded. So
        σ²/z² = Δ₂² + (σ/2σ_b + 1)².
        """
        z, noise = self.noise_multiplier, self.count_noise
        if noise is None:
            return grid_variance(z, self.coordinates)
        a = z**-2 - (2 * noise) ** -2
        s = (1 / (2 * noise) + math.sqrt((2 * noise) ** -2 + a * (l2_sensitivity(self.coordinates) ** 2 + 1))) / a
        return s**2 + 1 / 12

    @property
    def grid(self) -> int:
        """G: grid steps in one clip norm."""
        return grid_steps(self.coordinates)

    @property
    def count_scale(self) -> float:
        """Grid steps in one unit of the count, so that the noise of every coordinate is σ_b units there."""
        return 0.0 if self.count_noise is None else self.variance**0.5 / self.count_noise

    @property
    def pieces(self) -> Pieces:
        """How each site's share of the noise is cut."""
        return Pieces.of(self.variance, self.shares, max(self.shares, self.most_shares))

    @property
    def step(self) -> Step:
        """What one step releases, as a ledger records it."""
        return step_event(self.sampling_rate, DiscreteGaussianDpEvent(self.noise_multiplier, self.coordinates))

    def epsilon(self, steps: int | None = None) -> float:
        """ε after `steps` (default: all T) steps."""
        steps = self.steps if steps is None else steps
        return epsilon_pld(history_of([repeated(self.step, steps)] if steps else []), self.delta)


def plan_for(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    clip: float,
    coordinates: int,
    declared_units: float,
    shares: int = 1,
    most_shares: int = 1,
    count_noise: float | None = None,
) -> PrivacyPlan:
    """The plan with the smallest noise multiplier (to 1e-4, rounded up) whose ε over all steps is at most `epsilon`.

    Raises PrivacyError when no noise multiplier up to 10⁴ reaches it, or the count's noise alone would not.
    """
    # a δ above the chance that a unit is drawn at all would be kept without any noise
    least = max(_LEAST_DELTA, sampling_rate * steps / 100)
    found = noise_multiplier(epsilon, min(delta, least), sampling_rate, steps, coordinates)
    if count_noise is not None and found >= 2 * count_noise:
        raise PrivacyError(
            f"privacy.clip_count_noise: {count_noise:g} received; ε needs noise {found:g} in all, so more than "
            f"{found / 2:g} on the count; raise it"
        )
    denominator = sampling_rate * declared_units
    plan = PrivacyPlan(
        sampling_rate,
        found,
        steps,
        clip,
        delta,
        coordinates,
        denominator,
        shares,
        max(shares, most_shares),
        count_noise,
    )
    require_wide(plan.variance / shares)
    return plan


@lru_cache(maxsize=1024)  # server, sites and report ask for the same
def noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int, coordinates: int) -> float:
    """z: the smallest (to 1e-4 of itself, at least 1e-4, rounded up) whose ε after `steps` is at most `epsilon`.

    Raises PrivacyError when none up to 10⁴ reaches it.
    """

    scale = min(1.0, max(1e-3, epsilon))

    def of(z: float) -> History:
        return history_of([repeated(step_event(sampling_rate, DiscreteGaussianDpEvent(z, coordinates)), steps)])

    def over(z: float, coarser: float = 1.0) -> float:
        """log of ε after all steps ÷ target, in reach of a root finder; coarser: an upper bound in less time."""
        found = epsilon_at_scale(items_of(of(z)), delta, scale * coarser)
        return math.log(min(max(found / epsilon, 1e-9), 1e9))

    def coarse(log_z: float) -> float:
        return over(math.exp(log_z), _COARSER)

    low, high = 0.5, 1.0
    while coarse(math.log(high)) > 0:
        low, high = high, high * 2
        if high > _MOST:
            raise PrivacyError(f"privacy.epsilon: no noise multiplier up to 10000 gives {epsilon} at δ = {delta}")
    while low > _LEAST and coarse(math.log(low)) <= 0:
        low, high = low / 2, low
    if low <= _LEAST:
        if coarse(math.log(_LEAST)) <= 0:
            return _LEAST
        low = _LEAST
    near = float(brentq(coarse, math.log(low), math.log(high), xtol=1e-4))  # pyright: ignore[reportArgumentType]
    slope = (coarse(near + 0.01) - coarse(near - 0.01)) / 0.02
    # what the coarse bound asks for too much; where ε has a jump there is no slope to go by
    less = over(math.exp(near)) / slope if slope < -0.1 else 0.0
    z = math.ceil(math.exp(near - max(0.0, less)) * 1e4) / 1e4
    while epsilon_pld(of(z), delta) > epsilon:  # what a ledger's gate computes
        z = math.ceil(z * (1 + 5e-5) * 1e4) / 1e4
    return z


class PoissonMechanism:
    """Draws Poisson batches and releases their noised sums, one release a draw, at most `plan.steps` in all.

    An empty batch is a step like any other: it is noised, released and charged. The random numbers come from `rng`,
    in production `noise.secure_generator()`.
    """

    def __init__(self, plan: PrivacyPlan, rng: np.random.Generator, steps_before: int = 0) -> None:
        self.plan = plan
        self.steps = steps_before
        self.excess = b""
        """of the last share: the seed of what may come off once the survivors are known"""
        self._rng = rng
        self._awaiting_release = False

    def draw(self, population: int) -> np.ndarray:
        """Indices of the records of the next step, each of `population` drawn independently with probability q.

        Raises BudgetError when all declared steps are used, PrivacyError when the last draw was not released.
        """
        if self._awaiting_release:
            raise PrivacyError("a batch was drawn but its noised sum was not released; the step cannot be repeated")
        if self.steps >= self.plan.steps:
            raise BudgetError(f"spent {self.steps} of {self.plan.steps} declared steps, asked 1 more, remaining 0")
        self.steps += 1
        self._awaiting_release = True
        return np.flatnonzero(self._rng.random(population) < self.plan.sampling_rate)

    def release(self, clipped_sum: np.ndarray) -> np.ndarray:
        """The noisy mean of the drawn batch.

        clipped_sum: (d,) float64, a sum of vectors of L2 norm at most C. Returns (d,) float64.
        Raises PrivacyError without a draw, or for a vector of another size.
        """
        noisy = self.share(clipped_sum, self.plan.clip)
        return from_grid(noisy, self.plan.clip, self.plan.grid) / self.plan.denominator

    def share(self, clipped_sum: np.ndarray, clip: float) -> np.ndarray:
        """The drawn batch's sum on the grid of `clip`, with this site's share of the noise: for a secure sum.

        Alone it protects the batch only when `plan.shares` is 1. Returns (d,) int64; `excess` belongs to it. Raises as
        `release`.
        """
        if not self._awaiting_release:
            raise PrivacyError("nothing was drawn: a sum can be released once, and only after its draw")
        if clipped_sum.shape != (self.plan.coordinates,):
            raise PrivacyError(f"the sum has shape {clipped_sum.shape}, declared were {self.plan.coordinates} numbers")
        on_grid = to_grid(clipped_sum, clip, self.plan.grid, self._rng)
        self._add_noise(on_grid)
        self._awaiting_release = False
        return on_grid

    def _add_noise(self, on_grid: np.ndarray) -> None:
        """In place: a sum of many millions of numbers is held once."""
        self.excess = self.plan.pieces.add(on_grid, words_of(self._rng))


class NoiselessControl(PoissonMechanism):
    """An audit's control: everything but the noise. What it releases has no privacy, and is charged as such."""

    def _add_noise(self, on_grid: np.ndarray) -> None:
        pass
