"""Mode `local`: DP-SGD at each site (Abadi et al. 2016), with the full noise before anything leaves.

Poisson draws, per-record clipping, one noised sum a step. Everything that the result depends on beyond public values
passes through `mechanism.release`.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PrivacyError
from . import Computation, Release
from .words import ALONE, EVERYBODY, EXAMPLE, ONE_RECORD, record_sampling

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism, PrivacyPlan

UNIT, BY_RECORD, SUMS = "example", True, False


def sampling_rate(config: "RunConfig") -> float | None:
    return config.privacy.sampling_rate


def coordinates(config: "RunConfig", trained: int) -> int:
    return trained


def units(config: "RunConfig") -> float:
    """Every site divides by the same constant: the mean of the sites is then the mean over all records."""
    if config.privacy.declared_examples is None:
        raise PrivacyError("privacy: declared_examples must be declared")
    return config.privacy.declared_examples / config.clients


def unit(config: "RunConfig") -> str:
    return EXAMPLE


def protected(config: "RunConfig") -> str:
    return ONE_RECORD


def adversary(config: "RunConfig") -> str:
    return EVERYBODY


def sampling(config: "RunConfig") -> str:
    return record_sampling(config)


def noise(config: "RunConfig") -> str:
    return ALONE


def release(site: Computation, mechanism: "PoissonMechanism | None") -> Release:
    if mechanism is None:
        raise PrivacyError("mode 'local' has no mechanism: nothing is released without noise")
    return Release(site.private_steps(lambda: (mechanism.release(site.clipped_sum(mechanism)), 0.0)))


def change(config: "RunConfig", plan: "PrivacyPlan", total: np.ndarray, clip: float) -> tuple[np.ndarray, float]:
    raise PrivacyError("privacy.mode 'local' sums nothing at the server")
