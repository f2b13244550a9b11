"""`confide site run`: the connection of one site to the federation, over Flower's fleet interface.

Flower's own SuperNode installs and runs the code of whatever bundle the server submits, starts a process for every
message, and opens a port on the site. This one speaks the same protocol over one outgoing connection and runs nothing
but what is installed here: from a bundle it reads the configuration, and it refuses a bundle that holds anything else.
"""

import fcntl
import json
import logging
import random
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.user_config import UserConfig
from flwr.common.config import get_fused_config_from_fab
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient

from ...common import wire
from ...common.errors import DeploymentError, WireError, WorkerError
from ...common.ledger.chain import write_json
from ...common.ledger.ledger import Ledger
from ..app import DEADLINE, LIMIT, SOCKET, app
from .connection import FRAMING, check_bundle, connection_problem, fleet_client, read_node_key, told
from .contents import take_digests
from .folder import LEDGER, NODE_KEY, load_site
from .resident import NO_ANSWER
from .worker_process import WorkerProcess

HEARTBEAT_SECONDS = 30.0
"""after twice as long without one, the server holds the site to be away"""
STATE = "state.json"
_LONGEST_BACKOFF = 60.0

log = logging.getLogger("confide.site")


class Node:
    """One site's connection; `run` returns after `stop`."""

    def __init__(self, folder: Path) -> None:
        """Reads every data set once, for its digest, before any task is known. Raises ConfigError, DeploymentError,
        LedgerError."""
        self._folder = folder
        config, self._section = load_site(folder)
        self._keys = read_node_key(folder / NODE_KEY)
        for name, reason in take_digests(folder, config, Ledger.open(folder / LEDGER)).items():
            log.error("data set '%s' cannot be read, so runs on it are answered with noise alone: %s", name, reason)
        self._stopped = threading.Event()
        self._worker = WorkerProcess(folder)
        self._configs: dict[int, dict[str, Any]] = {}
        self._refused: dict[int, str] = {}
        self._state = {**read_state(folder), "connected": False}

    def _tell(self, **facts: Any) -> None:
        """For `confide site status`: no content of a record, no message."""
        self._state |= facts
        write_json(self._folder / STATE, self._state)

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        """Until `stop`: connects, asks for work, answers; after any failure of the connection it tries again."""
        failures = 0
        try:
            self._worker.ensure()
            while not self._stopped.is_set():
                try:
                    with self._connected() as (client, node):
                        failures = 0
                        self._serve(client, node)
                except (httpx.HTTPError, OSError, WireError, RuntimeError, ValueError, WorkerError) as error:
                    failures += 1
                    pause = min(_LONGEST_BACKOFF, 2.0 ** min(failures, 6)) * random.uniform(0.5, 1.0)
                    problem = connection_problem(error, self._section)
                    log.warning("%s; next try in %.0f s", problem, pause)
                    self._tell(connected=False, last_error=problem, last_error_at=_now())
                    self._stopped.wait(pause)
        finally:
            self._worker.close()
            self._tell(connected=False)
            log.info("stopped")

    @contextmanager
    def _connected(self) -> Iterator[tuple[FleetHttpClient, ProtoNode]]:
        client = fleet_client(self._folder, self._section, self._keys)
        with client:
            node = self._enter(client)
            log.info("connected to %s", self._section.server)
            self._tell(connected=True, connected_at=_now(), node=node.node_id)
            over = threading.Event()
            beating = threading.Thread(target=self._beat, args=(node, over), daemon=True)
            beating.start()
            try:
                yield client, node
            finally:
                over.set()
                beating.join(timeout=HEARTBEAT_SECONDS)
                try:
                    client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
                except (httpx.HTTPError, RuntimeError, OSError):
                    log.debug("could not say goodbye")

    def _enter(self, client: FleetHttpClient) -> ProtoNode:
        """The node as the server knows it. A connection that broke is taken up again: to a server that has not missed
        the site yet, entering anew would be refused."""
        if (known := self._state.get("node")) is not None:
            node = ProtoNode(node_id=int(known))
            try:
                if client.SendNodeHeartbeat(_heartbeat(node)).success:
                    return node
            except httpx.HTTPStatusError:
                log.debug("the server knows another node by this key")
        public = public_key_to_bytes(self._keys[1])
        answer = client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_SECONDS))
        return ProtoNode(node_id=answer.node_id)

    def _beat(self, node: ProtoNode, over: threading.Event) -> None:
        """On a connection of its own, so that a long upload does not look like an absence."""
        with fleet_client(self._folder, self._section, self._keys) as client:
            while not over.wait(HEARTBEAT_SECONDS / 3):
                try:
                    client.SendNodeHeartbeat(_heartbeat(node))
                except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
                    log.debug("heartbeat: %s", type(error).__name__)

    def _serve(self, client: FleetHttpClient, node: ProtoNode) -> None:
        while not self._stopped.is_set():
            answer = client.PullMessages(PullMessagesRequest(node=node))
            if not answer.messages_list:
                self._stopped.wait(self._section.poll)
                continue
            self._answer(client, node, answer.messages_list[0], answer.message_object_trees[0])

    def _answer(self, client: FleetHttpClient, node: ProtoNode, proto: Any, tree: Any) -> None:
        head = message_from_proto(proto)
        metadata = head.metadata
        started = time.monotonic()
        try:
            message = self._pulled(client, node, tree, metadata.run_id)
        except (WireError, ValueError, KeyError, TypeError) as error:
            reply = Message(Error(wire.REFUSED, told(error)), reply_to=head)
        else:
            message.metadata.__dict__["_message_id"] = tree.object_id
            reply = self._reply(client, node, message)
        if reply.has_error():
            log.warning("%s: %s", metadata.message_type, reply.error.reason)
            self._tell(last_error=reply.error.reason, last_error_at=_now())
        if time.time() > metadata.created_at + metadata.ttl:
            log.warning("%s: answered after the server's deadline; the reply is refused there", metadata.message_type)
        self._push(client, node, reply)
        log.info("%s answered in %.2f s", metadata.message_type, time.monotonic() - started)
        self._tell(last_message=metadata.message_type, last_message_at=_now())

    def _pulled(self, client: FleetHttpClient, node: ProtoNode, tree: Any, run_id: int) -> Message:
        """Raises WireError for a message beyond site.max_message."""
        pull = make_pull_object_fn_protobuf(client.PullObject, node, run_id)
        left = self._section.max_message + FRAMING

        def counted(object_id: str) -> bytes:
            nonlocal left
            content = pull(object_id)
            left -= len(content)
            if left < 0:
                raise WireError(f"a message beyond site.max_message ({self._section.max_message:,} bytes)")
            return content

        confirm = make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id)
        return pull_and_inflate_object_from_tree(
            tree, counted, confirm, return_type=Message, max_concurrent_pulls=1, max_time=300.0
        )

    def _reply(self, client: FleetHttpClient, node: ProtoNode, message: Message) -> Message:
        run_id = message.metadata.run_id
        try:
            run_config = self._run_config(client, node, run_id)
        except WireError as error:
            return Message(Error(wire.DECLINED, str(error)), reply_to=message)
        settings = {
            SOCKET: str(self._worker.socket),
            DEADLINE: self._section.deadline,
            LIMIT: self._section.max_message,
        }
        context = Context(
            run_id=run_id,
            node_id=node.node_id,
            node_config=UserConfig(settings),
            state=RecordDict(),
            run_config=UserConfig(run_config),
        )
        try:
            reply = self._asked(message, context)
            private = run_config.get("privacy.mode") in ("local", "client")
            if not self._worker.alive and private and message.metadata.message_type == MessageType.TRAIN:
                # it ended or was late, perhaps because of what the rows are: what it kept for this case is the answer
                kept = self._asked(message, context)
                reply = reply if kept.has_error() else kept
        except ValueError as error:  # a kind of message that the app does not know
            return Message(Error(wire.REFUSED, str(error).splitlines()[0][:200]), reply_to=message)
        return reply

    def _asked(self, message: Message, context: Context) -> Message:
        """The worker's reply; a worker that ended or is late is stopped."""
        self._worker.ensure()
        reply = app(message, context)
        if reply.has_error() and (reply.error.reason or "").startswith(NO_ANSWER):
            self._worker.stop()
        return reply

    def _run_config(self, client: FleetHttpClient, node: ProtoNode, run_id: int) -> dict[str, Any]:
        """The configuration in a run's bundle. Raises WireError for a bundle that holds more than that."""
        if run_id in self._refused:
            raise WireError(self._refused[run_id])
        if run_id not in self._configs:
            run = run_from_proto(client.GetRun(GetRunRequest(node=node, run_id=run_id)).run)
            fab = client.GetFab(GetFabRequest(node=node, hash_str=run.fab_hash, run_id=run_id)).fab
            try:
                check_bundle(fab.content)
                config = dict(get_fused_config_from_fab(fab.content, run))
            except WireError as error:
                self._refused[run_id] = str(error)
                raise
            except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
                self._refused[run_id] = f"the run's bundle is not readable ({type(error).__name__})"
                raise WireError(self._refused[run_id]) from None
            self._configs = {run_id: config}
        return self._configs[run_id]

    def _push(self, client: FleetHttpClient, node: ProtoNode, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            answer = client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],  # how long it took depends on the records: nobody is told
                )
            )
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(
                    client.PushObject, node, run_id=reply.metadata.run_id, session_id=answer.session_id
                ),
                object_ids_to_push=set(answer.objects_to_push),
            )


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Raises DeploymentError when this site runs already."""
    with (folder / "run.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeploymentError(f"{folder}: this site is running already; stop it first") from None
        yield


def is_running(folder: Path) -> bool:
    """Whether `confide site run` holds this folder."""
    try:
        with only_one(folder):
            return False
    except DeploymentError:
        return True


def read_state(folder: Path) -> dict[str, Any]:
    """What the running site wrote last; empty before its first run."""
    try:
        return dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _heartbeat(node: ProtoNode) -> SendNodeHeartbeatRequest:
    return SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_SECONDS)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def known_to_server(folder: Path) -> str:
    """Whether the server has this site registered; a site that runs is not disturbed. Raises DeploymentError."""
    _, section = load_site(folder)
    if is_running(folder):
        if read_state(folder).get("connected"):
            return "running and connected"
        raise DeploymentError("running, not connected; its log says why")
    keys = read_node_key(folder / NODE_KEY)
    try:
        with fleet_client(folder, section, keys, seconds=10.0) as client:
            public = public_key_to_bytes(keys[1])
            answer = client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_SECONDS))
            client.DeactivateNode(DeactivateNodeRequest(node_id=answer.node_id))
    except (httpx.HTTPError, OSError, WireError, RuntimeError, ValueError) as error:
        raise DeploymentError(connection_problem(error, section)) from None
    return "the server knows this site"


def run_site(folder: Path) -> None:
    """`confide site run`: ends cleanly on SIGTERM and SIGINT. Raises ConfigError, DeploymentError."""
    with only_one(folder):
        node = Node(folder)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: node.stop())
        node.run()
