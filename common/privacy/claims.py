"""Whose privacy a run's ε speaks of, and against whom, in words: the same everywhere that an ε is shown."""

from ..config.run import RunConfig
from ..modes import mode_of
from .copies import copies_epsilon, ledgers_epsilon
from .mechanism import PrivacyPlan


def unit(config: RunConfig) -> str:
    return mode_of(config).unit(config)


def protected(config: RunConfig) -> str:
    """Subject of the sentence "… is protected"."""
    return mode_of(config).protected(config)


def adversary(config: RunConfig) -> str:
    return mode_of(config).adversary(config)


def sampling(config: RunConfig) -> str:
    return mode_of(config).sampling(config)


def noise(config: RunConfig) -> str:
    """Who adds the noise."""
    return mode_of(config).noise(config)


def one_noise(config: RunConfig) -> bool:
    """Whether one noise covers the contributions of all sites, so that the sites' ledgers do not compose."""
    return mode_of(config).summed(config)


def limits(config: RunConfig) -> str:
    """What the ε does not say."""
    subject, hidden = "each record lives", "a site took part"
    if mode_of(config).UNIT == "client":
        subject, hidden = "what one person gave lies", "a site is registered"
    several = "the sites' ledgers compose"
    chosen = ""
    if config.data.limit is not None and mode_of(config).UNIT != "client":
        chosen = (
            " data.limit chose the records: one record more in data.train may push another one out, so for it this is "
            "the ε of a group of two, (2ε, (1 + e^ε)·δ)."
        )
    if one_noise(config):
        several = "one noise covers all copies, and the sites' ledgers do not add up to their ε"
    return (
        f"This holds where {subject} at one site (at several, {several}); it does not hide that {hidden}, and it says "
        f"nothing about what the public test set or the backbone already reveal.{chosen}"
    )


def several_sites(config: RunConfig, plan: PrivacyPlan, copies: int = 2) -> str:
    """The assumption J = 1, and ε where `copies` = J sites hold the same; seconds of work where one noise covers it."""
    subject = "what one person gave" if mode_of(config).UNIT == "client" else "a record"
    if one_noise(config):
        found = copies_epsilon(plan, copies)
        how = "one noise covers all copies, and the sites' ledgers do not add up to it"
    else:
        found = ledgers_epsilon(plan, copies)
        how = f"each site adds noise of its own, and the {copies} ledgers compose"
    return f"Assumed: {subject} lies at one site. At {copies} sites its ε is {found:.3g} at δ = {plan.delta:g}: {how}."
