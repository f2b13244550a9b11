"""The object that draws the batch is the one that says q: sampler, noise and accountant in one place.

A run declares (q, z, T) before it starts; ε follows from the declaration (accounting.py). The noise is discrete
Gaussian on a grid.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq

from ..errors import BudgetError, PrivacyError
from .accounting import epsilon_at_scale, epsilon_pld, items_of
from .discrete_gaussian import words_of
from .events import DiscreteGaussianDpEvent, History, Step, history_of, of_run, repeated, step_event
from .held_out import HeldOut
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
    held_out: HeldOut | None = None
    """what the last coordinates count of records that are not trained on; None: there are none"""

    @property
    def trained(self) -> int:
        """Released coordinates of the records that are trained on: the first ones."""
        return self.coordinates - (0 if self.held_out is None else self.held_out.numbers)

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
    def count_variance(self) -> float:
        """Of one whole noise in a count of held-out records, in records²."""
        return (
            0.0 if self.held_out is None else self.variance / (self.grid * self.held_out.scale(self.coordinates)) ** 2
        )

    def counts(self, noisy: np.ndarray) -> np.ndarray:
        """(k,) float64: what held-out records count, of a release (coordinates,) int64 on the grid."""
        if self.held_out is None:
            return np.zeros(0)
        scaled = from_grid(noisy[self.trained :], self.clip, self.grid)
        return scaled / (self.clip * self.held_out.scale(self.coordinates))

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

    @property
    def evaluation(self) -> Step | None:
        """What one evaluation releases of held-out records, as a ledger records it."""
        if self.held_out is None:
            return None
        return DiscreteGaussianDpEvent(self.noise_multiplier, self.coordinates, self.held_out.sensitivity)

    def history(self, steps: int | None = None, evaluations: int | None = None) -> History:
        """What was released in so many steps and evaluations (default: all)."""
        declared = 0 if self.held_out is None else self.held_out.evaluations
        steps = self.steps if steps is None else steps
        evaluations = declared if evaluations is None else evaluations
        if not steps and not evaluations:
            return History()
        return history_of([of_run(self.step, steps, self.evaluation, evaluations)])

    def epsilon(self, steps: int | None = None, evaluations: int | None = None) -> float:
        """ε after so many steps and evaluations (default: all): the larger of a trained and of a held-out record's."""
        return epsilon_pld(self.history(steps, evaluations), self.delta)


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
    counted: int = 0,
    evaluations: int = 0,
) -> PrivacyPlan:
    """The plan with the smallest noise multiplier (to 1e-4, rounded up) whose ε over all steps is at most `epsilon`.

    counted: of the coordinates, those that count held-out records, which no more than `epsilon` may be spent on either.
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
    if counted:
        plan = replace(plan, held_out=_held_out(plan, epsilon, counted, evaluations))
    require_wide(plan.variance / shares)
    return plan


def _held_out(plan: PrivacyPlan, epsilon: float, numbers: int, evaluations: int) -> HeldOut:
    """How much a held-out record may move a release, so that all its evaluations cost it no more than `epsilon`."""
    least = noise_multiplier(epsilon, min(plan.delta, evaluations / 100), 1.0, evaluations, plan.coordinates)
    sensitivity = min(1.0, plan.noise_multiplier / least)
    while True:  # at most once or twice: the slack is that of this noise, not of one that is wider
        found = HeldOut(numbers, evaluations, sensitivity)
        if replace(plan, held_out=found).epsilon(0) <= epsilon:
            found.require_room(plan.coordinates)
            return found
        sensitivity *= 1 - 1e-4


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
        self.counts = np.zeros(0)
        """(k,) of the last release: what held-out records count, noise included"""
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

    def nobody(self) -> None:
        """In a draw's place, before a release for held-out records alone: no record is drawn, and no step is taken."""
        if self._awaiting_release:
            raise PrivacyError("a batch was drawn but its noised sum was not released; the step cannot be repeated")
        self._awaiting_release = True

    def release(self, clipped_sum: np.ndarray) -> np.ndarray:
        """The noisy mean of the drawn batch; what held-out records count is in `counts`.

        clipped_sum: (d,) float64, a sum of vectors of L2 norm at most C. Returns (trained,) float64.
        Raises PrivacyError without a draw, or for a vector of another size.
        """
        plan = self.plan
        noisy = self.share(clipped_sum, plan.clip)
        self.counts = plan.counts(noisy)
        return from_grid(noisy[: plan.trained], plan.clip, plan.grid) / plan.denominator

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
