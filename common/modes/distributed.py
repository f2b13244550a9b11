"""Mode `distributed`: DP-SGD over the data of all sites at once, its noise in shares, in a secure sum.

One round is one step. A site clips per record and adds a share of the noise that protects nothing by itself; the server
sees the sum, whose noise is that of central DP-SGD (Kairouz, Liu, Steinke 2021; Agarwal, Kairouz, Liu 2021).
"""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PrivacyError
from ..privacy.noise import from_grid
from . import Computation, Release, as_share
from .adapters import TEACHERS, at_sites, exchanged  # noqa: F401  # members of the mode
from .by_record import (  # noqa: F401  # members of the mode
    BY_STEP,
    bounded,
    coordinates,
    ledger_unit,
    protected,
    sampling,
    sampling_rate,
    trained_on,
    unit,
    vector,
)
from .summed import adversary, noise, summed  # noqa: F401  # members of the mode

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism, PrivacyPlan

BY_RECORD = True


def units(config: "RunConfig") -> float:
    return trained_on(config)


def release(site: Computation, mechanism: "PoissonMechanism | None") -> Release:
    if mechanism is None:
        raise PrivacyError("mode 'distributed' has no mechanism: nothing is released without noise")
    return as_share(mechanism, vector(site, mechanism), mechanism.plan.clip)


def change(config: "RunConfig", plan: "PrivacyPlan", total: np.ndarray, clip: float) -> tuple[np.ndarray, float]:
    """A mean gradient is a step downhill."""
    return -(from_grid(total, clip, plan.grid) / plan.denominator), clip
