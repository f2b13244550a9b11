"""The sum of a trusted server (mode `client` without secure aggregation): sites send clipped updates, and the server
adds the noise before anything is used. `SecureSums` gives the sum where the server is not trusted.
"""

import numpy as np

from ...common.errors import WireError
from ...common.privacy import clipping
from ...common.privacy.mechanism import PoissonMechanism, PrivacyPlan
from ...common.privacy.noise import secure_generator
from ...common.types import WHOLE, Update, joined


class CentralSums:
    """A trusted server's sum: clips again whatever comes, adds the whole noise, and only then hands it on."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self.begin(plan.clip)

    def begin(self, clip: float) -> None:
        """A new round, with its clip norm."""
        self._clip, self._total = clip, np.zeros(self._plan.coordinates)

    def add(self, site: str, update: Update) -> None:
        whole = update.metrics.get(WHOLE)
        if whole not in (-0.5, 0.0, 0.5):
            raise WireError(f"metric '{WHOLE}' {whole} received; allowed: -0.5, 0 and 0.5")
        bounded = clipping.Contribution(clipping.clipped(joined(update.delta), self._clip).update, whole)
        self._total += clipping.to_vector(bounded, self._plan, self._clip)

    def finish(self, number: int) -> tuple[np.ndarray, dict[str, str]]:
        noise = PoissonMechanism(self._plan, secure_generator())
        noise.draw(0)  # the sites drew by themselves
        return noise.share(self._total, self._clip), {}
