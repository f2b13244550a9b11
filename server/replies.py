"""What comes back from the sites of one round: checked before anything is aggregated."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Error, Message

from ..common import wire
from ..common.errors import WireError
from ..common.types import Adapter, Update, joined, split
from .aggregate.aggregation import weight_cap
from .aggregate.robust import bounded
from .plausible import one_line


@dataclass
class Replies:
    """Replies of one round, checked as they come; errors are noted and left out."""

    names: dict[int, str]
    expected: Adapter | None
    """the arrays of an update; None: masked inputs"""
    on_reply: Callable[[], None]
    on_update: Callable[[str, Update], None]
    max_norm: float | None = None
    """longer updates are shortened to it"""
    plausible: Callable[[Update], None] = lambda update: None
    """raises WireError for what no honest site of the run sends"""
    weights: dict[str, float] = field(default_factory=dict)
    """what each site claims"""
    sites: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """said that they charged nothing"""
    declined: dict[str, str] = field(default_factory=dict)
    """and will not take part in this run, with the reason"""
    steps: dict[str, int] = field(default_factory=dict)
    """what each site says it has charged in all"""
    evaluations: dict[str, int] = field(default_factory=dict)
    """likewise"""
    losses: list[tuple[float, float]] = field(default_factory=list)
    keys_lost: bool = False
    """a site holds no keys of the set-up of secure sums"""
    bytes_up: int = 0

    def accept(self, messages: Iterable[Message]) -> Iterator[tuple[str, Update, Message]]:
        """Site (by its node, whatever the update says), update and message of each good reply."""
        for message in messages:
            site = self.names.pop(message.metadata.src_node_id, None)
            if site is None:
                continue  # not asked, or a second answer
            self.on_reply()
            if message.has_error():
                self.failed.append({"site": site, "reason": reason_of(message.error)})
                if message.error.code in (wire.REFUSED, wire.DECLINED, wire.KEYS_LOST):
                    self.refused.append(site)
                self.keys_lost |= message.error.code == wire.KEYS_LOST
                if message.error.code == wire.DECLINED:
                    self.declined[site] = reason_of(message.error)
                continue
            try:
                update = wire.decode_update(message.content, self.expected)
                self.plausible(update)
                update = _shortened(update, self.max_norm)
            except WireError as error:
                self.failed.append({"site": site, "reason": str(error)})
                continue
            self.sites.append(site)
            self.weights[site] = update.weight
            self.steps[site], self.evaluations[site] = update.steps, update.evaluations
            self.on_update(site, update)
            self.bytes_up += wire.byte_count(message.content)
            if "loss" in update.metrics:
                self.losses.append((update.weight, update.metrics["loss"]))
            yield site, update, message

    def close(self) -> None:
        """Notes the sites that gave no answer."""
        self.failed += [{"site": site, "reason": "no reply within the deadline"} for site in self.names.values()]
        self.names = {}


def reason_of(error: Error) -> str:
    """In one printable line, whatever a site wrote."""
    return one_line(error.reason or "") or "no reason given"


def _shortened(update: Update, norm: float | None) -> Update:
    """An update no longer than `norm`, in L2 over all its arrays."""
    if norm is None or not update.delta:
        return update
    (vector,) = bounded(joined(update.delta)[None], norm)
    return replace(update, delta=split(vector, update.delta))


def capped(weights: Mapping[str, float]) -> list[str] | None:
    """Sites that claim more than counts; None: none."""
    cap = weight_cap(weights.values()) if weights else 0.0
    return sorted(site for site, weight in weights.items() if weight > cap) or None
