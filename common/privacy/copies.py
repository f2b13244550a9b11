"""ε of a record that several sites hold, where the claim of a run is for a record that one site holds (J = 1).

Two cases, by who adds the noise (docs/explanation/privacy.md). Where each site adds its own, its J copies are J
releases, and the sites' ledgers compose. Where one noise covers the sum of all sites, they do not: a step that draws i
of the J copies moves the sum by up to i·C under the same noise, which is worse than J releases that each have noise of
their own.
"""

import math
from functools import lru_cache

from dp_accounting import DpEvent, GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
from dp_accounting.pld import PLDAccountant

from ..errors import PrivacyError
from .accounting import RELATION, epsilon_pld, together, with_slack
from .events import History
from .mechanism import PrivacyPlan

_ALWAYS = 1 - 1e-9
"""chance that a step draws all copies, from which on it is taken for 1"""


def copies_epsilon(plan: PrivacyPlan, copies: int) -> float:
    """ε after all T steps, at the plan's δ, of a record of which `copies` = J sites hold one each: one noise for all.

    In a step the J copies are drawn independently with probability q, so the sum moves by i·C, i ~ Binomial(J, q): a
    mixture of Gaussians (Choquette-Choo, Ganesh, Steinke, Thakurta 2023, "Privacy amplification for matrix
    mechanisms"), composed by dp-accounting's PLD as an upper bound. Add-or-remove of the record with all its copies;
    the noise is accounted as the Gaussian of the plan's noise multiplier, its slack charged to δ. Where secure sums are
    over groups of sites it is the ε of copies in one group. Raises PrivacyError for copies < 1.
    """
    _require_copies(copies)
    if plan.held_out is None:
        return _of_sides(plan, copies, 0)
    most = 0.0  # mostly that of all on one side, so those come first
    for out in sorted(range(copies + 1), key=lambda out: min(out, copies - out)):
        most = max(most, _of_sides(plan, copies - out, out))
        if math.isinf(most):
            break
    return most


def _of_sides(plan: PrivacyPlan, trained: int, held_out: int) -> float:
    """The same for so many copies that are trained on, and so many that are held out: each site splits by a secret of
    its own. The latter move each of their releases by that many times what one does."""
    out = plan.held_out if held_out else None
    noise = 0.0 if out is None else plan.noise_multiplier / (held_out * out.sensitivity)
    account = _composed(
        plan.sampling_rate,
        plan.noise_multiplier,
        plan.steps if trained else 0,
        trained,
        noise,
        0 if out is None else out.evaluations,
    )
    history = together(plan.history(plan.steps if trained else 0, 0 if out is None else None))
    return with_slack(lambda at: float(account.get_epsilon(at)), history, plan.delta)


def ledgers_epsilon(plan: PrivacyPlan, copies: int) -> float:
    """The same where every site adds noise of its own: J ledgers compose, J·T steps. Raises PrivacyError likewise."""
    _require_copies(copies)
    history = plan.history()
    return epsilon_pld(History({step: copies * count for step, count in history.items()}), plan.delta)


def _require_copies(copies: int) -> None:
    if copies < 1:
        raise PrivacyError(f"copies: {copies} received; allowed: 1 and more")


@lru_cache(maxsize=64)
def _composed(
    sampling_rate: float, noise_multiplier: float, steps: int, copies: int, counted: float = 0.0, evaluations: int = 0
) -> PLDAccountant:
    """counted: the noise multiplier of what held-out copies count in each of the evaluations."""
    account = PLDAccountant(RELATION, value_discretization_interval=_mesh(noise_multiplier, max(1, steps)))
    if evaluations:
        account.compose(SelfComposedDpEvent(GaussianDpEvent(counted), evaluations))
    if not steps:
        return account
    shifts = [float(drawn) for drawn in range(copies + 1)]
    chances = [_chance(drawn, copies, sampling_rate) for drawn in range(copies + 1)]
    event: DpEvent = MixtureOfGaussiansDpEvent(noise_multiplier, shifts, chances)
    if chances[-1] >= _ALWAYS:  # an upper bound; the mixture's own tails fail to rounding there
        event = GaussianDpEvent(noise_multiplier / copies)
    return account.compose(SelfComposedDpEvent(event, steps))


def _chance(drawn: int, copies: int, rate: float) -> float:
    """P[Binomial(copies, rate) = drawn]."""
    return math.comb(copies, drawn) * rate**drawn * (1 - rate) ** (copies - drawn)


def _mesh(noise_multiplier: float, steps: int) -> float:
    """A mesh's excess grows with T·h², losses with 1/z²: this h keeps the excess near 0.01 and the time at seconds."""
    return min(1e-2, 0.1 / math.sqrt(steps)) * max(1.0, 0.25 / noise_multiplier**2)
