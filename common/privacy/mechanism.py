"""The object that draws the batch is the one that says q: sampler, noise and accountant in one place.

A run declares (q, z, T) before it starts; ε follows from the declaration. The noise is Skellam on a grid, which PLD
accountants do not know, so ε comes from Rényi DP at integer and fractional orders (docs/explanation/privacy.md); the
Gaussian accountants of dp-accounting are here for cross-checks and explanations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from scipy.special import gammaln

from ..errors import BudgetError, PrivacyError
from .events import SkellamDpEvent, Step, step_event
from .noise import from_grid, l2_sensitivity, skellam, skellam_variance, to_grid

RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE
_ORDERS = np.concatenate([np.arange(2, 65), [80, 96, 128, 192, 256, 384, 512]])
_FRACTIONS = np.linspace(0, 1, 20, endpoint=False)
_FARTHEST = 10.0
_ROUNDING = 1e-14
"""what logarithms of sums near 1 may lose"""
_FINE_BELOW = 16
"""above it a straight line between integer orders loses nothing that shows"""


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
    """t − c: sites whose noise shares make up the full noise; each adds variance μ/shares"""
    count_noise: float | None = None
    """σ_b: with an adaptive clip norm, noise on the count of whole updates, which is the last coordinate"""

    @property
    def variance(self) -> float:
        """μ in grid steps², of the whole noise in one coordinate: (z·Δ₂)², or (z_Δ·Δ₂)² beside a count.

        z_Δ = (z⁻² − (2σ_b)⁻²)^(−½) (Andrew et al. 2021, Theorem 1): update and count together are a release of z.
        """
        z = self.noise_multiplier
        if self.count_noise is not None:
            z = (z**-2 - (2 * self.count_noise) ** -2) ** -0.5
        return skellam_variance(z, self.coordinates)

    @property
    def count_scale(self) -> float:
        """Grid steps in one unit of the count, so that the noise of every coordinate is σ_b units there."""
        return 0.0 if self.count_noise is None else self.variance**0.5 / self.count_noise

    @property
    def step(self) -> Step:
        """What one step releases, as a ledger records it."""
        return step_event(self.sampling_rate, SkellamDpEvent(self.noise_multiplier, self.coordinates))

    def epsilon(self, steps: int | None = None) -> float:
        """ε after `steps` (default: all T) steps."""
        return skellam_epsilon(
            self.sampling_rate,
            self.noise_multiplier,
            self.steps if steps is None else steps,
            self.delta,
            self.coordinates,
        )


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
    count_noise: float | None = None,
) -> PrivacyPlan:
    """The plan with the smallest noise multiplier (to 1e-4, rounded up) whose ε over all steps is at most `epsilon`.

    Raises PrivacyError when no noise multiplier up to 10⁴ reaches it, or the count's noise alone would not.
    """
    denominator = sampling_rate * declared_units
    plan = PrivacyPlan(sampling_rate, 1.0, steps, clip, delta, coordinates, denominator, shares, count_noise)
    low, high = 1e-2, 1.0
    while replace(plan, noise_multiplier=high).epsilon() > epsilon:
        low, high = high, high * 2
        if high > 1e4:
            raise PrivacyError(f"privacy.epsilon: no noise multiplier up to 10000 gives {epsilon} at δ = {delta}")
    while high - low > 1e-4:
        middle = (low + high) / 2
        if replace(plan, noise_multiplier=middle).epsilon() > epsilon:
            low = middle
        else:
            high = middle
    found = math.ceil(high * 1e4) / 1e4
    if count_noise is not None and found >= 2 * count_noise:
        raise PrivacyError(
            f"privacy.clip_count_noise: {count_noise:g} received; ε needs noise {found:g} in all, so more than "
            f"{found / 2:g} on the count; raise it"
        )
    return replace(plan, noise_multiplier=found)


def skellam_rdp(order: np.ndarray, l1: float, l2: float, variance: float) -> np.ndarray:
    """ε(α) of one unsampled release of integer sensitivity Δ₁, Δ₂ with Skellam noise of variance μ.

    Agarwal, Kairouz, Liu 2021: ε(α) ≤ αΔ₂²/(2μ) + min(((2α−1)Δ₂² + 6Δ₁)/(4μ²), 3Δ₁/(2μ)), which they prove for integer
    α. At real α only the first branch is used. It holds there too: with φ(x) = log I_|x|(μ), Taylor gives
    αφ(k−Δ) + (1−α)φ(k) ≤ φ(k−αΔ) + α(α−1)Δ²/2 · max(−φ''), and −φ'' ≤ 1/μ + 1/(2μ²) + O(μ⁻³) by Debye's expansion; the
    sum over k of I_|k−αΔ|(μ) is e^μ up to a factor 1 + O(e^−2μ). Tested against exact sums.
    """
    second_order = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    extra = np.where(order == np.floor(order), np.minimum(second_order, 3 * l1 / (2 * variance)), second_order)
    return order * l2**2 / (2 * variance) + extra


def grid_rdp(order: np.ndarray, noise_multiplier: float, coordinates: int) -> np.ndarray:
    """ε(α) of one unsampled release of `coordinates` numbers on the grid, with Δ₁ ≤ √d·Δ₂ and μ = (z·Δ₂)²."""
    l2 = l2_sensitivity(coordinates)
    return skellam_rdp(order, math.sqrt(coordinates) * l2, l2, skellam_variance(noise_multiplier, coordinates))


def poisson_sampled_rdp(sampling_rate: float, rdp: np.ndarray) -> np.ndarray:
    """ε'(α) of the Poisson-sampled mechanism for α = 2 … A.

    rdp: (A + 1,) with rdp[l] = ε(l) of the unsampled mechanism; entries 0 and 1 are not used (their terms have ε = 0).
    Returns (A − 1,) for the orders 2 … A.
    ε'(α) = 1/(α−1) · log Σ_l C(α,l) (1−q)^{α−l} q^l e^{(l−1)ε(l)}; it holds in both directions of add-or-remove because
    the noise is symmetric (Mironov, Talwar, Zhang 2019, Theorem 5).
    """
    if sampling_rate == 1:
        return rdp[2:]
    result = np.empty(len(rdp) - 2)
    log_q, log_rest = math.log(sampling_rate), math.log1p(-sampling_rate)
    cumulants = np.arange(-1, len(rdp) - 1) * rdp
    cumulants[:2] = 0
    log_factorial = gammaln(np.arange(1, len(rdp) + 1))
    for order in range(2, len(rdp)):
        terms = np.arange(order + 1)
        log_binomial = log_factorial[order] - log_factorial[terms] - log_factorial[order - terms]
        exponents = log_binomial + (order - terms) * log_rest + terms * log_q + cumulants[: order + 1]
        largest = exponents.max()
        result[order - 2] = (largest + math.log(np.exp(exponents - largest).sum())) / (order - 1)
    return result


def rdp_orders() -> np.ndarray:
    """The orders α that every curve is known at: fractions from 1.05 to 32, integers above."""
    fine = np.concatenate([(low + _FRACTIONS) for low in range(1, 32)])[1:]
    return np.union1d(fine, _ORDERS.astype(float))


def sampled_rdp(sampling_rate: float, release: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Orders and ε'(α) of one Poisson-sampled release, integer orders and the fractions between them.

    release: ε(α) of the unsampled mechanism at an array of real orders. Two upper bounds at a fraction, the lower
    counts: the straight line between its neighbours ((α−1)·D_α is convex in α; van Erven and Harremoës 2014,
    Corollary 2), and `_fractional_rdp`.
    """
    rdp = release(np.arange(_ORDERS[-1] + 1))
    at_integers = np.concatenate([[0.0], poisson_sampled_rdp(sampling_rate, rdp)])  # orders 1 … A
    cumulant = (np.arange(1, len(rdp)) - 1) * at_integers  # (α − 1)·ε'(α)
    orders = rdp_orders()
    line = np.interp(orders - 1, np.arange(len(cumulant)), cumulant) / (orders - 1)
    for i, order in enumerate(orders):
        if order < _FINE_BELOW and order != math.floor(order) and sampling_rate < 1:
            line[i] = min(line[i], _fractional_rdp(float(order), sampling_rate, rdp, release))
    return orders, np.maximum(line, _ROUNDING)


def _fractional_rdp(
    order: float, sampling_rate: float, rdp: np.ndarray, release: Callable[[np.ndarray], np.ndarray]
) -> float:
    """ε'(α) at a fraction α, m = ⌊α⌋, from moments of the likelihood ratio X at real orders.

    With b = qX/(1−q): (1 + b)^α ≤ Σ_{l≤m} C(α,l)·b^l + K_β·b^β for any β in [α, m+1], where K_β = sup of what the sum
    leaves over, divided by b^β. Expectations follow term by term, E[X^l] ≤ e^{(l−1)ε(l)}, and E[X] = 1 exactly.
    """
    log_q, log_rest = math.log(sampling_rate), math.log1p(-sampling_rate)
    terms = np.arange(math.floor(order) + 1)
    cumulants = (terms - 1) * rdp[terms]
    cumulants[:2] = 0
    logs = _log_binomial(order, terms) + (order - terms) * log_rest + terms * log_q + cumulants
    powers, log_factors = _remainder_factors(order)
    tails = log_factors + (order - powers) * log_rest + powers * log_q + (powers - 1) * release(powers)
    return float(np.logaddexp(np.logaddexp.reduce(logs), tails.min())) / (order - 1)


def _log_binomial(order: float, terms: np.ndarray) -> np.ndarray:
    """log C(α, l) for l ≤ ⌊α⌋ + 1, where it is positive."""
    return gammaln(order + 1) - gammaln(terms + 1) - gammaln(order - terms + 1)


@lru_cache(maxsize=1024)
def _remainder_factors(order: float) -> tuple[np.ndarray, np.ndarray]:
    """Powers β and log K_β.

    K_α = 1 and K_{m+1} = C(α, m+1): compare derivatives. Between them the supremum is taken on a logarithmic grid; the
    remainder's elasticity lies in [α, m+1], so a grid of width h is off by a factor of at most e^{h/2}, added. Outside
    the grid the two ends bound it.
    """
    whole = math.floor(order)
    logs = np.linspace(-_FARTHEST, _FARTHEST, 4001)
    b = np.exp(logs)
    small, large = b[b < 0.5], b[b >= 0.5]
    term = math.exp(_log_binomial(order, np.array(whole + 1))) * small ** (whole + 1)
    rest = term.copy()  # the series' later terms, where they converge fast
    for power in range(whole + 2, whole + 60):
        term *= small * ((order - power + 1) / power)
        rest += term
    terms = np.arange(whole + 1)
    first = (np.exp(_log_binomial(order, terms)) * large[:, None] ** terms).sum(1)
    left_over = np.concatenate([rest, (1 + large) ** order - first])
    powers = order + (whole + 1 - order) * np.linspace(0, 1, 13)
    half_step = (logs[1] - logs[0]) / 2
    on_grid = (np.log(left_over) - np.outer(powers, logs)).max(1) + half_step
    last = float(_log_binomial(order, np.array(whole + 1)))
    outside = np.maximum(-_FARTHEST * (powers - order), last - _FARTHEST * (whole + 1 - powers))
    log_factors = np.maximum(on_grid, outside)
    log_factors[0], log_factors[-1] = 0.0, last
    return powers, log_factors


@lru_cache(maxsize=4096)
def skellam_step_rdp(sampling_rate: float, noise_multiplier: float, coordinates: int) -> tuple[np.ndarray, np.ndarray]:
    """Orders and ε'(α) of one step of `coordinates` numbers."""
    return sampled_rdp(sampling_rate, lambda order: grid_rdp(order, noise_multiplier, coordinates))


def skellam_epsilon(sampling_rate: float, noise_multiplier: float, steps: int, delta: float, coordinates: int) -> float:
    """ε of `steps` Poisson-sampled Skellam releases of `coordinates` numbers, by RDP. 0 steps spend 0."""
    if steps == 0:
        return 0.0
    orders, rdp = skellam_step_rdp(sampling_rate, noise_multiplier, coordinates)
    epsilon, _ = compute_epsilon(orders.tolist(), (steps * rdp).tolist(), delta)
    return float(epsilon)


@lru_cache(maxsize=4096)  # by PLD it takes a second: once for all sites and runs of one declaration
def gaussian_epsilon(
    sampling_rate: float, noise_multiplier: float, steps: int, delta: float, accountant: str = "pld"
) -> float:
    """ε of the sampled Gaussian by dp-accounting ("pld" or "rdp"), for cross-checks. Raises PrivacyError otherwise."""
    if steps == 0:
        return 0.0
    if accountant not in ("pld", "rdp"):
        raise PrivacyError(f"accountant: received '{accountant}'; allowed: pld, rdp")
    event = SelfComposedDpEvent(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)), steps)
    rdp = accountant == "rdp"
    account = RdpAccountant(neighboring_relation=RELATION) if rdp else pld_account(noise_multiplier)
    return float(account.compose(event).get_epsilon(delta))


def pld_account(least_noise: float) -> PLDAccountant:
    """Losses grow as 1/z², and with them the time on a fixed grid; a coarser one is still an upper bound."""
    return PLDAccountant(RELATION, value_discretization_interval=1e-4 * max(1, 0.25 / least_noise**2))


class PoissonMechanism:
    """Draws Poisson batches and releases their noised sums, one release a draw, at most `plan.steps` in all.

    An empty batch is a step like any other: it is noised, released and charged. The random numbers come from `rng`,
    in production `noise.secure_generator()`.
    """

    def __init__(self, plan: PrivacyPlan, rng: np.random.Generator, steps_before: int = 0) -> None:
        self.plan = plan
        self.steps = steps_before
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
        return from_grid(self.share(clipped_sum, self.plan.clip), self.plan.clip) / self.plan.denominator

    def share(self, clipped_sum: np.ndarray, clip: float) -> np.ndarray:
        """The drawn batch's sum on the grid of `clip`, with this site's share of the noise: for a secure sum.

        Alone it protects the batch only when `plan.shares` is 1. Returns (d,) int64. Raises as `release`.
        """
        if not self._awaiting_release:
            raise PrivacyError("nothing was drawn: a sum can be released once, and only after its draw")
        if clipped_sum.shape != (self.plan.coordinates,):
            raise PrivacyError(f"the sum has shape {clipped_sum.shape}, declared were {self.plan.coordinates} numbers")
        on_grid = to_grid(clipped_sum, clip, self._rng)
        noisy = on_grid + self._noise()
        self._awaiting_release = False
        return noisy

    def _noise(self) -> np.ndarray:
        return skellam(self.plan.variance / self.plan.shares, self.plan.coordinates, self._rng)


class NoiselessControl(PoissonMechanism):
    """An audit's control: everything but the noise. What it releases has no privacy, and is charged as such."""

    def _noise(self) -> np.ndarray:
        return np.zeros(self.plan.coordinates, dtype=np.int64)
