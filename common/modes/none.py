"""Mode `none`: federated averaging (McMahan et al. 2017) without privacy; the server sees every update as it is."""

from typing import TYPE_CHECKING

from ..errors import PrivacyError
from . import Computation, Release
from .adapters import TEACHERS, at_sites, exchanged  # noqa: F401  # members of the mode
from .alone import adversary, change, summed  # noqa: F401  # members of the mode
from .by_record import BY_STEP, bounded, coordinates, ledger_unit  # noqa: F401  # members of the mode

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism

BY_RECORD = False


def sampling_rate(config: "RunConfig") -> float | None:
    return None


def units(config: "RunConfig") -> float:
    raise PrivacyError("privacy.mode 'none' declares no units: nothing is protected")


def unit(config: "RunConfig") -> str:
    return "none: nothing is protected"


def protected(config: "RunConfig") -> str:
    return "Nothing"


def sampling(config: "RunConfig") -> str:
    return "none: every record is used"


def noise(config: "RunConfig") -> str:
    return "nobody"


def release(site: Computation, mechanism: "PoissonMechanism | None") -> Release:
    counts = site.counts() if site.evaluates else None
    if not site.trains:
        return Release(counts=counts)
    delta, loss = site.plain_steps()
    return Release(delta, {"loss": loss}, weight=float(site.records()), counts=counts)
