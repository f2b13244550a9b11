"""`confide serve`: a finished model over HTTP and JSON, on loopback unless told otherwise.

::

    GET  /health    {"status": "ok", "model": …, "variant": …, "task": …, "labels": […]}
    POST /predict   {"texts": ["…", …]} → {"predictions": [{"label": …, "probability": …, "probabilities": {…}}, …]};
                    a model of images reads "images", files in base64, instead, or as many of both; one of two
                    texts a row "text_pairs", too; predictions are those of `Answering.answers`
    POST /explain   {"text": "…"} → {"title": …, "label": …, "words": […], "scores": […], "value": …, "delta": …}; of
                    tags "word": N, too, asks for that word's; otherwise for the first that is not O
    GET  /          a page for trying a text, unless the model reads images, or two texts
    /v1/…           of a model that writes texts: see `completions`

Rows of waiting requests are answered together. Everything has a limit: bytes and seconds of a body, rows of a
request, letters of a text, rows that wait, and requests a second of one address. No text is written to any log.
"""

import asyncio
import base64
import ipaddress
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...common.data.images import LARGEST, ImageForm, decoded
from ...common.errors import ConfideError, ConfigError
from ...common.types import Rows
from ..doors import Gateway, Limits, configured, know
from .completions import Completions, refusal
from .predict import Columns, Model, Writes
from .requests import Bounds, Rates, RefusedError, body, check_text

Explain = Callable[[str, int | None], dict[str, Any]]
_TOGETHER = 64
"""rows of one pass through the model"""
_KEYS = Columns("texts", "text_pairs", "images")
_IMAGED = 16
"""times as many bytes for requests with images"""
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STATIC = {
    "/": ("try.html", "text/html"),
    "/try.js": ("try.js", "text/javascript"),
    "/try.css": ("try.css", "text/css"),
}


@dataclass(frozen=True)
class Row:
    """What is asked."""

    text: str = ""
    pair: str | None = None
    """the second text"""
    image: np.ndarray | None = None
    """(C, H, W) uint8"""


class Together:
    """Answers rows of all waiting requests in one pass after the other, in a thread."""

    def __init__(self, model: Model, waiting: int) -> None:
        self._model = model
        self._queue: asyncio.Queue[tuple[Row, asyncio.Future[dict[str, Any]]]] = asyncio.Queue(waiting)

    async def ask(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The answer to each. Raises RefusedError when too many wait."""
        if self._queue.maxsize - self._queue.qsize() < len(rows):
            raise RefusedError(503, "too many rows are waiting; come back in a moment")
        answers = [asyncio.get_running_loop().create_future() for _ in rows]
        for row, answer in zip(rows, answers, strict=True):
            self._queue.put_nowait((row, answer))
        return await asyncio.gather(*answers)

    async def run(self) -> None:
        """For ever."""
        while True:
            taken = [await self._queue.get()]
            while len(taken) < _TOGETHER and not self._queue.empty():
                taken.append(self._queue.get_nowait())
            wanted = [(row, answer) for row, answer in taken if not answer.done()]  # whoever left wants none
            if not wanted:
                continue
            try:
                found = await asyncio.to_thread(self._answers, [row for row, _ in wanted])
            except Exception as error:
                for _, answer in wanted:
                    if not answer.done():
                        answer.set_exception(RefusedError(500, f"the model failed: {type(error).__name__}"))
                continue
            for (_, answer), one in zip(wanted, found, strict=True):
                if not answer.done():
                    answer.set_result(one)

    def _answers(self, rows: list[Row]) -> list[dict[str, Any]]:
        images = [row.image for row in rows if row.image is not None]
        pair = [row.pair for row in rows if row.pair is not None] or None
        return self._model.answers(
            Rows("rows", [row.text for row in rows], images=np.stack(images) if images else None, pair=pair)
        )


def make_app(model: Model, name: str, variant: str, bounds: Bounds, explain: Explain | None = None) -> Starlette:
    """explain: a text, and perhaps one of its words → a map; None: /explain is not there."""
    together, rates = Together(model, bounds.waiting), Rates(bounds.rate)
    explaining = asyncio.Semaphore(1)
    limit = replace(bounds, body=_IMAGED * bounds.body) if model.reads.images else bounds

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(together.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def health(_: Request) -> Response:
        facts = {"model": name, "variant": variant, "task": model.task, "labels": model.labels}
        return JSONResponse({"status": "ok", **facts, "explains": explain is not None})

    async def predict(request: Request) -> Response:
        content = await body(request, limit)
        if model.form is None:
            rows = _asked(content, model, bounds)
        else:  # images take time to decode
            rows = await asyncio.to_thread(_asked, content, model, bounds)
        return JSONResponse({"predictions": await together.ask(rows)})

    async def explain_(request: Request) -> Response:
        content = await body(request, limit)
        text, word = content.get("text"), content.get("word")
        if not isinstance(text, str):
            raise RefusedError(422, 'expected {"text": "…"}')
        if word is not None and (type(word) is not int or model.reads.label != "tags"):
            raise RefusedError(422, 'expected a number in "word", of a model of tags; otherwise leave it out')
        check_text(text, bounds)
        if explain is None:
            raise RefusedError(404, "this server does not explain; start it with --explain")
        if explaining.locked():
            raise RefusedError(503, "another text is being explained; come back in a moment")
        async with explaining:
            try:
                return JSONResponse(await asyncio.to_thread(explain, text, word))
            except ConfideError:
                raise RefusedError(422, "this text, or this word of it, cannot be explained") from None

    def guarded(handler, shaped=_refusal):
        def refused_as(refused: RefusedError) -> Response:
            response = shaped(refused)
            response.headers.update({**_SAFE, **({"Retry-After": "1"} if refused.status in (429, 503) else {})})
            return response

        async def answer(request: Request) -> Response:
            if not rates.admits(request.client.host if request.client else ""):
                return refused_as(RefusedError(429, "too many requests; come back in a second"))
            try:
                response = await handler(request)
            except RefusedError as refused:
                return refused_as(refused)
            except ClientDisconnect:
                return Response(status_code=400)
            response.headers.update(_SAFE)
            return response

        return answer

    async def static(request: Request) -> Response:
        file, kind = _STATIC[request.url.path]
        return Response(resources.files(__package__ or "").joinpath(file).read_bytes(), media_type=kind)

    routes = [
        Route("/health", guarded(health)),
        Route("/predict", guarded(predict), methods=["POST"]),
        Route("/explain", guarded(explain_), methods=["POST"]),
        *(Route(path, guarded(static)) for path in (() if model.reads.images or model.two_texts else _STATIC)),
    ]
    if isinstance(model, Writes):
        chat = Completions(model, name, bounds)
        routes += [
            Route("/v1/models", guarded(chat.models, refusal)),
            Route("/v1/chat/completions", guarded(chat.complete, refusal), methods=["POST"]),
        ]
    return Starlette(routes=routes, lifespan=life)


def _asked(content: dict[str, Any], model: Model, bounds: Bounds) -> list[Row]:
    """The rows of a request to /predict. Raises RefusedError."""
    wanted = _KEYS.of(model)
    if unread := {_KEYS.text, _KEYS.pair, _KEYS.image} & content.keys() - {*wanted}:
        raise RefusedError(422, f'"{min(unread)}" received, which this model does not read; leave it out')
    given: list[list[str]] = [value for name in wanted if isinstance(value := content.get(name), list)]
    if len(given) < len(wanted) or not all(v and all(isinstance(one, str) for one in v) for v in given):
        expected = ", ".join(f'"{name}": ["…", …]' for name in wanted)
        files = ", files in base64" if model.reads.images else ""
        raise RefusedError(422, f"expected {{{expected}}}, one or more{files}")
    count = len(given[0])
    if count > bounds.rows:
        raise RefusedError(422, f"{count} {wanted[0]} received; allowed: {bounds.rows} in a request")
    if len(given[-1]) != count:
        raise RefusedError(422, f"{count} texts and {len(given[-1])} {wanted[-1]} received; give one for each")
    texts = given[0] if model.reads.text else [""] * count
    pair: list[str | None] = [*given[1]] if model.two_texts else [None] * count
    for text in [*texts, *(one for one in pair if one is not None)] if model.reads.text else []:
        check_text(text, bounds)
    if model.form is None:
        return [Row(*one) for one in zip(texts, pair, strict=True)]
    form, pixels = model.form, LARGEST // count  # a small file may hold a large image
    return [Row(text, None, _image(image, form, pixels)) for text, image in zip(texts, given[-1], strict=True)]


def _image(image: str, form: ImageForm, pixels: int) -> np.ndarray:
    """(C, H, W) uint8. pixels: at most."""
    try:
        return decoded(base64.b64decode(image, validate=True), form, "an image", pixels)
    except ValueError:
        raise RefusedError(422, "an image that is not valid base64 was received") from None
    except ConfideError as error:
        raise RefusedError(422, str(error)) from None


def _refusal(refused: RefusedError) -> Response:
    return JSONResponse({"error": str(refused)}, status_code=refused.status)


def check_address(host: str, *, tls: bool, insecure: bool) -> None:
    """Texts travel over this: other machines need TLS, or somebody who says that they do not. Raises ConfigError."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not (loopback or tls or insecure):
        raise ConfigError(
            f"--host: received '{host}' without TLS; texts would travel as they are; give --certificate and --key, "
            "put a proxy with TLS before it, or say --insecure"
        )


class OwnNames:
    """Answers requests that were meant for this server, and refuses those for another name: else a page in somebody's
    browser whose name was made to point here (DNS rebinding) could read the answers."""

    def __init__(self, app: Starlette, names: Iterable[str]) -> None:
        """names: beside localhost and addresses, which no page can make its own; "*." stands for one label."""
        self._app, self._names = app, {name.lower().rstrip(".") for name in names}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            know(scope)
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            if not self._is_own(host):
                told = f"this server does not answer for '{host[:80]}'; start it with --name for a name that is its own"
                return await _refusal(RefusedError(421, told))(scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower().rstrip(".")
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name == "localhost" or bool({name, f"*.{name.partition('.')[2]}"} & self._names)
        return True


def certified(certificate: str) -> list[str]:
    """The DNS names that a certificate vouches for."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName)
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []


def run(
    app: Starlette,
    host: str,
    port: int,
    certificate: str | None = None,
    key: str | None = None,
    names: Iterable[str] = (),
) -> None:
    """Until it is stopped. names: by which others reach the server, beside its address and what the certificate says.
    Raises ConfigError for an address or a certificate that does not serve."""
    own = OwnNames(app, [host, *names, *([] if certificate is None else certified(certificate))])
    config = configured(
        own,
        host,
        port,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=10,
        limit_concurrency=2048,
    )
    try:
        config.load()
    except OSError as error:
        raise ConfigError(f"--certificate, --key: cannot be read: {error.strerror or error}") from None
    server = Gateway(config, Limits(connections=2048, strangers_at_one_address=1024))
    try:
        server.run()
    except SystemExit:
        raise ConfigError(f"--host, --port: cannot listen on {host}:{port}; is something there already?") from None
