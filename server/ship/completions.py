"""A subset of OpenAI's chat completions beside `confide serve`'s own answers, for models that write texts.

::

    GET  /v1/models             {"object": "list", "data": [{"id": …, "object": "model", …}]}
    POST /v1/chat/completions   {"model": …, "messages": [{"role": …, "content": "…"}, …]} and, if wanted, "max_tokens",
                                "temperature" (0, the likeliest tokens, unless given) and "stream" (server-sent events)

Other fields are refused, not ignored: whoever sends them expects something of them. One completion is written after the
other. Errors have OpenAI's form.
"""

import asyncio
import json
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ...common.errors import DataError
from ...common.types import Conversation
from .predict import Writes
from .requests import Bounds, RefusedError, body, check_text

_FIELDS = ("model", "messages", "max_tokens", "temperature", "stream")
_ROLES = ("system", "user", "assistant")
_TOKENS = 256
"""of a completion for which nothing is said"""
_LOOKED = 0.5
"""seconds between looks at whether a client is still there"""
_KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class _GoneError(Exception):
    """Whoever asked has left."""


@dataclass(frozen=True)
class _Asked:
    turns: Conversation
    tokens: int | None
    temperature: float
    stream: bool


class Completions:
    """The two endpoints."""

    def __init__(self, writer: Writes, name: str, bounds: Bounds) -> None:
        """name: of the model, which requests must give."""
        self._writer, self._name, self._bounds = writer, name, bounds
        self._began = int(time.time())
        self._turn, self._waiting = asyncio.Lock(), 0

    async def models(self, _: Request) -> Response:
        one = {"id": self._name, "object": "model", "created": self._began, "owned_by": "confide"}
        return JSONResponse({"object": "list", "data": [one]})

    async def complete(self, request: Request) -> Response:
        asked = _checked(await body(request, self._bounds), self._name, self._bounds)
        try:
            prompt = self._writer.prompt(asked.turns)  # (T,)
        except DataError as error:
            raise RefusedError(400, str(error), key="messages") from None
        room = self._room(len(prompt), asked.tokens)
        if self._waiting >= self._bounds.writing:
            raise RefusedError(503, "too many completions are waiting; come back in a moment")
        writing = _Writing()

        def write() -> Any:
            return self._writer.write(prompt, room, asked.temperature, writing.told)

        task = asyncio.create_task(self._in_turn(write, writing))
        self._waiting += 1
        task.add_done_callback(self._ended)
        facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._name}
        if asked.stream:
            return StreamingResponse(_events(task, writing, facts), media_type="text/event-stream")
        return JSONResponse(await _whole(task, writing, facts, request))

    async def _in_turn(self, write: Callable[[], Any], writing: "_Writing") -> Any:
        """One is written at a time, however fast its reader reads, and whether there still is one."""
        try:
            async with self._turn:
                writing.told("")
                return await asyncio.to_thread(write)
        finally:
            writing.parts.put_nowait(None)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._waiting -= 1
        if not task.cancelled():
            task.exception()  # looked at here, since nobody may wait for it any more

    def _room(self, prompt: int, tokens: int | None) -> int:
        """Tokens that may be written. Raises RefusedError."""
        if not prompt:
            raise RefusedError(400, "the messages have no token that the model knows", key="messages")
        most = min(self._bounds.tokens, (self._writer.positions or math.inf) - prompt)
        if most < (tokens or 1):
            raise RefusedError(
                400,
                f"a prompt of {prompt} tokens and {tokens or 1} to be written are more than the model takes "
                f"({self._writer.positions or 'any'} together, {self._bounds.tokens} written)",
                key="messages",
                code="context_length_exceeded",
            )
        return tokens or int(min(most, _TOKENS))


async def _whole(
    task: asyncio.Task[Any], writing: "_Writing", facts: dict[str, Any], request: Request
) -> dict[str, Any]:
    while not task.done():
        await asyncio.wait({task}, timeout=_LOOKED)
        if not task.done() and await request.is_disconnected():
            writing.gone.set()
    try:
        written = task.result()
    except Exception as error:
        raise RefusedError(500, f"the model failed: {type(error).__name__}") from None
    message = {"role": "assistant", "content": written.text}
    choice = {"index": 0, "message": message, "finish_reason": _reason(written)}
    total = written.prompt_tokens + written.tokens
    usage = {"prompt_tokens": written.prompt_tokens, "completion_tokens": written.tokens, "total_tokens": total}
    return {**facts, "object": "chat.completion", "choices": [choice], "usage": usage}


async def _events(task: asyncio.Task[Any], writing: "_Writing", facts: dict[str, Any]) -> AsyncIterator[str]:
    """Server-sent events; when nobody reads them any more, writing ends with the next token."""

    def event(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return _event({**facts, "object": "chat.completion.chunk", "choices": [choice]})

    try:
        yield event({"role": "assistant", "content": ""})
        while (part := await writing.parts.get()) is not None:
            yield event({"content": part})
        yield event({}, _reason(await task))
    except Exception as error:
        yield _event(_content(RefusedError(500, f"the model failed: {type(error).__name__}")))
    finally:
        writing.gone.set()
    yield "data: [DONE]\n\n"


class _Writing:
    """What comes from the thread that writes, and what it is told."""

    def __init__(self) -> None:
        self.parts: asyncio.Queue[str | None] = asyncio.Queue()
        self.gone = threading.Event()
        self._loop = asyncio.get_running_loop()

    def told(self, part: str) -> None:
        """With every token, be it nothing. Raises _GoneError when nobody reads any more."""
        if self.gone.is_set():
            raise _GoneError
        if part:
            self._loop.call_soon_threadsafe(self.parts.put_nowait, part)


def refusal(refused: RefusedError) -> JSONResponse:
    """In OpenAI's form."""
    return JSONResponse(_content(refused), status_code=refused.status)


def _content(refused: RefusedError) -> dict[str, Any]:
    kind = _KINDS.get(refused.status, "invalid_request_error")
    return {"error": {"message": str(refused), "type": kind, "param": refused.key, "code": refused.code}}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _reason(written: Any) -> str:
    return "stop" if written.ended else "length"


def _checked(content: dict[str, Any], name: str, bounds: Bounds) -> _Asked:
    """Raises RefusedError."""
    for key in content:
        if key not in _FIELDS:
            shown = key[:40].encode("utf-8", "replace").decode()
            raise RefusedError(400, f"received '{shown}'; allowed: {', '.join(_FIELDS)}", key=shown)
    if content.get("model") != name:
        raise RefusedError(404, f"no such model here; allowed: '{name}'", key="model", code="model_not_found")
    tokens, temperature, stream = content.get("max_tokens"), content.get("temperature"), content.get("stream")
    temperature = 0 if temperature is None else temperature
    if tokens is not None and not (type(tokens) is int and 1 <= tokens <= bounds.tokens):
        raise RefusedError(400, f"expected a whole number from 1 to {bounds.tokens}", key="max_tokens")
    if type(temperature) not in (int, float) or not (temperature == 0 or 0.01 <= temperature <= 2):
        raise RefusedError(400, "expected 0, or a number from 0.01 to 2", key="temperature")
    if type(stream) not in (bool, type(None)):
        raise RefusedError(400, "expected true or false", key="stream")
    turns = _turns(content.get("messages"), bounds)
    return _Asked(turns, tokens, float(temperature), bool(stream))


def _turns(messages: object, bounds: Bounds) -> Conversation:
    """Raises RefusedError."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= bounds.messages:
        raise RefusedError(400, f"expected a list of 1 to {bounds.messages} messages", key="messages")
    turns = []
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise RefusedError(400, 'expected {"role": "…", "content": "…"} of each message', key="messages")
        role, text = message["role"], message["content"]
        if role not in _ROLES or not isinstance(text, str):
            raise RefusedError(400, f"expected a role ({', '.join(_ROLES)}) and a text as its content", key="messages")
        turns.append((role, text))
    if turns[-1][0] != "user":
        raise RefusedError(400, "expected a last message of role 'user'", key="messages")
    try:
        check_text("".join(text for _, text in turns), bounds)
    except RefusedError as refused:
        raise RefusedError(400, str(refused), key="messages") from None
    return tuple(turns)
