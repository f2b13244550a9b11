"""Mode `client`: client-level DP-FedAvg (McMahan et al. 2018), with a clip norm that may adapt (Andrew et al. 2021).

The unit is a site's whole update. Each site takes part by a coin of its own; the noise is in shares of a secure sum,
or a trusted server's.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PrivacyError
from ..privacy.clipping import Contribution, clipped, from_total, next_clip, to_vector
from ..types import WHOLE
from . import Computation, Release, as_share
from .adapters import TEACHERS, at_sites, exchanged  # noqa: F401  # members of the mode
from .by_record import sampling_rate  # noqa: F401  # members of the mode
from .summed import adversary, noise, summed  # noqa: F401  # members of the mode

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism, PrivacyPlan

BY_RECORD, BY_STEP = False, False


def ledger_unit(config: "RunConfig") -> str:
    return "client"


def coordinates(config: "RunConfig", trained: int) -> int:
    """With an adaptive clip norm one more, the count of unclipped updates."""
    return trained + (config.privacy.clip_quantile is not None)


def units(config: "RunConfig") -> float:
    return config.clients


def unit(config: "RunConfig") -> str:
    return "client: one site's whole contribution, present or not"


def protected(config: "RunConfig") -> str:
    return "Whether a site contributed, and what,"


def sampling(config: "RunConfig") -> str:
    return f"Poisson, each site with q = {config.privacy.sampling_rate} in every round, by a coin of its own"


def bounded(config: "RunConfig", plan: "PrivacyPlan") -> str:
    return (
        f"in every round each site takes part with probability {plan.sampling_rate:g}, its whole update is cut to "
        f"length C = {plan.clip:g}{' at first' if plan.count_noise else ''}"
    )


def release(site: Computation, mechanism: "PoissonMechanism | None") -> Release:
    if mechanism is None:
        raise PrivacyError("mode 'client' has no mechanism: nothing is released without noise")
    plan, secure = mechanism.plan, site.config.secure
    clip = site.clip(plan)
    part = contribution(site, mechanism, clip)
    if secure:
        return as_share(mechanism, to_vector(part, plan, clip), clip)
    return Release(site.as_adapter(part.update), {WHOLE: part.whole})


def contribution(site: Computation, mechanism: "PoissonMechanism", clip: float) -> Contribution:
    """The site's whole change, clipped; not private by itself.

    The site takes part with probability q. Under secure aggregation a site that is out trains all the same and
    contributes zero: how long it takes must not tell the coin.
    """
    width = mechanism.plan.coordinates - (mechanism.plan.count_noise is not None)
    nothing = Contribution(np.zeros(width), 0.0)
    takes_part = len(mechanism.draw(1)) == 1
    if not site.records() or (not takes_part and not site.config.secure):
        return nothing
    update = site.plain_change()
    return clipped(update, clip) if takes_part else nothing


def change(config: "RunConfig", plan: "PrivacyPlan", total: np.ndarray, clip: float) -> tuple[np.ndarray, float]:
    mean, whole = from_total(total, plan, clip)
    quantile = config.privacy.clip_quantile
    if whole is None or quantile is None:
        return mean, clip
    return mean, next_clip(clip, whole, quantile, config.privacy.clip_learning_rate)
