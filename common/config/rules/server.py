"""Rules of a round at the server: the sites that it asks, the options of its aggregation, and when it stops."""

from typing import TYPE_CHECKING

from .rule import Rule

if TYPE_CHECKING:
    from ..run import RunConfig


def _fewer_sites_than(count: int | None, config: "RunConfig") -> bool:
    clients = config.data.partition.clients
    return count is not None and clients is not None and clients < count


SERVER = (
    Rule(
        key="server.cohort",
        when="fewer sites than that",
        refused=lambda c: _fewer_sites_than(c.server.cohort, c),
        reason="a round cannot ask more sites than there are",
        remedy="allowed: at most {c.data.partition.clients}",
        example=("server.cohort=10",),
    ),
    Rule(
        key="server.min_clients",
        when="fewer sites than that",
        refused=lambda c: c.server.cohort is None and _fewer_sites_than(c.server.min_clients, c),
        reason="a round asks only {c.data.partition.clients} sites",
        remedy="lower it, or raise data.partition.clients",
        example=("server.min_clients=10",),
    ),
    Rule(
        key="server.min_clients",
        when="a smaller server.cohort",
        refused=lambda c: c.server.cohort is not None and c.server.cohort < c.server.min_clients,
        reason="a round asks only {c.server.cohort} sites",
        remedy="lower it, or raise server.cohort",
        example=("server.min_clients=6", "server.cohort=5"),
    ),
    Rule(
        key="server.options",
        when="an aggregation that is none of Flower's",
        refused=lambda c: bool(c.server.options) and not c.server.flower,
        reason="{c.server.aggregation} takes no options",
        remedy="remove them, or choose a Flower strategy",
        example=("server.options.eta=1.0",),
    ),
    Rule(
        key="server.options.client_learning_rate",
        when="aggregation 'qfedavg'",
        refused=lambda c: c.server.aggregation == "qfedavg" and "client_learning_rate" not in c.server.options,
        reason="the strategy scales updates by it and has no default",
        remedy="set it, e.g. to training.learning_rate",
        example=("server.aggregation=qfedavg",),
    ),
    Rule(
        key="server.patience",
        when="no data.validation",
        refused=lambda c: c.server.patience is not None and c.data.validation is None,
        reason="a run that stops when the test set looks best is measured on what chose it",
        remedy="set data.validation to another public set, or remove it",
        example=("server.patience=2",),
    ),
)
