"""ε of a history: everything that was ever released from one data set, whatever run asked for it.

Composed over the whole history at the data set's δ, add-or-remove-one relation. Skellam releases are known to Rényi DP
only; a history of Gaussians alone is composed by PLD. Across runs whose parameters may depend on earlier results,
composition needs a filter: the Rényi filter at an order fixed before the first release (Feldman and Zrnic 2021,
"Individual Privacy Accounting via a Rényi Filter", Theorem 4.3): go on while Σ ρ_t(α*) stays under the bound.
"""

import math
import warnings
from functools import lru_cache

import numpy as np
from dp_accounting import GaussianDpEvent, NonPrivateDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import compute_epsilon

from ..errors import PrivacyError
from .events import History, SkellamDpEvent, Step
from .mechanism import pld_account, rdp_orders, skellam_step_rdp


def rates(step: Step) -> tuple[float, float]:
    """(q, z) of a private step."""
    q, release = 1.0, step
    if isinstance(step, PoissonSampledDpEvent):
        q, release = step.sampling_probability, step.event
    if not isinstance(release, SkellamDpEvent | GaussianDpEvent):
        raise PrivacyError(f"event {type(release).__name__}: has no noise multiplier")
    return q, release.noise_multiplier


@lru_cache(maxsize=4096)
def step_rdp(step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Orders α and ε(α) of one step."""
    q, z = rates(step)
    release = step.event if isinstance(step, PoissonSampledDpEvent) else step
    if isinstance(release, SkellamDpEvent):
        return skellam_step_rdp(q, z, release.coordinates)
    from opacus.accountants.analysis.rdp import compute_rdp  # loads torch: only where it is needed

    orders = rdp_orders()
    return orders, np.asarray(compute_rdp(q=q, noise_multiplier=z, steps=1, orders=orders.tolist()))


def rdp_curve(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Orders and Σ ε(α) over a history that is private and not empty."""
    curves = [(step_rdp(step), count) for step, count in history.items()]
    orders = curves[0][0][0]
    return orders, np.sum([count * rdp for (_, rdp), count in curves], axis=0)


def is_private(history: History) -> bool:
    return not any(isinstance(step, NonPrivateDpEvent) for step in history)


def epsilon_rdp(history: History, delta: float) -> float:
    """By Rényi DP at the best order; 0 for an empty history, infinite after a release without noise."""
    if not history:
        return 0.0
    if not is_private(history):
        return math.inf
    orders, curve = rdp_curve(history)
    return float(compute_epsilon(orders.tolist(), curve.tolist(), delta)[0])


def epsilon_pld(history: History, delta: float) -> float:
    """By dp-accounting's privacy loss distributions, each Skellam read as the Gaussian of its noise multiplier.

    Binding for Gaussians; for Skellam a cross-check, which lies below RDP.
    """
    if not history:
        return 0.0
    if not is_private(history):
        return math.inf
    return _composed_pld(tuple(history.items()), delta)


@lru_cache(maxsize=4096)
def _composed_pld(history: tuple[tuple[Step, int], ...], delta: float) -> float:
    """It takes a second, and the sites of a run hold the same history."""
    account = pld_account(min(rates(step)[1] for step, _ in history))
    for step, count in history:
        q, z = rates(step)
        account.compose(SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(z)), count))
    return float(account.get_epsilon(delta))


def epsilon_opacus(history: History, delta: float) -> float:
    """By Opacus' RDP accountant, each Skellam read as the Gaussian of its noise multiplier: the independent check."""
    if not history:
        return 0.0
    if not is_private(history):
        return math.inf
    from opacus.accountants import RDPAccountant

    account = RDPAccountant()
    account.history = [(z, q, count) for step, count in history.items() for q, z in [rates(step)]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")  # still a bound, only not the tightest
        return float(account.get_epsilon(delta, alphas=rdp_orders().tolist()))


def epsilon_of(history: History, delta: float) -> float:
    """The ε that counts: PLD where every release is Gaussian, else RDP."""
    gaussian = not any(isinstance(getattr(step, "event", step), SkellamDpEvent) for step in history)
    return epsilon_pld(history, delta) if gaussian and history else epsilon_rdp(history, delta)


def conversion(order: float, delta: float) -> float:
    """ε − ρ of (α, ρ)-RDP: log(1 − 1/α) − (log δ + log α)/(α − 1).

    Canonne, Kamath, Steinke 2020, Proposition 12: tighter than the classical ln(1/δ)/(α − 1), and as valid.
    """
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def filter_order(first: History, limit: float, delta: float) -> float:
    """α*: the order at which repetitions of the first request exhaust (limit, δ) last.

    It depends on declared numbers only, so it is fixed before anything is released; a first request that takes the
    whole limit is accounted as if it were alone.
    """
    orders, curve = rdp_curve(first)
    bounds = np.array([limit - conversion(order, delta) for order in orders])
    return float(orders[np.argmax(np.where(bounds > 0, bounds / curve, -math.inf))])


def filter_epsilon(history: History, order: float, delta: float) -> float:
    """Σ ρ_t(α*) turned into ε: what holds even if every request was chosen by looking at the releases before it."""
    if not history:
        return 0.0
    if not is_private(history):
        return math.inf
    orders, curve = rdp_curve(history)
    at = np.flatnonzero(np.isclose(orders, order))
    if not len(at):
        raise PrivacyError(f"order {order}: not among the orders of this version; a filter's order cannot change")
    return float(curve[at[0]] + conversion(order, delta))


def nearest_order(wanted: float) -> float:
    """The order in use that is closest to a wished one."""
    orders = rdp_orders()
    return float(orders[np.argmin(np.abs(orders - wanted))])
