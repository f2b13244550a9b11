"""Rules of aggregations that tolerate Byzantine sites, among single updates or among sums of groups."""

from typing import TYPE_CHECKING

from ..byzantine import most_left_out
from .rule import Rule, private

if TYPE_CHECKING:
    from ..run import RunConfig


def _compares(config: "RunConfig", unit: str) -> bool:
    """Whether a robust aggregation compares a known number of `sites`, or of `groups`."""
    known = config.server.robust and config.data.partition.clients is not None
    return known and unit == ("groups" if config.server.groups else "sites")


def _tolerates(config: "RunConfig") -> bool:
    return config.most_byzantine >= max(1, config.byzantine)


def _none_to_spare(config: "RunConfig") -> bool:
    """Whether leaving one out would be one too many."""
    f = config.byzantine
    return f > 0 and most_left_out(config.server.aggregation, config.compared, f) == 0


def _for_robust(key: str, value: str) -> Rule:
    """A setting of robust aggregations alone."""
    return Rule(
        key=f"server.{key}",
        when="an aggregation that tolerates no Byzantine site",
        refused=lambda c: not c.server.robust and getattr(c.server, key) is not None,
        reason="{c.server.aggregation} does not use it",
        remedy="choose trimmedmean, or remove it",
        example=(f"server.{key}={value}",),
    )


def _tolerance(unit: str, compared: tuple[str, ...], *, f: int) -> tuple[Rule, ...]:
    """How many Byzantine sites a round tolerates. compared: a run that compares units; f: more than it tolerates."""
    return (
        Rule(
            key="server.aggregation",
            when=f"too few {unit} in a round",
            refused=lambda c: _compares(c, unit) and c.most_byzantine < 1,
            reason=f"with {{c.compared}} {unit} it tolerates none that is Byzantine",
            remedy=f"ask more {unit}, or choose trimmedmean",
            example=(*compared, "server.aggregation=bulyan"),
        ),
        Rule(
            key="server.byzantine",
            when=f"an aggregation of {unit} that tolerates fewer",
            refused=lambda c: _compares(c, unit) and c.most_byzantine >= 1 and not _tolerates(c),
            reason=f"{{c.server.aggregation}} tolerates at most {{c.most_byzantine}} of {{c.compared}} {unit}",
            remedy=f"lower it, ask more {unit}, or choose trimmedmean",
            example=(*compared, f"server.byzantine={f}"),
        ),
        Rule(
            key="server.momentum",
            when=f"too few {unit} to leave one out",
            refused=lambda c: _compares(c, unit) and bool(c.server.momentum) and _tolerates(c) and _none_to_spare(c),
            reason=f"above 0 it leaves out at least one of {{c.compared}} {unit}, and {{c.server.aggregation}} would "
            f"not tolerate {{c.byzantine}} Byzantine {unit} among the others",
            remedy=f"set it to 0, lower server.byzantine, or ask more {unit}",
            example=(*compared, f"server.byzantine={f - 1}", "server.momentum=0.5"),
        ),
    )


_THREE_GROUPS = (*private("distributed"), "server.aggregation=trimmedmean", "server.groups=3")

BYZANTINE = (
    _for_robust("byzantine", "1"),
    _for_robust("mixing", "true"),
    _for_robust("momentum", "0.5"),
    *_tolerance("sites", ("server.aggregation=median", "data.partition.clients=5"), f=3),
    *_tolerance("groups", _THREE_GROUPS, f=2),
    Rule(
        key="server.momentum",
        when="server.byzantine 0",
        refused=lambda c: c.server.robust and c.server.byzantine == 0 and bool(c.server.momentum),
        reason="it leaves out as many sites as may be Byzantine, which is none",
        remedy="set it to 0, or server.byzantine to 1 and more",
        example=("server.aggregation=trimmedmean", "server.byzantine=0", "server.momentum=0.5"),
    ),
    Rule(
        key="server.groups",
        when="no secure aggregation",
        refused=lambda c: c.server.groups is not None and not c.secure,
        reason="sums of groups are for secure aggregation (modes distributed and client)",
        remedy="choose such a mode, or remove it",
        example=("server.groups=3", "server.aggregation=trimmedmean"),
    ),
    Rule(
        key="server.groups",
        when="an aggregation that tolerates no Byzantine site",
        refused=lambda c: c.server.groups is not None and not c.server.robust,
        reason="sums of groups are compared by a robust aggregation, which {c.server.aggregation} is not",
        remedy="choose one, e.g. trimmedmean, or remove it",
        example=(*private("distributed"), "server.groups=3"),
    ),
    Rule(
        key="server.groups",
        when="a number of sites that it does not divide",
        refused=lambda c: (
            c.server.groups is not None
            and c.data.partition.clients is not None
            and c.data.partition.clients % c.server.groups != 0
        ),
        reason="groups are of one size",
        remedy="choose a divisor of {c.data.partition.clients}",
        example=(*_THREE_GROUPS, "server.groups=4"),
    ),
    Rule(
        key="server.groups",
        when="privacy.clip_quantile",
        refused=lambda c: c.server.groups is not None and c.privacy.clip_quantile is not None,
        reason="the clip norm adapts to the unclipped updates that one sum over all sites counts",
        remedy="remove one",
        example=(
            *private("client"),
            "server.aggregation=trimmedmean",
            "server.groups=3",
            "privacy.clip_quantile=0.5",
        ),
    ),
    Rule(
        key="server.groups",
        when="canaries",
        refused=lambda c: c.server.groups is not None and bool(c.audit.planted),
        reason="canaries are scored on the sum over all sites",
        remedy="remove one",
        example=(*_THREE_GROUPS, "audit.canaries=90"),
    ),
)
