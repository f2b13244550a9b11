"""The TLS gateway that sites connect to: it passes the fleet interface on to the SuperLink, and nothing else.

In Flower 1.41 one port carries the interfaces of sites, operators and processes, and that of operators asks for no
proof of identity. So the SuperLink is not reachable from outside, and this gateway knows ten paths. Operators at other
machines have a gateway of their own (`operators.py`) that asks for a client certificate and takes configurations only.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from ..doors import Gateway, Limits, Room, configured, know

FLEET = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        *("activate-node", "deactivate-node", "send-node-heartbeat", "get-run", "get-fab"),
        *("pull-messages", "push-messages", "push-object", "pull-object", "confirm-message-received"),
    )
)
"""What a site's connection needs; registering is the operator's"""
HEALTH = "/health"
_PASSED_ON = ("content-type", "accept")
_UPSTREAM_SECONDS = 120.0

_HEALTH_SECONDS = 2.0
"""for which an answer about health is given again"""
_MESSAGES_AT_ONCE, _OF_ONE_SITE = 8, 2
"""bodies of the largest size that are held at once, in all and of one site"""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, bytes, bytes]
"""status, content type, content"""


class Front:
    """An ASGI application: POST on the allowed paths, signed by a registered site, with bodies up to `limit` bytes of
    which the length is told in advance. Nothing of a body is held before its sender is known."""

    def __init__(
        self,
        upstream: str,
        ca: Path,
        allowed: Iterable[str],
        limit: int,
        sender: Callable[[Headers], bytes | None],
        limits: Limits,
    ) -> None:
        """sender: whose request it is by its headers, None for strangers."""
        self._upstream, self._ca, self._allowed, self._limit = upstream, ca, frozenset(allowed), limit
        self._sender, self._limits = sender, limits
        self._client: httpx.AsyncClient | None = None
        self._room = Room(_MESSAGES_AT_ONCE * limit, _OF_ONE_SITE * limit)
        self._health: tuple[float, Answer] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            status, kind, content = await self._answer(scope, receive)
            headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
            if status in _CLOSING:
                headers.append((b"connection", b"close"))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})

    async def close(self) -> None:
        """Ends the connection to the SuperLink."""
        if self._client is not None:
            await self._client.aclose()

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        # the path as it came: an encoded slash or dot must not turn into an allowed one further on
        path = scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
        if path == HEALTH and scope["method"] == "GET":
            return await self._healthy()
        if path not in self._allowed or scope["method"] != "POST" or scope.get("query_string"):
            return _refused(403, "not served here")
        headers = scope["headers"]
        if _value(headers, b"content-encoding") not in ("", "identity"):
            return _refused(415, "a body as it is, without an encoding")
        length = _value(headers, b"content-length")
        if not (length.isascii() and length.isdigit()) or len(length) > _DIGITS:
            return _refused(411, "a length is required")
        if int(length) > self._limit:
            return _refused(413, f"more than {self._limit} bytes")
        if (sender := self._sender(headers)) is None:
            return _refused(401, "no registered site has signed this")
        know(scope)
        async with self._room.hold(sender, int(length)):
            try:
                async with asyncio.timeout(self._limits.body_deadline(int(length))):
                    body = await _body(receive, int(length))
            except TimeoutError:
                return _refused(408, "the body did not come in time")
            return _refused(400, "gone") if body is None else await self._pass_on("POST", path, headers, body)

    async def _healthy(self) -> Answer:
        if self._health is None or time.monotonic() - self._health[0] > _HEALTH_SECONDS:
            self._health = time.monotonic(), await self._pass_on("GET", HEALTH, [], b"")
        return self._health[1]

    async def _pass_on(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        if self._client is None:
            context = ssl.create_default_context(cafile=str(self._ca))
            self._client = httpx.AsyncClient(base_url=self._upstream, verify=context, timeout=_UPSTREAM_SECONDS)
        kept = [
            (name, value)
            for name, value in headers
            if name.decode("latin-1") in _PASSED_ON or name.startswith((b"flwr-", b"x-flwr-", b"flower-", b"x-flower-"))
        ]
        try:
            answer = await self._client.request(method, path, headers=kept, content=body)
        except httpx.HTTPError as error:
            return _refused(502, f"the SuperLink does not answer ({type(error).__name__})")
        return answer.status_code, answer.headers.get("content-type", "text/plain").encode(), answer.content


_CLOSING = frozenset((400, 401, 403, 408, 411, 413, 415))
"""answers to what is not read to its end, or not to be asked again"""
_DIGITS = 18


def _value(headers: Headers, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


async def _body(receive: Receive, length: int) -> bytes | None:
    """None where the client went away, or sent another length than it told."""
    parts: list[bytes] = []
    held = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        parts.append(event.get("body", b""))
        held += len(parts[-1])
        if held > length:
            return None
        if not event.get("more_body"):
            return b"".join(parts) if held == length else None


def _refused(status: int, reason: str) -> Answer:
    return status, b"text/plain", reason.encode()


def gateway_server(
    app: Front | Starlette,
    host: str,
    port: int,
    certificate: Path,
    key: Path,
    operator: Path | None = None,
    limits: Limits | None = None,
) -> Gateway:
    """operator: the folder of the one client certificate that is let in, operator.crt, and of the CA that signed it;
    None: sites, which show none. One that was issued before `confide server renew` is let in no more.
    """
    config = configured(
        app,
        host,
        port,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        ssl_ca_certs=None if operator is None else str(operator / "ca.crt"),
        ssl_cert_reqs=ssl.CERT_NONE if operator is None else ssl.CERT_REQUIRED,
        timeout_keep_alive=75,
        lifespan="off",
    )
    close = app.close if isinstance(app, Front) else None
    certified = None if operator is None else partial(_is_now, operator / "operator.crt")
    return Gateway(config, limits or Limits(), certified=certified, close=close)


def _is_now(path: Path, certificate: bytes) -> bool:
    """Whether the file holds this certificate, in DER, now."""
    try:
        return ssl.PEM_cert_to_DER_cert(path.read_text(encoding="ascii")) == certificate
    except (OSError, ValueError):
        return False


NGINX = """# For nginx instead of the embedded gateway (confide server run --no-gateway). It passes fleet paths only.
server {{
    listen {port} ssl;
    ssl_certificate     {certificate};
    ssl_certificate_key {key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    client_max_body_size {limit};
    client_header_timeout 10s;
    client_body_timeout 30s;
    large_client_header_buffers 4 8k;
    proxy_ssl_trusted_certificate {ca};
    proxy_ssl_verify on;
    proxy_ssl_name localhost;
    proxy_read_timeout 120s;
    location / {{ return 403; }}
    location = /health {{ limit_except GET {{ deny all; }} proxy_pass {upstream}; }}
{locations}
}}
"""


def nginx(upstream: str, port: int, ca: Path, certificate: Path, key: Path, limit: int) -> str:
    """A server block with the same rules."""
    paths = sorted(FLEET)
    locations = "\n".join(
        f"    location = {path} {{ limit_except POST {{ deny all; }} proxy_pass {upstream}; }}" for path in paths
    )
    return NGINX.format(
        upstream=upstream, port=port, certificate=certificate, key=key, ca=ca, limit=limit, locations=locations
    )
