"""The resident worker's socket, and the thin side's errors."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.client.deploy import node
from confide.client.deploy.host import DeployedHost
from confide.client.deploy.resident import NO_ANSWER, _receive, ask
from confide.client.deploy.worker_process import WorkerProcess
from confide.common import wire
from confide.tests.client.test_reserve_first import SITE, changed, local_run, message, source
from confide.tests.federation import Federation
from confide.tests.tiny import sentences, write_csv


def a_message(kind: str = "query.hello", **facts: str) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict({wire.CONFIG: ConfigRecord(dict(facts))}), 1, kind)
    message.metadata.__dict__["_message_id"] = "1"
    return message


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    federation = Federation(tmp_path_factory.mktemp("site"), 1)
    federation.make()
    worker = WorkerProcess(federation.site("site-1"))
    worker.ensure()
    yield worker
    worker.close()


def test_the_socket_is_for_its_owner_only(worker: WorkerProcess) -> None:
    assert worker.socket.stat().st_mode & 0o777 == 0o600
    assert worker.socket.parent.stat().st_mode & 0o777 == 0o700


def test_it_answers(worker: WorkerProcess) -> None:
    reply = ask(str(worker.socket), a_message(), {}, 60.0, 2**20)
    assert not reply.has_error()
    assert reply.content.config_records[wire.SITE]["name"] == "site-1"


def test_a_message_that_is_too_long_is_not_sent(worker: WorkerProcess) -> None:
    message = a_message()
    message.content[wire.ARRAYS] = wire.arrays_to_record({"a": np.zeros(10_000, np.float32)})
    reply = ask(str(worker.socket), message, {}, 60.0, 2**12)
    assert reply.error.code == wire.REFUSED
    assert "max_message" in (reply.error.reason or "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 7,
        struct.pack(">QQ", 2**40, 2**40),
        struct.pack(">QQ", 2, 5) + b"{}" + b"\x00\xff\x00\xff\x01",
        struct.pack(">QQ", 3, 0) + b"{}}",
    ],
)
def test_nonsense_on_the_socket_does_not_end_it(worker: WorkerProcess, content: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(worker.socket))
        channel.sendall(content)
    assert not ask(str(worker.socket), a_message(), {}, 60.0, 2**20).has_error()


@pytest.mark.slow
def test_a_worker_that_is_gone_is_reported_and_started_again(worker: WorkerProcess) -> None:
    process = worker._process
    assert process is not None
    process.kill()
    process.wait()
    reply = ask(str(worker.socket), a_message(), {}, 5.0, 2**20)
    assert reply.error.code == wire.REFUSED  # it was not sent: nothing was charged
    assert "did not answer; what was reserved stays charged" in (reply.error.reason or "")
    worker.ensure()
    assert worker._process is not None
    assert worker._process.pid != process.pid
    assert not ask(str(worker.socket), a_message(), {}, 60.0, 2**20).has_error()


def test_a_worker_that_dies_or_hangs_with_the_message_may_have_charged(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def die() -> None:
            channel, _ = listener.accept()
            with channel:
                _receive(channel, 2**20)  # all of it: a message that was cut short is never handled

        thread = threading.Thread(target=die)
        thread.start()
        assert ask(path, a_message(), {}, 20.0, 2**20).error.code == wire.FAILED
        thread.join()
        late = ask(path, a_message(), {}, 0.2, 2**20)
        assert late.error.code == wire.FAILED
        assert "did not answer; what was reserved stays charged" in (late.error.reason or "")


def test_the_worker_ends_with_its_parent(worker: WorkerProcess) -> None:
    """It asks for its parent every second, so that a killed site leaves no process behind."""
    assert worker._process is not None
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    assert f"PPid:\t{os.getpid()}" in status


@pytest.mark.parametrize(
    ("mode", "kind", "times"),
    [("local", "train", 2), ("client", "train", 2), ("none", "train", 1), ("local", "query", 1)],
)
def test_a_site_asks_again_for_what_a_worker_kept(monkeypatch: pytest.MonkeyPatch, mode: str, kind: str, times) -> None:
    """Once, for training under privacy alone."""
    asked: list[str] = []

    def app(message: Message, context: object) -> Message:
        asked.append(message.metadata.message_type)
        if len(asked) == 1:
            return Message(Error(wire.FAILED, f"{NO_ANSWER} is gone"), reply_to=message)
        return Message(RecordDict({"kept": ConfigRecord()}), reply_to=message)

    monkeypatch.setattr(node, "app", app)
    worker: Any = SimpleNamespace(alive=True, socket="", ensure=lambda: None)
    worker.stop = lambda: setattr(worker, "alive", False)
    section = SimpleNamespace(deadline=1.0, max_message=9)
    site: Any = SimpleNamespace(_worker=worker, _section=section, _run_config=lambda *_: {"privacy.mode": mode})
    site._asked = lambda *given: node.Node._asked(site, *given)
    place: Any = SimpleNamespace(node_id=1)
    reply = node.Node._reply(site, site, place, a_message(kind))
    assert len(asked) == times
    assert reply.has_error() == (times == 1)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_a_round_has_kept_its_answer(tmp_path: Path) -> None:
    """A real process, killed once it has kept an answer and begun to read: the server sees an ordinary reply, and one
    round is charged."""
    federation = Federation(tmp_path, 1)
    federation.make()
    folder = federation.site(SITE)
    write_csv(source(federation), sentences(20_000, 3))
    run = changed(local_run(federation), {"privacy": {"sampling_rate": 1.0, "epsilon": 6.0}})
    arrays = wire.arrays_to_record(DeployedHost(folder).enter(run.to_flat()).worker().model.initial)
    facts = wire.task_config()
    facts[wire.ROUND] = 1
    worker = WorkerProcess(folder)
    section = SimpleNamespace(deadline=600.0, max_message=2**28)
    site: Any = SimpleNamespace(_worker=worker, _section=section, _run_config=lambda *_: run.to_flat())
    site._asked = lambda *given: node.Node._asked(site, *given)
    killed: list[int] = []

    def kill() -> None:
        while not list(folder.glob("replies/*.train")):
            time.sleep(0.01)
        process = worker._process
        assert process is not None
        process.kill()
        killed.append(process.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    place: Any = SimpleNamespace(node_id=1)
    try:
        reply = node.Node._reply(
            site, site, place, message("train", RecordDict({wire.ARRAYS: arrays, wire.CONFIG: facts}))
        )
    finally:
        worker.close()
    assert killed
    assert not reply.has_error(), reply.error.reason
    assert reply.content.array_records[wire.ARRAYS].keys() == arrays.keys()
    assert DeployedHost(folder).site.ledger.charge("default", "r1").used == 1
