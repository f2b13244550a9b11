"""What a run declares about privacy before it starts; server and site derive it alike from the configuration."""

from dp_accounting import NonPrivateDpEvent

from .config import RunConfig
from .errors import PrivacyError
from .events import Step
from .mechanism import PrivacyPlan, plan_for


def declared_steps(config: RunConfig) -> int:
    """T: optimizer steps over all rounds."""
    return config.run.rounds * config.training.local_steps


def privacy_plan(config: RunConfig, coordinates: int) -> PrivacyPlan | None:
    """The plan of one site. A site derives it by itself: nobody tells it a noise multiplier.

    coordinates: d, numbers released in a step. None in mode `none`. Raises PrivacyError for an incomplete declaration.
    """
    privacy = config.privacy
    if not config.private:
        return None
    if privacy.epsilon is None or privacy.sampling_rate is None or privacy.declared_examples is None:
        raise PrivacyError("privacy: epsilon, sampling_rate and declared_examples must be declared")
    return plan_for(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=privacy.sampling_rate,
        steps=declared_steps(config),
        clip=privacy.clip,
        coordinates=coordinates,
        # every site divides by the same public constant: the mean of the sites is then the mean over all records
        declared_records=privacy.declared_examples / config.clients,
    )


def step_of(config: RunConfig, plan: PrivacyPlan | None) -> Step:
    """What one step releases, as a ledger records it; an audit's control releases without noise."""
    if plan is None or config.audit.control:
        return NonPrivateDpEvent()
    return plan.step
