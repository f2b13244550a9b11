"""What modes share whose sites send updates one by one."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PrivacyError

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PrivacyPlan


def summed(config: "RunConfig") -> bool:
    return False


def adversary(config: "RunConfig") -> str:
    return "the server and all other sites, who see every update of the site"


def noise(config: "RunConfig") -> str:
    return "each site alone, in full"


def change(config: "RunConfig", plan: "PrivacyPlan", total: np.ndarray, clip: float) -> tuple[np.ndarray, float]:
    raise PrivacyError(f"privacy.mode '{config.privacy.mode}' sums nothing at the server")
