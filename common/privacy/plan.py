"""What a run declares about privacy before it starts; server and site derive it alike from the configuration."""

import math

from dp_accounting import NonPrivateDpEvent

from ..config.run import RunConfig
from ..errors import PrivacyError
from ..secagg.keys import Session
from ..secagg.masks import bits_needed
from .events import Step
from .mechanism import PrivacyPlan, plan_for
from .noise import GRID_STEPS_PER_CLIP


def declared_steps(config: RunConfig) -> int:
    """T: releases over all rounds."""
    return config.run.rounds * config.steps_per_round


ANSWERS = "answers"
"""what stands in the adapter's place in a run that distils"""


def answer_scale(config: RunConfig) -> float:
    """What one teacher's answer counts, so that all its M answers together differ from others by at most C."""
    return config.privacy.clip / math.sqrt(2 * config.distill.questions)


def answers_shape(config: RunConfig) -> tuple[int, int]:
    """(M, K): what a site releases in a run that distils."""
    return config.distill.questions, len(config.data.labels or [])


def privacy_plan(config: RunConfig, trained: int) -> PrivacyPlan | None:
    """The plan of one site. A site derives it by itself: nobody tells it a noise multiplier.

    trained: numbers of the model that are trained, all of which a step releases; a run that distils releases its
    answers instead. None in mode `none`. Raises PrivacyError for an incomplete declaration.
    """
    privacy = config.privacy
    if not config.private:
        return None
    rate = 1.0 if config.distils else privacy.sampling_rate
    if privacy.epsilon is None or rate is None:
        raise PrivacyError("privacy: epsilon and sampling_rate must be declared")
    coordinates = math.prod(answers_shape(config)) if config.distils else trained
    shares = config.secure_parameters.survivors - privacy.colluders if config.secure else 1
    adaptive = privacy.clip_quantile is not None
    count_noise = privacy.clip_count_noise or rate * config.clients / 20
    return plan_for(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=rate,
        steps=declared_steps(config),
        clip=privacy.clip,
        coordinates=coordinates + adaptive,
        declared_units=_declared_units(config),
        shares=shares,
        count_noise=count_noise if adaptive else None,
    )


def _declared_units(config: RunConfig) -> float:
    """Units behind one noisy sum, a public constant: records of all sites, or of one; or sites; or teachers."""
    if config.privacy.mode == "client":
        return config.clients
    if config.distils:
        return config.distill.teachers * (1 if config.privacy.mode == "local" else config.clients)
    if config.privacy.declared_examples is None:
        raise PrivacyError("privacy: declared_examples must be declared")
    if config.privacy.mode == "local":
        # every site divides by the same constant: the mean of the sites is then the mean over all records
        return config.privacy.declared_examples / config.clients
    return config.privacy.declared_examples


def sum_bits(config: RunConfig, plan: PrivacyPlan) -> int:
    """w: secure sums are modulo 2^w, which a round's sum leaves with probability below 2⁻³⁹."""
    per_unit = max(GRID_STEPS_PER_CLIP, plan.count_scale / 2) + 1
    noise = (plan.variance * config.clients / plan.shares) ** 0.5
    return bits_needed(_declared_units(config), plan.sampling_rate, per_unit, noise, plan.coordinates)


def secure_session(config: RunConfig, plan: PrivacyPlan, first_round: int) -> Session:
    """What a set-up is for; sites and server derive it alike, and a site signs its digest."""
    return Session(
        run=str(config.run.id),
        first_round=first_round,
        rounds=min(config.server.setup_rounds, config.run.rounds - first_round + 1),
        parameters=config.secure_parameters,
        length=plan.coordinates,
        bits=sum_bits(config, plan),
        declaration=config.digest(),
    )


def step_of(config: RunConfig, plan: PrivacyPlan | None) -> Step:
    """What one step releases, as a ledger records it; an audit's control releases without noise."""
    if plan is None or config.audit.control:
        return NonPrivateDpEvent()
    return plan.step
