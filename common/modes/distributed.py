"""Mode `distributed`: DP-SGD over the data of all sites at once, its noise in shares, in a secure sum.

One round is one step. A site clips per record and adds a share of the noise that protects nothing by itself; the server
sees the sum, whose noise is that of central DP-SGD (Kairouz, Liu, Steinke 2021; Agarwal, Kairouz, Liu 2021).
"""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PrivacyError
from ..privacy.noise import from_grid
from . import Computation, Release
from .words import EXAMPLE, ONE_RECORD, record_sampling, sum_adversary, sum_noise

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism, PrivacyPlan

UNIT, BY_RECORD, SUMS = "example", True, True


def sampling_rate(config: "RunConfig") -> float | None:
    return config.privacy.sampling_rate


def coordinates(config: "RunConfig", trained: int) -> int:
    return trained


def units(config: "RunConfig") -> float:
    if config.privacy.declared_examples is None:
        raise PrivacyError("privacy: declared_examples must be declared")
    return config.privacy.declared_examples


def unit(config: "RunConfig") -> str:
    return EXAMPLE


def protected(config: "RunConfig") -> str:
    return ONE_RECORD


def adversary(config: "RunConfig") -> str:
    return sum_adversary(config)


def sampling(config: "RunConfig") -> str:
    return record_sampling(config)


def noise(config: "RunConfig") -> str:
    return sum_noise(config)


def release(site: Computation, mechanism: "PoissonMechanism | None") -> Release:
    if mechanism is None:
        raise PrivacyError("mode 'distributed' has no mechanism: nothing is released without noise")
    return Release(share=mechanism.share(site.clipped_sum(mechanism), mechanism.plan.clip))


def change(config: "RunConfig", plan: "PrivacyPlan", total: np.ndarray, clip: float) -> tuple[np.ndarray, float]:
    """A mean gradient is a step downhill."""
    return -(from_grid(total, clip) / plan.denominator), clip
