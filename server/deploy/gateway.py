"""The TLS gateway that sites connect to: it passes the fleet interface on to the SuperLink, and nothing else.

In Flower 1.41 one port carries the interfaces of sites, operators and processes, and that of operators asks for no
proof of identity. So the SuperLink is not reachable from outside, and this gateway knows ten paths. Operators at other
machines have a gateway of their own (`operators.py`) that asks for a client certificate and takes configurations only.
"""

import ssl
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

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

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Front:
    """An ASGI application: POST on the allowed paths, bodies up to `limit` bytes with their length told in advance."""

    def __init__(self, upstream: str, ca: Path, allowed: Iterable[str], limit: int) -> None:
        self._upstream, self._ca, self._allowed, self._limit = upstream, ca, frozenset(allowed), limit
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            status, kind, content = await self._answer(scope, receive)
            headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes, bytes]:
        # the path as it came: an encoded slash or dot must not turn into an allowed one further on
        path = scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
        if path == HEALTH and scope["method"] == "GET":
            return await self._pass_on("GET", HEALTH, [], b"")
        if path not in self._allowed or scope["method"] != "POST" or scope.get("query_string"):
            return _refused(403, "not served here")
        headers = scope["headers"]
        length = next((value.decode("latin-1") for name, value in headers if name == b"content-length"), "")
        if not length.isdigit():
            return _refused(411, "a length is required")
        if int(length) > self._limit:
            return _refused(413, f"more than {self._limit} bytes")
        body = bytearray()
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return _refused(400, "gone")
            body += event.get("body", b"")
            if len(body) > self._limit:
                return _refused(413, f"more than {self._limit} bytes")
            if not event.get("more_body"):
                break
        return await self._pass_on("POST", path, headers, bytes(body))

    async def _pass_on(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, bytes, bytes]:
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


def _refused(status: int, reason: str) -> tuple[int, bytes, bytes]:
    return status, b"text/plain", reason.encode()


def gateway_server(
    app: Front | Starlette, host: str, port: int, certificate: Path, key: Path, operators_ca: Path | None = None
) -> uvicorn.Server:
    """operators_ca: who signs the client certificates that are required; None: sites, which show none."""
    return uvicorn.Server(
        uvicorn.Config(
            app,  # pyright: ignore[reportArgumentType]  # ASGI's own types are looser
            host=host,
            port=port,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            ssl_ca_certs=None if operators_ca is None else str(operators_ca),
            ssl_cert_reqs=ssl.CERT_NONE if operators_ca is None else ssl.CERT_REQUIRED,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=512,
            timeout_keep_alive=75,
            lifespan="off",
            ws="none",
        )
    )


NGINX = """# For nginx instead of the embedded gateway (confide server run --no-gateway). It passes fleet paths only.
server {{
    listen {port} ssl;
    ssl_certificate     {certificate};
    ssl_certificate_key {key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    client_max_body_size {limit};
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
