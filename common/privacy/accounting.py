"""ε of a history: everything that was ever released from one data set, whatever run asked for it.

Composed over the whole history at the data set's δ, add-or-remove-one relation. Each release is a Poisson-sampled
discrete Gaussian, accounted as the Gaussian of its noise multiplier: by dp-accounting's privacy loss distributions
where all was declared beforehand, by a Rényi filter where a run may depend on the results of earlier ones (Feldman and
Zrnic 2021, "Individual Privacy Accounting via a Rényi Filter", Theorem 4.3). What separates the two laws, the slack, is
charged to δ (docs/explanation/privacy.md).
"""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache, reduce

import numpy as np
from dp_accounting import NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism
from dp_accounting.rdp import compute_epsilon

from ..errors import PrivacyError
from . import discrete_gaussian
from .events import ApartDpEvent, DiscreteGaussianDpEvent, History, NonPrivateDpEvent, Step, history_of
from .noise import grid_variance

RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE
ACCOUNTANT = "privacy loss distributions (PLD) of the Poisson-sampled Gaussian, by dp-accounting"
SLACK = 1e-3
"""the part of δ that is kept for what separates the releases from Gaussians, fixed before the first of them"""
_RATIO = 1e-4
"""the factor e^±η that may separate the laws of all releases together, where ε is so large that τ does not fit"""
_ALWAYS = 1 - 1e-9
"""a rate above which the library's differences of 1 and it have lost their digits"""
_SPARE = 1.0
"""by which other accountants' ε may be larger near the largest ε that has a bound"""
_REACH = discrete_gaussian.TAIL - 0.5
"""σ within which draws are as likely as their law says, whatever is added to them by one unit: the grid is far finer"""
ORDERS = np.unique(
    np.concatenate(
        [np.arange(1.05, 3, 0.05), np.arange(3, 16, 0.25), np.arange(16, 65), [80, 96, 128, 192, 256, 384, 512]]
    ).round(2)
)
"""α at which Rényi curves are known"""
_KL = 1.03 / 120**2 / 48
"""× σ⁻⁸: bound on the KL divergence between N_Z(0, σ²) and round(N(0, σ² − 1/12)), from σ = 1 on"""
_MOST_STEPS = 100_000
"""that privacy loss distributions are composed of"""
_CELLS = 500_000
"""of a privacy loss distribution, some 4 MB each"""
_PRV_ERROR, _MOST_PRV_CELLS = 0.01, 5e6
"""of Opacus' PRV: what its mesh may add to ε, and some 40 MB an array"""
_MESH = 0.03
"""of a privacy loss distribution, over √T, for ε near 1: what it adds to ε is near T·mesh²/2"""


def rates(step: Step) -> tuple[float, float]:
    """(q, z) of a private step."""
    release = released(step)
    return getattr(step, "sampling_probability", 1.0), release.noise_multiplier / release.sensitivity


def released(step: Step) -> DiscreteGaussianDpEvent:
    """What a private step releases of its draw."""
    release = step.event if isinstance(step, PoissonSampledDpEvent) else step
    if not isinstance(release, DiscreteGaussianDpEvent):
        raise PrivacyError(f"event {type(release).__name__}: has no noise multiplier")
    return release


_MOST_SIDES = 32
"""ways for a record to be on either side of several runs that are looked at one by one"""


def sides(history: History) -> list[History]:
    """What one record may have taken part in, as histories of plain steps: in each run with held-out records either
    what was released of those that were trained on, or of those that were held out.

    Another run may hold other records out, so a record may be on another side of each. Of more than `_MOST_SIDES` ways
    one that covers them all: both sides of each run.
    """
    plain = History({step: count for step, count in history.items() if not isinstance(step, ApartDpEvent)})
    found = [plain]
    for event, count in items_of(history):
        if not isinstance(event, ApartDpEvent):
            continue
        trained, held = (history_of([] if one is None else [one]) for one in (event.trained, event.held_out))
        ways = [_times(trained, count - out) + _times(held, out) for out in range(count + 1)]
        found = [before + way for before in found for way in ways]
        if len(found) > _MOST_SIDES:
            return [together(history)]
    return found


def together(history: History) -> History:
    """As if each record had been on both sides of every run: an upper bound."""
    found: History = History()
    for step, count in history.items():
        if isinstance(step, ApartDpEvent):
            found += _times(history_of([one for one in (step.trained, step.held_out) if one is not None]), count)
        else:
            found[step] += count
    return found


def _times(history: History, count: int) -> History:
    return History({step: count * each for step, each in history.items() if count})


def is_private(history: History) -> bool:
    return not any(isinstance(step, NonPrivateDpEvent) for step in history)


def distance(history: History) -> float:
    """τ: total variation between all releases together and Gaussians that were rounded, Poisson-sampled alike.

    A coordinate of N_Z(0, σ²) has KL divergence (1/120)²/(48σ⁸) from a rounded Gaussian, to leading order; KL adds up
    over coordinates and adaptive steps, and Pinsker's inequality gives √(KL/2). Draws that are exact to `DISTANCE`, and
    shares whose sum is one draw but for 10^−40000, add to it.
    """
    divergence = draws = 0.0
    for step, count in history.items():
        release = released(step)
        variance = grid_variance(release.noise_multiplier, release.coordinates)
        divergence += count * release.coordinates * _KL / variance**4
        draws += count * release.coordinates
    return math.sqrt(divergence / 2) + 2 * draws * discrete_gaussian.DISTANCE


def ratio(history: History, epsilon: float, delta: float) -> float:
    """η: all releases together and rounded Gaussians are within a factor e^±η of one another, but for a probability
    that, times e^ε, is below half of the slack's part of δ.

    Noise beyond K·σ in any of n coordinates has probability 2n·e^(−K²/2); within, the laws of one coordinate differ by
    a factor of e^±(K⁴/(2000·σ⁴)), for K from 8 and σ from 100 on. Infinite where K is beyond `_REACH`: draws end soon
    after, and what only one of two neighbours can give has a probability that no ε covers.
    """
    reach = 2 * (epsilon - _most(history, delta)) + _REACH**2  # K²
    if reach > _REACH**2:
        return math.inf
    total = 0.0
    for step, count in history.items():
        release = released(step)
        variance = grid_variance(release.noise_multiplier, release.coordinates)
        total += count * release.coordinates * reach**2 / (2000 * variance**2)
    return total


def _most(history: History, delta: float) -> float:
    """The ε at which K is `_REACH`: 50 or so."""
    numbers = sum(count * released(step).coordinates for step, count in history.items())
    return _REACH**2 / 2 - math.log(10 * numbers / (SLACK * delta))


def added(history: History, epsilon: float, delta: float, spare: float = 0.0) -> float:
    """What the slack adds to ε beside its part of δ: 0, or twice `_RATIO`; infinite where it does not fit in.

    Gaussians that are (ε, δ')-private at a total variation of τ give (ε, δ' + (1 + e^ε)·τ); at a ratio of η, but for a
    probability of κ, (ε + 2η, e^η·δ' + (1 + e^(ε+η))·κ). spare: what ε is larger by where the latter is judged, so that
    an accountant with a slightly larger one, which stands beside it, is not without a bound.
    """
    if math.isinf(epsilon):
        return 0.0
    if (1 + math.exp(min(epsilon, 700.0))) * distance(history) <= SLACK * delta:
        return 0.0
    return 2 * _RATIO if ratio(history, epsilon + spare, delta) <= _RATIO else math.inf


def with_slack(epsilon_at: Callable[[float], float], history: History, delta: float, spare: float = 0.0) -> float:
    """ε at δ of the releases, from ε(δ') of Gaussians. spare: as in `added`."""
    epsilon = epsilon_at(delta * (1 - SLACK))
    return epsilon + added(history, epsilon, delta, spare)


def epsilon_pld(history: History, delta: float) -> float:
    """The ε that counts for what was declared beforehand: 0 for an empty history, infinite after a release without
    noise. An upper bound, add-or-remove in both directions."""
    if not history:
        return 0.0
    if not is_private(history):
        return math.inf
    return max(_epsilon_pld(items_of(one), delta) for one in sides(history))


Items = tuple[tuple[Step, int], ...]


def items_of(history: History) -> Items:
    """Equal histories give equal tuples."""
    return tuple(sorted(history.items(), key=lambda item: repr(item[0])))


@lru_cache(maxsize=4096)
def _epsilon_pld(items: Items, delta: float) -> float:
    if not items:
        return 0.0
    first = epsilon_at_scale(items, delta, 1.0)
    return first if first >= 1 else epsilon_at_scale(items, delta, max(1e-3, first))


def epsilon_at_scale(items: Items, delta: float, scale: float) -> float:
    """An upper bound of ε, the tighter and the slower the smaller `scale` is; where that is ε, tight. By Rényi
    DP for more than `_MOST_STEPS`, whose composition takes minutes, and for an ε so large that e^ε has no number."""
    if sum(count for _, count in items) > _MOST_STEPS:
        return epsilon_rdp(History(dict(items)), delta)
    composed = _composed(items, scale)
    with np.errstate(over="ignore"):  # of e^ε, where ε is in the hundreds
        found = with_slack(lambda at: float(composed.get_epsilon_for_delta(at)), History(dict(items)), delta, _SPARE)
    return found if math.isfinite(found) else epsilon_rdp(History(dict(items)), delta)


def delta_pld(history: History, epsilon: float) -> float:
    """δ(ε) of a private history, slack included: at most 1."""
    return max(_delta_pld(one, epsilon) for one in sides(history))


def _delta_pld(history: History, epsilon: float) -> float:
    if not history:
        return 0.0
    slack = (1 + math.exp(epsilon)) * distance(history)
    return min(1.0, float(_composed(items_of(history), 1.0).get_delta_for_epsilon(epsilon)) + slack)


@lru_cache(maxsize=8)
def _composed(items: Items, scale: float) -> PrivacyLossDistribution:
    """The losses of a whole history that ends near ε = `scale`, or above where that is 1."""
    mesh = loss_mesh(items, scale)
    parts = [_losses(*rates(step), count, mesh) for step, count in items]
    return reduce(lambda both, part: both.compose(part), parts)


def _losses(rate: float, noise: float, count: int, mesh: float) -> PrivacyLossDistribution:
    """Of `count` equal steps; without sampling, which loses no less, they are one of less noise."""
    return (
        _loss(1.0, noise / math.sqrt(count), mesh) if rate > _ALWAYS else _loss(rate, noise, mesh).self_compose(count)
    )


@lru_cache(maxsize=16)
def _loss(rate: float, noise: float, mesh: float) -> PrivacyLossDistribution:
    """Of one step. It takes longer than its self-composition."""
    return from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=mesh, neighboring_relation=RELATION
    )


def loss_mesh(items: Items, scale: float) -> float:
    """The width of a cell of losses, a power of two: what cells add to ε is near T·mesh²/2, far below `scale`.

    Losses, and with them the time on a fixed mesh, grow as 1/z²; a coarser one is still an upper bound, and there are
    at most some `_CELLS`.
    """
    steps = sum(count for _, count in items)
    noise = min(rates(step)[1] for step, _ in items)
    variance = sum(count * _loss_variance(*rates(step)) for step, count in items)
    reach = 10 / noise + 0.5 / noise**2 + 12 * math.sqrt(variance) + variance / 2
    wanted = min(3e-3, _MESH / math.sqrt(steps)) * scale * max(1.0, 0.25 / noise**2)
    return 2.0 ** math.floor(math.log2(max(wanted, 2 * reach / _CELLS)))


def _loss_variance(rate: float, noise: float) -> float:
    """Of the loss of one step, roughly."""
    return min(rate**2 * math.expm1(min(noise**-2, 50.0)), noise**-2)


def epsilon_prv(history: History, delta: float) -> float | None:
    """By Opacus' PRV accountant, the independent check; its upper bound, 0.01 above its estimate. None where it cannot:
    a very small δ, a loss that hardly ever differs from 0, or one so large that its mesh would not fit into memory."""
    if not history:
        return 0.0
    if not is_private(history):
        return math.inf
    found = [_epsilon_prv(items_of(one), delta) if one else 0.0 for one in sides(history)]
    known = [epsilon for epsilon in found if epsilon is not None]
    return max(known) if len(known) == len(found) else None


@lru_cache(maxsize=4096)
def _epsilon_prv(items: Items, delta: float) -> float | None:
    from opacus.accountants import PRVAccountant  # loads torch: only where it is needed

    cells = (
        2
        * (_epsilon_pld(items, delta) + 3)
        / _PRV_ERROR
        * math.sqrt(sum(count for _, count in items) / 2 * math.log(12_000 / delta))
    )
    if cells > _MOST_PRV_CELLS:
        return None
    account = PRVAccountant()
    account.history = [(z, q, count) for step, count in items for q, z in [rates(step)]]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # on the bounds from which it takes its mesh
        try:
            return with_slack(lambda at: float(account.get_epsilon(at)), History(dict(items)), delta)
        except (RuntimeError, ValueError):
            return None


@lru_cache(maxsize=65536)
def _step_rdp(step: Step, order: float) -> float:
    """ε(α) of one step (Mironov, Talwar, Zhang 2019), by Opacus; of a run with held-out records the larger of both."""
    if isinstance(step, ApartDpEvent):
        parts = (part for part in (step.trained, step.held_out) if part is not None)
        return max(rdp_at(history_of([part]), order) for part in parts)
    from opacus.accountants.analysis.rdp import compute_rdp  # loads torch: only where it is needed

    q, z = rates(step)
    return float(np.asarray(compute_rdp(q=q, noise_multiplier=z, steps=1, orders=[order]))[0])


def rdp_at(history: History, order: float) -> float:
    """ρ = Σ ε(α) over a history that is private, at one of ORDERS."""
    return sum(count * _step_rdp(step, order) for step, count in history.items())


def _best_order(history: History, cost: Callable[[float, float], float]) -> tuple[float, float]:
    """The order at which cost(α, ρ(α)) is least, and that cost. The cost must not fall as ρ grows.

    Fractional orders are dear (a series each, up to some 10 ms) and ρ grows with α, so one is computed only where the
    ρ of the whole order below it would already beat the best.
    """
    whole = ORDERS[np.floor(ORDERS) == ORDERS]
    below = {float(order): rdp_at(history, float(order)) for order in whole}
    costs = {order: cost(order, rho) for order, rho in below.items()}
    for order in sorted(set(ORDERS.tolist()) - set(below)):
        if cost(order, below.get(math.floor(order), 0.0)) < min(costs.values()):
            costs[order] = cost(order, rdp_at(history, order))
    return min(costs.items(), key=lambda item: (item[1], item[0]))


def epsilon_rdp(history: History, delta: float) -> float:
    """By Rényi DP at the best order: what a filter could at most admit, shown beside the others."""
    if not history:
        return 0.0
    if not is_private(history):
        return math.inf

    def at_best(at: float) -> float:
        return _best_order(history, lambda order, rho: float(compute_epsilon([order], [rho], at)[0]))[1]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")  # of the one that is given
        return with_slack(at_best, together(history), delta)


def conversion(order: float, delta: float) -> float:
    """ε − ρ of (α, ρ)-RDP: log(1 − 1/α) − (log δ + log α)/(α − 1).

    Canonne, Kamath, Steinke 2020, Proposition 12: tighter than the classical ln(1/δ)/(α − 1), and as valid.
    """
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def filter_order(first: History, limit: float, delta: float) -> float:
    """α*: the order at which repetitions of the first request exhaust (limit, δ) last.

    It depends on declared numbers only, so it is fixed before anything is released.
    """

    def share(order: float, rho: float) -> float:
        left = limit - conversion(order, delta * (1 - SLACK))
        return rho / left if left > 0 else math.inf

    return _best_order(first, share)[0]


def filter_epsilon(history: History, order: float, delta: float, limit: float | None = None) -> float:
    """Σ ρ_t(α*) turned into ε: what holds even if every request was chosen by looking at the releases before it.

    limit: the ε that the data set is held to; the slack of all that may still come is counted at it. Raises
    PrivacyError for an order that this version does not use.
    """
    if not history:
        return 0.0
    if not is_private(history):
        return math.inf
    if not np.isclose(ORDERS, order).any():
        raise PrivacyError(f"order {order}: not among the orders of this version; a filter's order cannot change")
    epsilon = rdp_at(history, nearest_order(order)) + conversion(order, delta * (1 - SLACK))
    both = together(history)
    return epsilon + added(both, max(epsilon, min(limit or 0.0, _most(both, delta))), delta)


def nearest_order(wanted: float) -> float:
    """The order in use that is closest to a wished one."""
    return float(ORDERS[np.argmin(np.abs(ORDERS - wanted))])
