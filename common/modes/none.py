"""Mode `none`: federated averaging (McMahan et al. 2017) without privacy; the server sees every update as it is."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PrivacyError
from . import Computation, Release
from .words import EVERYBODY

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism, PrivacyPlan

UNIT, BY_RECORD, SUMS = "example", False, False


def sampling_rate(config: "RunConfig") -> float | None:
    return None


def coordinates(config: "RunConfig", trained: int) -> int:
    return trained


def units(config: "RunConfig") -> float:
    raise PrivacyError("privacy.mode 'none' declares no units: nothing is protected")


def unit(config: "RunConfig") -> str:
    return "none: nothing is protected"


def protected(config: "RunConfig") -> str:
    return "Nothing"


def adversary(config: "RunConfig") -> str:
    return EVERYBODY


def sampling(config: "RunConfig") -> str:
    return "none: every record is used"


def noise(config: "RunConfig") -> str:
    return "nobody"


def release(site: Computation, mechanism: "PoissonMechanism | None") -> Release:
    delta, loss = site.plain_steps()
    return Release(delta, {"loss": loss}, weight=float(site.records()))


def change(config: "RunConfig", plan: "PrivacyPlan", total: np.ndarray, clip: float) -> tuple[np.ndarray, float]:
    raise PrivacyError("privacy.mode 'none' sums nothing at the server")
