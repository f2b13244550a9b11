"""What goes wrong in whole simulations, for tests: sites that vanish, a crash in a round, noise switched off."""

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from confide.client.worker import Worker
from confide.simulations.local import _SERVER_NODE, LocalGrid


def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.common.privacy.pieces.add_noise", lambda *_, **__: None)


def fails(
    monkeypatch: pytest.MonkeyPatch, action: str, failing: dict[int, set[int]], code: int = ErrorCode.UNKNOWN
) -> None:
    """Sites (by number) whose `action` fails in the named rounds: the node's message is answered with an error."""
    real = LocalGrid._handle
    seen: dict[int, int] = {}

    def handle(self, message):
        number = message.metadata.dst_node_id - _SERVER_NODE - 1
        if message.metadata.message_type == action:
            seen[number] = seen.get(number, 0) + 1
            if seen[number] in failing and number in failing[seen[number]]:
                message.metadata.__dict__["_message_id"] = "x"
                return Message(Error(code, "vanished"), reply_to=message)
        return real(self, message)

    monkeypatch.setattr(LocalGrid, "_handle", handle)


def dies_in(monkeypatch: pytest.MonkeyPatch, round_: int) -> None:
    """The process is interrupted while sites train in this round."""
    real = Worker.train

    def dies(self, number, task, account, *rest):
        if task.round == round_:
            raise KeyboardInterrupt
        return real(self, number, task, account, *rest)

    monkeypatch.setattr(Worker, "train", dies)
