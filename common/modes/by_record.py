"""What modes share whose unit is a record, or a person with all their records."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PrivacyError

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism, PrivacyPlan
    from . import Computation

BY_STEP = True


def ledger_unit(config: "RunConfig") -> str:
    return "example" if config.data.person is None else "person"


def sampling_rate(config: "RunConfig") -> float | None:
    return config.privacy.sampling_rate


def coordinates(config: "RunConfig", trained: int) -> int:
    return trained


def declared(config: "RunConfig") -> int:
    """Records, or persons, of all sites together. Raises PrivacyError where they are not declared."""
    key = "declared_examples" if config.data.person is None else "declared_persons"
    found = getattr(config.privacy, key)
    if found is None:
        raise PrivacyError(f"privacy: {key} must be declared")
    return found


def trained_on(config: "RunConfig") -> float:
    """Of the declared ones, those that are not held out, a public constant."""
    return declared(config) * config.trained_share


def vector(site: "Computation", mechanism: "PoissonMechanism", *, counts: bool = True) -> np.ndarray:
    """(coordinates,) float64: what one release is made of: the clipped gradients of records that were drawn, and behind
    them what held-out records count. counts: whether these are in it."""
    held_out = mechanism.plan.held_out
    if site.trains:
        trained = site.clipped_sum(mechanism)
    else:
        mechanism.nobody()
        trained = np.zeros(mechanism.plan.trained)
    if held_out is None:
        return trained
    if not (counts and site.evaluates):
        return np.concatenate([trained, np.zeros(held_out.numbers)])
    scale = mechanism.plan.clip * held_out.scale(mechanism.plan.coordinates)
    return np.concatenate([trained, scale * site.counts()])


def unit(config: "RunConfig") -> str:
    if config.data.person is not None:
        return "person: one person with all their records at a site, added or removed"
    return "example: one record of a site, added or removed"


def protected(config: "RunConfig") -> str:
    return "One record of a site" if config.data.person is None else "One person with all their records at a site"


def sampling(config: "RunConfig") -> str:
    drawn = "record" if config.data.person is None else "person"
    return f"Poisson, each {drawn} with q = {config.privacy.sampling_rate} in every step, drawn in secret at the site"


def bounded(config: "RunConfig", plan: "PrivacyPlan") -> str:
    if config.data.person is not None:
        return (
            f"in every step each person takes part with probability {plan.sampling_rate:g}, with at most "
            f"{config.data.person_rows} of their records, drawn afresh; the mean of their gradients is cut to length "
            f"C = {plan.clip:g}"
        )
    return (
        f"in every step each record takes part with probability {plan.sampling_rate:g}, its gradient is cut to length "
        f"C = {plan.clip:g}"
    )
