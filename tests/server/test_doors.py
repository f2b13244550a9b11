"""The gateway under strangers: idle connections, slow and huge requests, bodies withheld, while sites go on."""

import asyncio
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from confide.client.deploy.connection import fleet_client, read_node_key
from confide.common.credentials import issue, make_ca, new_node_key
from confide.common.errors import WireError
from confide.common.processes import free_port
from confide.server.deploy.gateway import FLEET, Front, gateway_server
from confide.server.deploy.identity import Registry
from confide.server.doors import Doors, Limits, Room

LIMITS = Limits(
    connections=40,
    strangers_at_one_address=16,
    stranger_seconds=2.0,
    header_seconds=1.0,
    body_seconds=1.0,
    body_rate=2**20,
)
LARGEST = 2**20
PATH = "/v1/fleet/pull-messages"


@dataclass
class Behind:
    """What stands in for the SuperLink: tells how much it was sent."""

    bodies: list[int]
    encoded: bool = False

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            event = await receive()
            size, more = size + len(event.get("body", b"")), event.get("more_body", False)
        if scope["path"] != "/health":
            self.bodies.append(size)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})


@contextmanager
def serving(server: uvicorn.Server) -> Iterator[None]:
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@dataclass
class Place:
    """A gateway, and a registered site's keys."""

    folder: Path
    port: int
    behind: Behind

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "ca.crt"))

    def site(self, seconds: float = 10.0) -> Any:
        """Flower's own client of the registered site."""
        section = SimpleNamespace(server=f"127.0.0.1:{self.port}", max_message=2**20)
        return fleet_client(self.folder, section, read_node_key(self.folder / "node.key"), seconds)  # type: ignore[arg-type]

    def signed(self) -> dict[str, str]:
        """The headers by which that site signs a request."""
        caught: dict[str, str] = {}

        def look(request: httpx.Request) -> httpx.Response:
            caught.update(request.headers)
            return httpx.Response(200, headers={"content-length": "0"})

        with self.site() as client:
            client._client._transport = httpx.MockTransport(look)
            client.ActivateNode(ActivateNodeRequest(public_key=b"x"))
        return {name: value for name, value in caught.items() if name.startswith("flwr-")}

    def stranger(self, *, tls: bool = True) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return self.context.wrap_socket(connection, server_hostname="127.0.0.1") if tls else connection

    def post(self, headers: dict[str, str], body: bytes = b"", path: str = PATH) -> httpx.Response:
        with httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=self.context, timeout=10) as client:
            return client.post(path, content=body, headers=headers)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    make_ca(tmp_path)
    issue(tmp_path, "server", ["127.0.0.1", "localhost"])
    line = new_node_key(tmp_path / "node.key")
    (tmp_path / "sites.json").write_text(json.dumps({"ward": {"node": line, "identity": "ab" * 32}}))
    behind, inner, port = Behind([]), free_port(), free_port()
    pair = (tmp_path / "server.crt", tmp_path / "server.key")
    upstream = uvicorn.Server(
        uvicorn.Config(
            behind,  # type: ignore[arg-type]
            port=inner,
            ssl_certfile=str(pair[0]),
            ssl_keyfile=str(pair[1]),
            lifespan="off",
            log_level="warning",
            ws="none",
            loop="asyncio",
        )
    )
    front = Front(f"https://localhost:{inner}", tmp_path / "ca.crt", FLEET, LARGEST, Registry(tmp_path).sender, LIMITS)
    with serving(upstream), serving(gateway_server(front, "127.0.0.1", port, *pair, limits=LIMITS)):
        yield Place(tmp_path, port, behind)


def closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_sites_go_on_while_strangers_hold_all_they_can(place: Place) -> None:
    signed = place.signed()
    with ExitStack() as held:
        known = held.enter_context(
            httpx.Client(base_url=f"https://127.0.0.1:{place.port}", verify=place.context, timeout=10)
        )
        assert known.post(PATH, headers=signed).status_code == 200
        until = time.monotonic() + 4
        opened = 0
        while time.monotonic() < until:
            for kind in (True, True, False):
                try:
                    held.enter_context(place.stranger(tls=kind))
                    opened += 1
                except OSError:  # put out while it shook hands
                    pass
            assert known.post(PATH, headers=signed).status_code == 200  # on the connection it has
            assert place.post(signed).status_code == 200  # and on a new one
        assert opened > LIMITS.connections


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST ",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_a_stranger_has_seconds(place: Place, tls: bool, sent: bytes) -> None:
    with place.stranger(tls=tls) as connection:
        connection.sendall(sent)
        assert closed_within(connection, LIMITS.stranger_seconds + 2)


def test_a_known_connection_has_seconds_for_the_headers_of_its_next_request(place: Place) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in place.signed().items())
    with place.stranger() as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{lines}\r\n".encode())
        assert b"200 OK" in connection.recv(4096)
        time.sleep(LIMITS.stranger_seconds + 0.5)  # no stranger any more
        connection.sendall(b"POST /v1")
        assert closed_within(connection, LIMITS.header_seconds + 2)


def test_headers_without_an_end_are_cut(place: Place) -> None:
    with place.stranger() as connection:
        sent = 0
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\n")
            for _ in range(200):
                connection.sendall(b"x-more: " + b"a" * 1000 + b"\r\n")
                sent += 1010
        except OSError:
            pass
        assert sent < 200_000 or closed_within(connection, 2)


def test_of_a_stranger_no_body_is_read(place: Place) -> None:
    with place.stranger() as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {LARGEST}\r\n\r\n".encode())
        answer = connection.recv(4096)
        assert b"401" in answer.splitlines()[0]
        assert b"connection: close" in answer
        assert closed_within(connection, 2)
    assert place.behind.bodies == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"flwr-signature": "AAAA"},
        {"flwr-timestamp": "2020-01-01T00:00:00+00:00"},
        {"flwr-timestamp": "2999-01-01T00:00:00+00:00"},
        {"flwr-timestamp": "yesterday"},
        {"flwr-timestamp": "2020-01-01T00:00:00"},
        {"flwr-public-key": "AAAA"},
        {"flwr-public-key": "no base64"},
        {"flwr-public-key": ""},
    ],
)
def test_what_no_registered_site_signed_is_refused(place: Place, wrong: dict[str, str]) -> None:
    signed = place.signed()
    assert place.post(signed).status_code == 200
    assert place.post({**signed, **wrong}).status_code == 401
    assert place.post({name: value for name, value in signed.items() if name not in wrong}).status_code == 401
    assert len(place.behind.bodies) == 1


def test_a_signature_of_another_key_is_refused_and_a_site_that_is_removed_at_once(place: Place) -> None:
    signed = place.signed()
    with httpx.Client(base_url=f"https://127.0.0.1:{place.port}", verify=place.context) as client:
        assert client.post(PATH, headers=signed).status_code == 200
        other = new_node_key(place.folder / "other.key")
        (place.folder / "sites.json").write_text(json.dumps({"other": {"node": other, "identity": "cd" * 32}}))
        assert client.post(PATH, headers=signed).status_code == 401  # on the connection it has
    assert place.post(signed).status_code == 401


def test_a_registered_site_has_seconds_for_a_body(place: Place) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in place.signed().items())
    with place.stranger() as connection:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n{lines}\r\n"
        connection.sendall(head.encode() + b"a" * 999)
        connection.settimeout(LIMITS.body_deadline(1000) + 2)
        assert b"408" in connection.recv(4096).splitlines()[0]
    assert place.behind.bodies == []


def test_lengths_and_encodings(place: Place) -> None:
    signed = place.signed()
    assert place.post(signed, b"a" * LARGEST).status_code == 200
    assert place.post(signed, b"a" * (LARGEST + 1)).status_code == 413
    squeezed = gzip.compress(b"a" * 10_000)
    assert place.post({**signed, "content-encoding": "gzip"}, squeezed).status_code == 415
    with httpx.Client(base_url=f"https://127.0.0.1:{place.port}", verify=place.context) as client:
        pieces = client.post(PATH, content=iter([b"a", b"b"]), headers=signed)  # of no length told in advance
        assert pieces.status_code == 411
    assert place.behind.bodies == [LARGEST]


def test_an_encoded_answer_is_refused_by_a_site(place: Place) -> None:
    """Of 1.5 MB on the wire, gigabytes in memory."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        return httpx.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(b"a" * 10**6))

    with place.site() as client:
        client._client._transport = httpx.MockTransport(answer)
        with pytest.raises(WireError, match=r"encoded \('gzip'\)"):
            client.ActivateNode(ActivateNodeRequest(public_key=b"x"))


def test_strangers_never_take_the_place_of_a_known_one() -> None:
    doors = Doors(Limits(connections=8, strangers_at_one_address=2))
    known = []
    for number in range(8):
        visitor = doors.enter(f"10.0.0.{number}")
        assert visitor is not None
        doors.know(visitor)
        known.append(visitor)
    assert doors.enter("10.0.0.9") is None  # all places of known ones are taken
    doors.leave(known.pop())
    put_out: list[str] = []
    for number in range(40):
        visitor = doors.enter(f"10.1.0.{number % 3}")
        assert visitor is not None
        visitor.close = lambda number=number: put_out.append(str(number))  # type: ignore[method-assign]
    assert put_out == [str(number) for number in range(36)]  # the one that came first, each time
    assert all(visitor.known for visitor in known)
    gone = doors.enter("10.2.0.1")
    assert gone is not None
    doors.leave(gone)
    doors.know(gone)  # too late: it takes nobody's place
    assert not gone.known


def test_bodies_wait_for_room() -> None:
    async def many() -> tuple[int, int]:
        room, held, own = Room(10, 4), {"a": 0, "b": 0, "c": 0}, [0, 0]

        async def one(sender: str, size: int) -> None:
            async with room.hold(sender.encode(), size):
                held[sender] += size
                own[0] = max(own[0], *held.values())
                own[1] = max(own[1], sum(held.values()))
                await asyncio.sleep(0.001)
                held[sender] -= size

        await asyncio.gather(*(one("abc"[number % 3], 1 + number % 4) for number in range(200)))
        return own[0], own[1]

    most_of_one, most = asyncio.run(asyncio.wait_for(many(), 20))
    assert most_of_one <= 4
    assert most <= 10


def test_an_operators_certificate_of_before_is_let_in_no_more(tmp_path: Path) -> None:
    make_ca(tmp_path)
    issue(tmp_path, "server", ["127.0.0.1"])
    issue(tmp_path, "operator", [])
    port = free_port()
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("runs"))])
    pair = (tmp_path / "server.crt", tmp_path / "server.key")

    def ask(folder: Path) -> str:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        context.load_cert_chain(folder / "operator.crt", folder / "operator.key")
        with httpx.Client(verify=context, timeout=5) as client:
            return client.get(f"https://127.0.0.1:{port}/").text

    with serving(gateway_server(app, "127.0.0.1", port, *pair, tmp_path)):
        assert ask(tmp_path) == "runs"
        stolen = tmp_path / "stolen"
        stolen.mkdir()
        for name in ("operator.crt", "operator.key"):
            (stolen / name).write_bytes((tmp_path / name).read_bytes())
        assert ask(stolen) == "runs"
        issue(tmp_path, "operator", [])  # confide server renew, while the server runs
        assert ask(tmp_path) == "runs"
        with pytest.raises(httpx.TransportError):
            ask(stolen)
        (tmp_path / "operator.crt").unlink()
        with pytest.raises(httpx.TransportError):
            ask(stolen)
