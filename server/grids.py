"""Flower Grids of ours: part of a grid, and one that asks for replies often and hands them on one by one."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

_FIRST_POLL, _LONGEST_POLL = 0.1, 1.0
_LEAST_SECONDS, _SLOWER = 120.0, 5.0


class Pace:
    """How long a round waits: the declared deadline, or less once it is known how long sites take."""

    def __init__(self, most: float) -> None:
        """most: seconds, `server.deadline`."""
        self._most = most
        self._slowest: float | None = None

    @property
    def seconds(self) -> float:
        """Five times the slowest answer so far, but no less than two minutes: a site may have to load its model."""
        if self._slowest is None:
            return self._most
        return min(self._most, max(_LEAST_SECONDS, _SLOWER * self._slowest))

    def answered(self, seconds: float) -> None:
        self._slowest = max(self._slowest or 0.0, seconds)


class Cohort(Grid):
    """The part of a grid that takes part in this round: what a strategy may sample from."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return (NodeInfo(node_id=node) for node in self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


class QuickGrid(Cohort):
    """All of a SuperLink's grid: asks for replies up to ten times a second where Flower waits three seconds, and hands
    each on as it comes, so that memory does not grow with the number of sites."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid, [])

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._grid.get_nodes()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """A message lives as long as its reply is waited for; a later reply is refused by the SuperLink."""
        messages = list(messages)
        if timeout is not None:
            for message in messages:
                message.metadata.ttl = timeout
        asked = {i: m.metadata.dst_node_id for i, m in zip(self.push_messages(messages), messages, strict=False) if i}
        open_ids = set(asked)
        until = time.monotonic() + (timeout if timeout is not None else float("inf"))
        pause = _FIRST_POLL
        while open_ids and time.monotonic() < until:
            replies = list(self.pull_messages(sorted(open_ids)))
            for reply in replies:
                open_ids.discard(reply.metadata.reply_to_message_id)
                # the SuperLink answers in its own name for a node that it has lost
                reply.metadata.__dict__["_src_node_id"] = asked[reply.metadata.reply_to_message_id]
                yield reply
            pause = _FIRST_POLL if replies else min(_LONGEST_POLL, pause * 1.3)
            if open_ids:
                time.sleep(pause)
