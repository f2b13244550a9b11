"""What a run's ε does not say, in words: the same everywhere that an ε is shown. What it says, the mode knows."""

from ..config.run import RunConfig
from ..modes import mode_of
from .copies import copies_epsilon, ledgers_epsilon
from .mechanism import PrivacyPlan

_SUBJECTS = {"example": "a record", "person": "one person's records", "client": "what one person gave"}


def limits(config: RunConfig) -> str:
    """What the ε does not say."""
    mode, hidden = mode_of(config), "a site took part"
    unit = mode.ledger_unit(config)
    subject = f"{_SUBJECTS[unit]} {'live' if unit == 'person' else 'lies'}"
    if unit == "client":
        hidden = "a site is registered"
    several = "the sites' ledgers compose"
    place = "" if unit == "client" else ", in one of its data sets"
    chosen = ""
    if config.data.limit is not None and unit == "example":
        chosen = (
            " data.limit chose the records: one record more in data.train may push another one out, so for it this is "
            "the ε of a group of two, (2ε, (1 + e^ε)·δ)."
        )
    if mode.summed(config):
        several = "one noise covers all copies, and the sites' ledgers do not add up to their ε"
    return (
        f"This holds where {subject} at one site{place} (at several, {several}); it does not hide that {hidden}, and "
        f"it says nothing about what the public test set or the backbone already reveal.{chosen}"
    )


def several_sites(config: RunConfig, plan: PrivacyPlan, copies: int = 2) -> str:
    """The assumption J = 1, and ε where `copies` = J sites hold the same; seconds of work where one noise covers it."""
    mode = mode_of(config)
    unit = mode.ledger_unit(config)
    if mode.summed(config):
        found = copies_epsilon(plan, copies)
        how = "one noise covers all copies, and the sites' ledgers do not add up to it"
    else:
        found = ledgers_epsilon(plan, copies)
        how = f"each site adds noise of its own, and the {copies} ledgers compose"
    lies, its = ("live", "their") if unit == "person" else ("lies", "its")
    return (
        f"Assumed: {_SUBJECTS[unit]} {lies} at one site. At {copies} sites {its} ε is {found:.3g} at "
        f"δ = {plan.delta:g}: {how}."
    )
