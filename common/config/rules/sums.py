"""Rules of secure sums: how many sites they need, how many may vanish, how many may work for the server.

`secagg.params.Parameters` checks the same numbers again where keys are made; a test holds the two together.
"""

from typing import TYPE_CHECKING

from .rule import Rule, private

if TYPE_CHECKING:
    from ..run import RunConfig


def _sums(config: "RunConfig") -> bool:
    """Whether sums are secure over a known number of sites; of a `natural` partition it is known with the data."""
    return config.secure and config.data.partition.clients is not None


def _hides(config: "RunConfig") -> bool:
    return _sums(config) and config.sites_per_sum >= 2


def _survives(config: "RunConfig") -> bool:
    return _hides(config) and 2 <= config.survivors_per_sum <= config.sites_per_sum


SUMS = (
    Rule(
        key="server.upload_dtype",
        when="secure aggregation",
        refused=lambda c: c.secure and c.server.upload_dtype != "float32",
        reason="what is uploaded are packed integers",
        remedy="remove it",
        example=(*private("distributed"), "server.upload_dtype=float16"),
    ),
    Rule(
        key="server.min_survivors",
        when="no secure aggregation",
        refused=lambda c: not c.secure and c.server.min_survivors is not None,
        reason="it counts the inputs of a secure sum",
        remedy="remove it, or use server.min_clients",
        example=("server.min_survivors=5",),
    ),
    Rule(
        key="data.partition.clients",
        when="secure aggregation",
        refused=lambda c: _sums(c) and not _hides(c),
        reason="a secure sum over {c.sites_per_sum} of them hides nothing",
        remedy="allowed: 2 and more, and as many for each of server.groups",
        example=(*private("distributed"), "data.partition.clients=1", "server.min_clients=1"),
    ),
    Rule(
        key="server.min_survivors",
        when="secure aggregation",
        refused=lambda c: _hides(c) and not _survives(c),
        reason="a sum is over {c.sites_per_sum} sites",
        remedy="allowed: from 2 to {c.sites_per_sum}",
        example=(*private("distributed"), "server.min_survivors=10"),
    ),
    Rule(
        key="privacy.colluders",
        when="secure aggregation",
        refused=lambda c: _survives(c) and c.privacy.colluders >= c.survivors_per_sum,
        reason="of the {c.survivors_per_sum} sites that a sum is opened with at least, one must not work for the "
        "server, or nobody's noise counts",
        remedy="lower it, or raise server.min_survivors or data.partition.clients",
        example=(*private("distributed"), "privacy.colluders=9"),
    ),
    Rule(
        key="server.min_survivors",
        when="secure aggregation and privacy.colluders",
        refused=lambda c: (
            _survives(c)
            and c.privacy.colluders < c.survivors_per_sum
            and 2 * c.survivors_per_sum <= c.sites_per_sum + c.privacy.colluders
        ),
        reason="of {c.sites_per_sum} sites {c.privacy.colluders} may collude, and the server could have two sets of "
        "survivors confirmed",
        remedy="allowed: more than ({c.sites_per_sum} + {c.privacy.colluders}) / 2; raise it, lower privacy.colluders, "
        "or remove it",
        example=(*private("distributed"), "server.min_survivors=2"),
    ),
)
