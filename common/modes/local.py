"""Mode `local`: DP-SGD at each site (Abadi et al. 2016), with the full noise before anything leaves.

Poisson draws, per-record clipping, one noised sum a step. Everything that the result depends on beyond public values
passes through `mechanism.release`.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PrivacyError
from . import Computation, Release
from .adapters import TEACHERS, at_sites, exchanged  # noqa: F401  # members of the mode
from .alone import adversary, change, noise, summed  # noqa: F401  # members of the mode
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

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism

BY_RECORD = True


def units(config: "RunConfig") -> float:
    """Every site divides by the same constant: the mean of the sites is then the mean over all records."""
    return trained_on(config) / config.clients


def release(site: Computation, mechanism: "PoissonMechanism | None") -> Release:
    if mechanism is None:
        raise PrivacyError("mode 'local' has no mechanism: nothing is released without noise")
    counts: list[np.ndarray] = []

    def step() -> tuple[np.ndarray, float]:
        """Held-out records are counted at the weights that came, so in the first step alone."""
        gradient = mechanism.release(vector(site, mechanism, counts=not counts))
        counts.append(mechanism.counts)
        return gradient, 0.0

    if not site.trains:
        step()
        return Release(counts=counts[0])
    delta = site.private_steps(step)
    return Release(delta, counts=counts[0] if site.evaluates else None)
