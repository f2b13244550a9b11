"""Whose privacy a run's ε speaks of, and against whom, in words: the same everywhere that an ε is shown."""

from ..config.run import RunConfig
from .copies import copies_epsilon, ledgers_epsilon
from .mechanism import PrivacyPlan


def unit(config: RunConfig) -> str:
    if config.privacy.mode == "client":
        return "client: one site's whole contribution, present or not"
    return "example: one record of a site, added or removed"


def protected(config: RunConfig) -> str:
    """Subject of the sentence "… is protected"."""
    return "Whether a site contributed, and what," if config.privacy.mode == "client" else "One record of a site"


def adversary(config: RunConfig) -> str:
    if config.privacy.mode == "local":
        return "the server and all other sites, who see every update of the site"
    if not config.secure:
        return "everybody who sees the models; the server is trusted: it sees each clipped update and adds the noise"
    colluders = config.privacy.colluders
    sites = "one site that works" if colluders == 1 else f"up to {colluders} sites that work"
    helped = f"the server and {sites} for it" if colluders else "the server alone"
    of_groups = f" of each of the {config.server.groups} groups" if config.server.groups else ""
    least = config.secure_parameters.survivors
    return f"{helped}, who see only the sum over at least {least} sites{of_groups} in every round"


def sampling(config: RunConfig) -> str:
    rate = config.privacy.sampling_rate
    if config.distils:
        return "none: each record is read by one teacher of its site, drawn in secret"
    if config.privacy.mode == "client":
        return f"Poisson, each site with q = {rate} in every round, by a coin of its own"
    return f"Poisson, each record with q = {rate} in every step, drawn in secret at the site"


def one_noise(config: RunConfig) -> bool:
    """Whether one noise covers the contributions of all sites, so that the sites' ledgers do not compose."""
    return config.privacy.mode != "local"


def limits(config: RunConfig) -> str:
    """What the ε does not say."""
    subject, hidden = "each record lives", "a site took part"
    if config.privacy.mode == "client":
        subject, hidden = "what one person gave lies", "a site is registered"
    several = "the sites' ledgers compose"
    chosen = ""
    if config.data.limit is not None and config.privacy.mode != "client":
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
    subject = "what one person gave" if config.privacy.mode == "client" else "a record"
    if one_noise(config):
        found = copies_epsilon(plan, copies)
        how = "one noise covers all copies, and the sites' ledgers do not add up to it"
    else:
        found = ledgers_epsilon(plan, copies)
        how = f"each site adds noise of its own, and the {copies} ledgers compose"
    return f"Assumed: {subject} lies at one site. At {copies} sites its ε is {found:.3g} at δ = {plan.delta:g}: {how}."


def noise(config: RunConfig) -> str:
    """Who adds the noise."""
    if config.privacy.mode == "local":
        return "each site alone, in full"
    if not config.secure:
        return "the server, before anything is used"
    p = config.secure_parameters
    return (
        f"each site a share of 1/{p.survivors - p.colluders}: with {p.survivors} of {p.sites} sites in the sum, and "
        f"{p.colluders} of them working for the server, the rest still make up the whole"
    )
