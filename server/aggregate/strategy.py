"""How a round's updates become the next adapter: our own strategy, or one of Flower's by its name."""

from collections.abc import Iterable, Iterator, Mapping

import flwr.serverapp.strategy as flower_strategies
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ...common import wire
from ...common.config.run import RunConfig
from ...common.config.tables import FLOWER_STRATEGIES, GIVEN_STRATEGY
from ...common.errors import ConfigError
from ...common.types import Adapter, Update, split
from ..checkpoint import arrays_of, restore_arrays
from .aggregation import Aggregate, ProductMean, Robust, RobustState, ServerStep, make_aggregate, weight_cap

_ROBUST = "robust/"
"""arrays of `RobustState` in a checkpoint"""


class StreamingStrategy(Strategy):
    """Ours: each reply is folded into the aggregate and, where the aggregate allows it, forgotten."""

    def __init__(self, config: RunConfig, trained: Adapter, queries: tuple[str, ...] = ()) -> None:
        """queries: public texts that go with each task, for the sites' teachers."""
        self._config = config
        self._queries = queries
        self._adapter: Adapter = {}
        self._round = 0
        self._trained = trained
        coordinates = sum(array.size for array in trained.values())
        self._robust = RobustState(config, coordinates) if config.server.robust else None
        self.step = ServerStep(config, trained)
        self.residual: float | None = None
        self.outliers: list[str] | None = None
        self.left_out: list[str] | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._adapter, self._round = wire.record_to_arrays(arrays), server_round
        config[wire.ROUND] = server_round
        content = RecordDict({wire.ARRAYS: arrays, wire.CONFIG: config})
        if self._queries:
            content[wire.QUERIES] = ConfigRecord({wire.TEXTS: list(self._queries)})
        return [Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's interface to `aggregate`."""
        updates = (wire.decode_update(message.content, self._trained) for message in replies)
        return self.aggregate((update.site, update) for update in updates), None

    def aggregate(self, updates: Iterable[tuple[str, Update]]) -> ArrayRecord | None:
        """The next adapter from the updates of a round, by site; None when too few came.

        Raises RoundError when too few came for the Byzantine sites that a robust aggregation is to tolerate.
        """
        aggregate = make_aggregate(self._config, self._adapter, self._trained, self._robust)
        count = 0
        for site, update in updates:
            aggregate.add(update.delta, update.weight, site)
            count += 1
        self.outliers = self.left_out = None
        if count < self._config.server.min_clients:
            return None
        return self._applied(aggregate)

    def combined(self, changes: Mapping[str, np.ndarray]) -> ArrayRecord:
        """The next adapter from secure sums of groups, by a robust aggregation. changes: (d,) by group.

        Raises RoundError when too few groups came for the Byzantine sites that it is to tolerate.
        """
        aggregate = make_aggregate(self._config, self._adapter, self._trained, self._robust)
        for group, change in changes.items():
            aggregate.add(split(change, self._trained), 1.0, group)
        self.outliers = self.left_out = None
        return self._applied(aggregate)

    def _applied(self, aggregate: Aggregate) -> ArrayRecord:
        change = aggregate.finish()
        self.residual = aggregate.residual if isinstance(aggregate, ProductMean) else None
        if isinstance(aggregate, Robust):
            self.outliers, self.left_out = aggregate.outliers, aggregate.left_out
        return wire.arrays_to_record(self.step.apply(self._adapter, change, self._round))

    def state(self) -> Adapter:
        """For a checkpoint."""
        kept = {} if self._robust is None else self._robust.arrays()
        return {**self.step.state(), **{_ROBUST + name: array for name, array in kept.items()}}

    def restore(self, state: Adapter) -> None:
        if self._robust is not None:
            kept = {name.removeprefix(_ROBUST): array for name, array in state.items() if name.startswith(_ROBUST)}
            self._robust.restore(kept)
        self.step.restore({name: array for name, array in state.items() if not name.startswith(_ROBUST)})

    def summed(self, change: np.ndarray) -> ArrayRecord:
        """The next adapter, for modes that release a sum. change: (d,) of the trained numbers."""
        return wire.arrays_to_record(self.step.apply(self._adapter, split(change, self._trained), self._round))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []  # the server evaluates, on public data

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        """Nothing to add to the report."""


def make_strategy(
    config: RunConfig, trained: Adapter, queries: tuple[str, ...] = (), given: Strategy | None = None
) -> Strategy:
    """Ours, Flower's by name, or the one that was given. Raises ConfigError for options that the strategy does not
    take, and where none was given that the run needs."""
    name = config.server.aggregation
    if (given is None) == (name == GIVEN_STRATEGY):
        raise ConfigError(
            f"server.aggregation: '{name}' with {'no' if given is None else 'a'} strategy object; '{GIVEN_STRATEGY}' "
            "and the argument strategy of confide.simulate or confide.resume go together"
        )
    if given is not None:
        return given
    if name not in FLOWER_STRATEGIES:
        return StreamingStrategy(config, trained, queries)
    kind = getattr(flower_strategies, FLOWER_STRATEGIES[name])
    sampling = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_evaluate_nodes": 0}
    least = {"min_train_nodes": config.server.min_clients, "min_available_nodes": config.server.min_clients}
    options = dict(config.server.options)
    named = {"train_loss_key": "loss"} if name == "qfedavg" else {}
    try:
        return kind(**sampling, **least, **named, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"server.options: received {options} for '{name}': {error}; correct them") from None


def strategy_state(strategy: Strategy) -> Adapter:
    """What a strategy keeps from round to round, as arrays."""
    return strategy.state() if isinstance(strategy, StreamingStrategy) else arrays_of(strategy)


def restore_strategy(strategy: Strategy, state: Adapter) -> None:
    """What `strategy_state` gave, after a checkpoint."""
    if isinstance(strategy, StreamingStrategy):
        strategy.restore(state)
    else:
        restore_arrays(strategy, state)


def aggregate_with_flower(
    strategy: Strategy,
    config: RunConfig,
    adapter: Adapter,
    number: int,
    arriving: Iterator[tuple[str, Update, Message]],
) -> ArrayRecord | None:
    """Flower's strategies take whole adapters, not deltas, and all at once; sorted, so that sums have one order."""
    messages: dict[str, Message] = {}
    claimed: dict[str, float] = {}
    for site, update, message in arriving:
        claimed[site] = update.weight
        whole = {name: adapter[name] + delta for name, delta in update.delta.items()}
        message.content = RecordDict(
            {
                wire.ARRAYS: wire.arrays_to_record(whole),
                wire.METRICS: MetricRecord({wire.WEIGHT: update.weight, **update.metrics}),
            }
        )
        messages[site] = message
    if len(messages) < config.server.min_clients:
        return None
    cap = weight_cap(claimed.values())
    for site, message in messages.items():
        message.content.metric_records[wire.METRICS][wire.WEIGHT] = min(claimed[site], cap)
    arrays, _ = strategy.aggregate_train(number, [messages[site] for site in sorted(messages)])
    if arrays is None:
        return None
    # some strategies answer in float64
    return wire.arrays_to_record({name: array.numpy().astype(np.float32) for name, array in arrays.items()})
