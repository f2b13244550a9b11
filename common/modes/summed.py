"""What modes share whose releases are sums over sites, secure or by a trusted server."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.run import RunConfig


def summed(config: "RunConfig") -> bool:
    return True


def adversary(config: "RunConfig") -> str:
    if not config.secure:
        return "everybody who sees the models; the server is trusted: it sees each clipped update and adds the noise"
    colluders = config.privacy.colluders
    sites = "one site that works" if colluders == 1 else f"up to {colluders} sites that work"
    helped = f"the server and {sites} for it" if colluders else "the server alone"
    of_groups = f" of each of the {config.server.groups} groups" if config.server.groups else ""
    least = config.secure_parameters.survivors
    return f"{helped}, who see only the sum over at least {least} sites{of_groups} in every round"


def noise(config: "RunConfig") -> str:
    if not config.secure:
        return "the server, before anything is used"
    p = config.secure_parameters
    return (
        f"each site a share of 1/{p.survivors - p.colluders}: with {p.survivors} of {p.sites} sites in the sum, and "
        f"{p.colluders} of them working for the server, the rest still make up the whole"
    )
