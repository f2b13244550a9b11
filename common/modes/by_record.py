"""What modes share whose unit is a record."""

from typing import TYPE_CHECKING

from ..errors import PrivacyError

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PrivacyPlan

UNIT, BY_STEP = "example", True


def sampling_rate(config: "RunConfig") -> float | None:
    return config.privacy.sampling_rate


def coordinates(config: "RunConfig", trained: int) -> int:
    return trained


def declared(config: "RunConfig") -> int:
    """Records of all sites together. Raises PrivacyError where they are not declared."""
    if config.privacy.declared_examples is None:
        raise PrivacyError("privacy: declared_examples must be declared")
    return config.privacy.declared_examples


def unit(config: "RunConfig") -> str:
    return "example: one record of a site, added or removed"


def protected(config: "RunConfig") -> str:
    return "One record of a site"


def sampling(config: "RunConfig") -> str:
    return f"Poisson, each record with q = {config.privacy.sampling_rate} in every step, drawn in secret at the site"


def bounded(config: "RunConfig", plan: "PrivacyPlan") -> str:
    return (
        f"in every step each record takes part with probability {plan.sampling_rate:g}, its gradient is cut to length "
        f"C = {plan.clip:g}"
    )
