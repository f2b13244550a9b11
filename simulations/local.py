"""A Flower Grid that runs ClientApps in this process: no daemon, no serialisation, the backbone loaded once.

Messages and handlers are those of a deployment. Replies are handed on one by one, so that they can be folded into the
aggregate and forgotten.
"""

import math
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_SERVER_NODE = 1


class LocalGrid(Grid):
    """`clients` nodes, numbered from 2 on; node i + 2 is partition i. Flower's node state lives as long as the grid.

    workers: clients that run at the same time, each in a thread with its share of torch's.
    """

    def __init__(self, app: ClientApp, run_config: dict, clients: int, workers: int = 1) -> None:
        self._app = app
        self._run = Run.create_empty(run_id=uuid.uuid4().int & (2**63 - 1))
        self._run_config = UserConfig(run_config)
        self._clients = clients
        self._workers = workers
        self._states: dict[int, RecordDict] = {}
        self._pending: dict[str, Message] = {}
        # Flower stamps messages with the identity of the process' task
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self._run.run_id, _SERVER_NODE, 1

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return range(_SERVER_NODE + 1, _SERVER_NODE + 1 + self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            reply = self._handle(message)
            self._pending[message.metadata.message_id] = reply
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._pending.pop(i) for i in message_ids if i in self._pending]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Replies in the order of the messages; clients whose turn comes after the deadline do not run or answer."""
        until = math.inf if timeout is None else time.monotonic() + timeout

        def answer(message: Message) -> Message | None:
            return None if time.monotonic() > until else self._handle(message)

        threads = torch.get_num_threads()
        share = max(1, threads // self._workers)
        coming: deque[Future[Message | None]] = deque()
        try:
            with ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
                for message in messages:
                    if len(coming) == 2 * self._workers:  # no further ahead: replies wait in memory
                        yield from _arrived(coming)
                    coming.append(pool.submit(answer, message))
                while coming:
                    yield from _arrived(coming)
        finally:
            torch.set_num_threads(threads)

    def _handle(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = uuid.uuid4().hex  # as Flower's own engines set it
        node = message.metadata.dst_node_id
        context = Context(
            run_id=self._run.run_id,
            node_id=node,
            node_config=UserConfig({"partition-id": node - _SERVER_NODE - 1, "num-partitions": self._clients}),
            state=self._states.setdefault(node, RecordDict()),
            run_config=self._run_config,
        )
        return self._app(message, context)


def _arrived(coming: deque[Future[Message | None]]) -> Iterator[Message]:
    """The oldest task's reply, once it is there; nothing when its turn came too late."""
    reply = coming.popleft().result()
    if reply is not None:
        yield reply


@contextmanager
def kept_identity() -> Iterator[None]:
    """After the block Flower stamps messages of this process as before: a grid that is made within changes it."""
    before = TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id
    try:
        yield
    finally:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = before
