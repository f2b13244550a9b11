"""What a request to `confide serve` may ask for, and how one that asks for more is refused."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from .runtime import fault_of


@dataclass(frozen=True)
class Bounds:
    """What a request may ask for."""

    body: int = 256 * 1024
    """bytes; of a model that reads images sixteen times as many"""
    seconds: float = 10.0
    """until a body is there"""
    rows: int = 64
    letters: int = 10_000
    waiting: int = 2000
    """rows that wait for an answer; more are told to come back"""
    rate: float = 1000.0
    """requests a second of one address, and as many at once"""
    messages: int = 64
    """of a conversation, of `letters` together"""
    tokens: int = 1024
    """of a completion"""
    writing: int = 16
    """completions that are written or wait for it"""


class RefusedError(Exception):
    """A request that gets a status and one line."""

    def __init__(self, status: int, reason: str, *, key: str | None = None, code: str | None = None) -> None:
        """key: the part of the request that is refused. code: a word for it, where OpenAI has one."""
        super().__init__(reason)
        self.status, self.key, self.code = status, key, code


class Rates:
    """A bucket of tokens for each address; addresses that have been quiet are forgotten."""

    _KEPT = 10_000

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def admits(self, address: str) -> bool:
        now = self._clock()
        left, before = self._buckets.get(address, (self._rate, now))
        left = min(self._rate, left + (now - before) * self._rate)
        if len(self._buckets) > self._KEPT:
            self._buckets = {a: b for a, b in self._buckets.items() if now - b[1] < 1}
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        return left >= 1


async def body(request: Request, bounds: Bounds) -> dict[str, Any]:
    """The JSON object of a request. Raises RefusedError."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > bounds.body:
        raise RefusedError(413, f"allowed: {bounds.body} bytes in a request")
    content = bytearray()
    try:
        async with asyncio.timeout(bounds.seconds):
            async for piece in request.stream():
                content += piece
                if len(content) > bounds.body:
                    raise RefusedError(413, f"allowed: {bounds.body} bytes in a request")
    except TimeoutError:
        raise RefusedError(408, f"the request was not there after {bounds.seconds:g} s") from None
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RefusedError(400, "not valid JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise RefusedError(422, "expected a JSON object")
    return value


def check_text(text: str, bounds: Bounds) -> None:
    if (wrong := fault_of(text)) is not None:
        raise RefusedError(422, wrong)
    if len(text) > bounds.letters:
        raise RefusedError(422, f"a text of {len(text)} letters was received; allowed: {bounds.letters}")
