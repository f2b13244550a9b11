"""What a run declares about privacy before it starts; server and site derive it alike from the configuration."""

from dp_accounting import NonPrivateDpEvent

from ..config.run import RunConfig
from ..counted import numbers_of
from ..errors import PrivacyError
from ..modes import mode_of
from ..secagg.keys import Session
from ..secagg.masks import bits_needed
from .events import Step
from .mechanism import PrivacyPlan, plan_for


def declared_steps(config: RunConfig) -> int:
    """T: releases over all rounds."""
    return config.run.rounds * config.steps_per_round


def privacy_plan(config: RunConfig, trained: int) -> PrivacyPlan | None:
    """The plan of one site. A site derives it by itself: nobody tells it a noise multiplier.

    trained: numbers of the model that are trained, all of which a step releases; a run with teachers releases their
    answers instead. None in mode `none`. Raises PrivacyError for an incomplete declaration.
    """
    privacy, mode = config.privacy, mode_of(config)
    if not config.private:
        return None
    rate = mode.sampling_rate(config)
    if privacy.epsilon is None or rate is None:
        raise PrivacyError("privacy: epsilon and sampling_rate must be declared")
    count_noise = privacy.clip_count_noise or rate * config.clients / 20
    counted = numbers_of(config) if config.evaluation.sites else 0
    return plan_for(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=rate,
        steps=declared_steps(config),
        clip=privacy.clip,
        coordinates=mode.coordinates(config, trained) + counted,
        declared_units=mode.units(config),
        shares=config.secure_parameters.survivors - privacy.colluders if config.secure else 1,
        most_shares=config.secure_parameters.sites - privacy.colluders if config.secure else 1,
        count_noise=count_noise if privacy.clip_quantile is not None else None,
        counted=counted,
        evaluations=config.evaluations,
    )


def sum_bits(config: RunConfig, plan: PrivacyPlan) -> int:
    """w: secure sums are modulo 2^w, which a round's sum leaves with probability below 2⁻³⁹."""
    per_unit = max(plan.grid, plan.count_scale / 2) + 1
    noise = (config.clients * plan.variance / plan.shares) ** 0.5
    units, rate = mode_of(config).units(config), plan.sampling_rate
    if plan.held_out is not None:  # those that are held out, by coins of their own, fall on other coordinates
        units, rate = units / config.trained_share, max(rate, config.evaluation.holdout)
    return bits_needed(units, rate, per_unit, noise, plan.coordinates)


def secure_session(config: RunConfig, plan: PrivacyPlan, first_round: int) -> Session:
    """What a set-up is for; sites and server derive it alike, and a site signs its digest."""
    return Session(
        run=str(config.run.id),
        first_round=first_round,
        rounds=min(config.server.setup_rounds, config.last_round - first_round + 1),
        parameters=config.secure_parameters,
        length=plan.coordinates,
        bits=sum_bits(config, plan),
        declaration=f"{config.digest()} {plan.pieces}",
    )


def step_of(config: RunConfig, plan: PrivacyPlan | None) -> Step:
    """What one step releases, as a ledger records it; an audit's control releases without noise."""
    if plan is None or config.audit.control:
        return NonPrivateDpEvent()
    return plan.step
