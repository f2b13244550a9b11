"""What a site's reply may say: a value that no honest site sends costs that reply, never the run."""

import re

import numpy as np

from ..common.config.run import RunConfig
from ..common.errors import WireError
from ..common.privacy.plan import declared_steps
from ..common.types import WHOLE, Update

MOST_RECORDS = 1e12
"""that a site may claim to have"""
MOST_LOSS = 1e6
MOST_CHANGE = 1e3
"""of one number of an adapter in one round, in clip norms where that is above 1; those of honest sites are far below"""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[\w.-]{1,64}")
_LINE = 300
"""characters of a reason"""


def require_plausible(config: RunConfig, update: Update) -> None:
    """Raises WireError. An update's arrays have the right names, shapes and types by now, and are finite."""
    _require_weight(config, update.weight)
    most = declared_steps(config)
    if not 0 <= update.steps <= most:
        raise WireError(f"{update.steps} steps received; allowed: 0 to {most}, which the run declares")
    if not 0 <= update.evaluations <= config.evaluations:
        raise WireError(f"{update.evaluations} evaluations received; allowed: 0 to {config.evaluations}")
    if update.epsilon is not None and not update.epsilon >= 0:
        raise WireError(f"ε = {update.epsilon} received; allowed: 0 and above")
    if update.commitment is not None and not _DIGEST.fullmatch(update.commitment):
        raise WireError("a commitment that is not 64 hexadecimal digits")
    _require_metrics(config, update)
    largest_allowed = MOST_CHANGE * (max(1.0, config.privacy.clip) if config.private else 1.0)
    for name, array in update.delta.items():
        if array.size and (largest := float(np.abs(array).max())) > largest_allowed:
            raise WireError(f"{name}: a change of {largest:.3g} received; allowed: at most {largest_allowed:g}")
    if update.counts is not None and update.counts.size and float(np.abs(update.counts).max()) > MOST_RECORDS:
        raise WireError(f"counts of held-out records beyond {MOST_RECORDS:g}")


def _require_weight(config: RunConfig, weight: float) -> None:
    if config.private and weight != 1:
        raise WireError(f"weight {weight} received; allowed under privacy: 1")
    if not 0 < weight <= MOST_RECORDS:
        raise WireError(f"weight {weight} received; allowed: above 0, at most {MOST_RECORDS:g}")


def _require_metrics(config: RunConfig, update: Update) -> None:
    """A mean loss in mode `none`; where the server is trusted whether the update was clipped, of which the sum looks at
    the value (CentralSums.add); nothing else."""
    allowed = {WHOLE} if config.private and not config.secure else {"loss"} if not config.private else set()
    if unknown := update.metrics.keys() - allowed:
        raise WireError(f"{len(unknown)} metrics received that this mode does not have; allowed: {len(allowed)}")
    loss = update.metrics.get("loss", 0.0)
    if not abs(loss) <= MOST_LOSS:
        raise WireError(f"loss {loss} received; allowed: finite, at most {MOST_LOSS:g}")


def site_name(text: object) -> str:
    """A name as sites may have it. Raises WireError."""
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise WireError(
            f"a site calls itself '{one_line(str(text))[:64]}'; allowed: 1 to 64 letters, digits, '_', '.', '-'"
        )
    return text


def one_line(text: str) -> str:
    """What a site says, as an operator's terminal and log may show it: printable, one line, of bounded length."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _LINE]).split())
    return plain if len(plain) <= _LINE else f"{plain[:_LINE]}…"
