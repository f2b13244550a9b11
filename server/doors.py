"""What strangers cannot use up: connections, seconds and bytes before a server knows who is there.

A connection is a stranger's until its application says otherwise: at the gateway once a request on it was signed by a
registered site (for operators after the TLS handshake, which asks for a certificate), at `confide serve` once the
headers of a request are there. Strangers have few seconds and few places, and whoever comes after them takes
the place of the one that has been there longest; they never take a known one's.
"""

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_BYTES = 16 * 1024
"""of a request's first line and headers; those of Flower's client take 1 KB"""
_BACKLOG = 1024


@dataclass(frozen=True)
class Limits:
    """Of one gateway."""

    connections: int = 512
    """of those who are known; strangers have half as many of their own"""
    strangers_at_one_address: int = 64
    stranger_seconds: float = 20.0
    """from the connection to the first signed request, the TLS handshake included"""
    header_seconds: float = 10.0
    """from a request's first byte to the end of its headers"""
    body_seconds: float = 30.0
    body_rate: int = 64 * 1024
    """bytes a second; a body has body_seconds, and the time it takes at this rate"""

    @property
    def strangers(self) -> int:
        return max(1, self.connections // 2)

    def body_deadline(self, length: int) -> float:
        """Seconds for a body of so many bytes."""
        return self.body_seconds + length / self.body_rate


class Visitor:
    """One connection."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.known = False
        self.task: asyncio.Task | None = None
        self.transport: asyncio.Transport | None = None

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self.task is not None:
            self.task.cancel()


class Doors:
    """Who is connected. Not for several threads."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._known: set[Visitor] = set()
        self._strangers: dict[Visitor, None] = {}
        """in the order in which they came"""

    def enter(self, address: str) -> Visitor | None:
        """A place for a connection that comes; None where known ones have all."""
        if len(self._known) >= self.limits.connections:
            return None
        of_it = [one for one in self._strangers if one.address == address]
        if len(of_it) >= self.limits.strangers_at_one_address:
            self._put_out(of_it[0])
        elif len(self._strangers) >= self.limits.strangers:
            self._put_out(next(iter(self._strangers)))
        visitor = Visitor(address)
        self._strangers[visitor] = None
        return visitor

    def make_room(self) -> None:
        """Puts out the stranger that came first, where there is one: the process has no file left to open."""
        if self._strangers:
            self._put_out(next(iter(self._strangers)))

    def know(self, visitor: Visitor) -> None:
        """A request of this connection was signed by somebody who is registered. It may have been put out by now."""
        if visitor in self._strangers:
            del self._strangers[visitor]
            visitor.known = True
            self._known.add(visitor)

    def leave(self, visitor: Visitor) -> None:
        self._strangers.pop(visitor, None)
        self._known.discard(visitor)

    def overstayed(self, visitor: Visitor) -> None:
        if not visitor.known:
            self._put_out(visitor)

    def _put_out(self, visitor: Visitor) -> None:
        self.leave(visitor)
        visitor.close()


class Room:
    """Bytes of requests' bodies that are held at once, in all and of one sender; who finds none waits."""

    def __init__(self, most: int, of_one: int) -> None:
        self._most, self._of_one = most, of_one
        self._held: dict[bytes, int] = {}
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, sender: bytes, size: int) -> AsyncIterator[None]:
        async with self._freed:
            await self._freed.wait_for(lambda: self._fits(sender, size))
            self._held[sender] = self._held.get(sender, 0) + size
        try:
            yield
        finally:
            async with self._freed:
                self._held[sender] -= size
                if not self._held[sender]:
                    del self._held[sender]
                self._freed.notify_all()

    def _fits(self, sender: bytes, size: int) -> bool:
        own, held = self._held.get(sender, 0), sum(self._held.values())
        return (not own or own + size <= self._of_one) and (not held or held + size <= self._most)


class _Protocol(H11Protocol):
    """HTTP with a deadline for headers, on a connection of which the doors know whose it is."""

    visitor: Visitor
    doors: Doors
    certified: Callable[[bytes], bool] | None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.visitor.transport = transport
        if self.certified is not None:
            shown = transport.get_extra_info("ssl_object")
            certificate = None if shown is None else shown.getpeercert(binary_form=True)
            if certificate is None or not self.certified(certificate):
                transport.abort()
            else:
                self.doors.know(self.visitor)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_deadline()
        self.doors.leave(self.visitor)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.certified is not None and not self.visitor.known:
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # part of a request's headers
            if self._deadline is None:
                self._deadline = self.loop.call_later(self.doors.limits.header_seconds, self.transport.abort)
        else:
            self._unset_deadline()

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def configured(app: Any, host: str, port: int, **settings: Any) -> uvicorn.Config:
    """What a `Gateway` needs, and what all servers of confide have alike: no line a request in any log, no name of the
    software, no websockets. settings: uvicorn's, of one server."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="asyncio",
        http="h11",
        h11_max_incomplete_event_size=HEADER_BYTES,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        **settings,
    )


class Gateway(uvicorn.Server):
    """A server that accepts connections through doors. Its application finds the connection's visitor in the scope's
    state, as `visitor`, and says `doors.know(visitor)`."""

    def __init__(
        self,
        config: uvicorn.Config,
        limits: Limits,
        *,
        certified: Callable[[bytes], bool] | None = None,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """certified: whether a client certificate, in DER, is of somebody known; None: no handshake says who is there.
        close: called at the end."""
        super().__init__(config)
        self.doors = Doors(limits)
        self._certified, self._close = certified, close

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            self.should_exit = True
            return
        self.servers = []
        listener = self.config.bind_socket()  # SystemExit where the port is taken
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._tasks: set[asyncio.Task] = set()
        self._listener, self._accepting = listener, asyncio.create_task(self._accept(listener))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._accepting.cancel()
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await super().shutdown(sockets)
        if self._close is not None:
            await self._close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError:  # no file left, or a connection that is gone
                self.doors.make_room()
                await asyncio.sleep(0.05)
                continue
            visitor = self.doors.enter(str(address[0]))
            if visitor is None:
                connection.close()
                continue
            loop.call_later(self.doors.limits.stranger_seconds, self.doors.overstayed, visitor)
            visitor.task = task = loop.create_task(self._open(loop, connection, visitor))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, loop: asyncio.AbstractEventLoop, connection: socket.socket, visitor: Visitor) -> None:
        """The TLS handshake."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = self.doors.limits.stranger_seconds
        tls: dict[str, Any] = {"ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": 5.0} if self.config.ssl else {}
        try:
            await loop.connect_accepted_socket(lambda: self._protocol(visitor), connection, ssl=self.config.ssl, **tls)
        except (OSError, ssl.SSLError, asyncio.CancelledError):  # the transport closes what it was given
            self.doors.leave(visitor)
            return

    def _protocol(self, visitor: Visitor) -> _Protocol:
        state = {**self.lifespan.state, "visitor": visitor, "doors": self.doors}
        protocol = _Protocol(self.config, self.server_state, state)
        protocol.visitor, protocol.doors, protocol.certified = visitor, self.doors, self._certified
        return protocol


def know(scope: dict[str, Any]) -> None:
    """Tells the doors, if the application stands behind some, that the request's connection is a known one's."""
    state = scope.get("state", {})
    if "doors" in state:
        state["doors"].know(state["visitor"])


def files_for(connections: int) -> None:
    """Raises this process's limit of open files to what so many connections take, as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 256
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
