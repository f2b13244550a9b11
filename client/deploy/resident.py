"""The resident worker of a real site: one process that keeps model, data, ledger and secure-sum state loaded, behind a
Unix socket of mode 0600; and the thin side that asks it. Imports no torch until the worker runs.

A message travels as two lengths (big-endian, 8 bytes each), the run's configuration as JSON, and Flower's protobuf.
"""

import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
import threading
from pathlib import Path

from flwr.app import Error, Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from ...common import wire
from ...common.errors import ConfideError, WorkerError
from ...common.logs import log_to

_LENGTHS = struct.Struct(">QQ")
NO_ANSWER = "the site's worker"
"""how the reason of an error begins where the worker ended, or is late"""
_CONNECT_SECONDS = 5.0
_CONFIG_LIMIT = 2**20
"""bytes of a run's configuration"""


def ask(path: str, message: Message, run_config: dict, deadline: float, limit: int) -> Message:
    """The worker's reply; an error reply when it is gone, late, or says too much.

    deadline: seconds. limit: bytes either way.
    """
    sent = False
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(_CONNECT_SECONDS)
            channel.connect(path)
            channel.settimeout(deadline)
            _send(channel, json.dumps(run_config).encode(), message_to_proto(message).SerializeToString(), limit)
            sent = True
            _, content = _receive(channel, limit)
        answer = message_from_proto(ProtoMessage.FromString(content))
    except OSError:  # late, or gone: the server does not learn which, since that may depend on what the records are
        return _error(message, sent, f"{NO_ANSWER} did not answer; what was reserved stays charged")
    except WorkerError as error:
        return _error(message, sent, str(error))
    if answer.has_error():
        return Message(answer.error, reply_to=message)
    return Message(answer.content, reply_to=message)


def _error(message: Message, sent: bool, reason: str) -> Message:
    """Before it was sent nothing was charged; after, it may have been."""
    return Message(Error(wire.FAILED if sent else wire.REFUSED, reason), reply_to=message)


def _send(channel: socket.socket, head: bytes, content: bytes, limit: int) -> None:
    """Raises WorkerError when it is too long."""
    if len(head) > _CONFIG_LIMIT or len(content) > limit:
        raise WorkerError(f"a message of {len(head) + len(content):,} bytes; site.max_message allows {limit:,}")
    channel.sendall(_LENGTHS.pack(len(head), len(content)))
    channel.sendall(head)
    channel.sendall(content)


def _receive(channel: socket.socket, limit: int) -> tuple[bytes, bytes]:
    """Raises WorkerError when it is too long, OSError when the other side is gone."""
    first, second = _LENGTHS.unpack(_exactly(channel, _LENGTHS.size))
    if first > _CONFIG_LIMIT or second > limit:
        raise WorkerError(f"a message of {first + second:,} bytes; site.max_message allows {limit:,}")
    return _exactly(channel, first), _exactly(channel, second)


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = channel.recv(min(2**20, count - len(parts)))
        if not part:
            raise ConnectionError("the other side is gone")
        parts += part
    return bytes(parts)


def serve(folder: Path, path: Path, parent: int) -> None:
    """Answers messages one after the other until it is told to stop, or the process `parent` is gone."""
    from ..handlers import handle
    from .folder import load_site
    from .host import DeployedHost

    log_to(folder / "worker.log")
    _, section = load_site(folder)
    if section.max_memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (section.max_memory, section.max_memory))
    host = DeployedHost(folder)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # the socket is born with mode 0600
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(4)
    _die_with(parent)
    while True:
        channel, _ = listener.accept()
        with channel:
            channel.settimeout(60.0)
            try:
                head, content = _receive(channel, section.max_message)
                message = message_from_proto(ProtoMessage.FromString(content))
                del content
                identity = message.metadata
                TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
                    identity.run_id,
                    identity.dst_node_id,
                    1,
                )
                try:
                    reply = handle(message, host.enter(json.loads(head)))
                except ConfideError as failure:
                    reply = Message(Error(wire.DECLINED, str(failure)), reply_to=message)
                _send(channel, b"", message_to_proto(reply).SerializeToString(), section.max_message)
            except Exception as error:
                # the asking side has given up, or sent what is no message (protobuf's errors have no common base);
                # its own error says so
                logging.getLogger("confide.worker").warning("no message: %s", type(error).__name__)


def _die_with(parent: int) -> None:
    """parent: the process that started this one; it may have ended before this line."""

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
