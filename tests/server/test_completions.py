"""OpenAI's chat completions beside our own answers: the same bounds, strict fields, events that end."""

import asyncio
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from confide.common.errors import DataError
from confide.common.types import Conversation, Reads, Rows
from confide.server.ship.completions import Completions
from confide.server.ship.predict import Columns, predict_file
from confide.server.ship.requests import Bounds, RefusedError
from confide.server.ship.serve import make_app
from confide.server.ship.writer import Written
from confide.tests.server.test_served import Counting

PATH = "/v1/chat/completions"


class Repeating:
    """Says the last message's words again, and then that it is done."""

    task, form, reads, two_texts = "causal-lm", None, Reads(label=None), False

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.positions: int | None = 40
        self.asked: list[tuple[Conversation, int, float]] = []

    def answers(self, rows: Rows) -> list[dict[str, Any]]:
        return [{"continuation": text} for text in rows.text]

    def prompt(self, turns: Conversation) -> list[int]:
        if turns[0][0] == "system":
            raise DataError("no system here")
        self._turns = turns
        return [0] * len(turns[-1][1].split())

    def tell(self, text: str, told) -> None:
        self._said(text.split(), told)

    def write(self, prompt: list[int], tokens: int, temperature: float = 0.0, told=None) -> Written:
        self.asked.append((self._turns, tokens, temperature))
        words = self._turns[-1][1].split()
        if words == ["crash"]:
            raise RuntimeError("a secret of the model")
        self._said(words[:tokens], told)
        return Written(" ".join(words[:tokens]), len(prompt), min(tokens, len(words)), len(words) <= tokens)

    def _said(self, words: list[str], told) -> None:
        if told is not None:
            for word in words:
                told(f"{word} ")


@pytest.fixture
def model() -> Repeating:
    return Repeating()


@pytest.fixture
def client(model: Repeating):
    with TestClient(make_app(model, "name", "torch", Bounds(rate=10_000))) as client:
        yield client


def asking(text: str = "good film", **more: object) -> dict[str, object]:
    return {"model": "name", "messages": [{"role": "user", "content": text}], **more}


def test_a_completion_has_openais_form(client, model: Repeating) -> None:
    found = client.post(PATH, json=asking(max_tokens=2, temperature=0.5)).json()
    assert found.pop("id").startswith("chatcmpl-")
    assert abs(found.pop("created") - time.time()) < 60
    assert found == {
        "object": "chat.completion",
        "model": "name",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "good film"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }
    cut = client.post(PATH, json=asking(max_tokens=1)).json()
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 1)
    client.post(PATH, json=asking())
    assert [one[1:] for one in model.asked] == [(2, 0.5), (1, 0.0), (38, 0.0)]
    (listed,) = client.get("/v1/models").json()["data"]
    assert (listed["id"], listed["object"]) == ("name", "model")
    assert client.post("/predict", json={"texts": ["good"]}).json() == {"predictions": [{"continuation": "good"}]}


def test_a_stream_ends_with_done(client) -> None:
    reply = client.post(PATH, json=asking(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-store"
    *events, done, nothing = reply.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"]["content"] for choice in choices[1:-1]] == ["good ", "film "]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


@pytest.mark.parametrize(
    ("changes", "status", "key", "reason"),
    [
        ({"model": "gpt"}, 404, "model", "allowed: 'name'"),
        ({"top_p": 0.5}, 400, "top_p", "received 'top_p'; allowed: model, messages"),
        ({"messages": []}, 400, "messages", "1 to 64 messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 65}, 400, "messages", "1 to 64 messages"),
        ({"messages": ["a"]}, 400, "messages", "of each message"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, 400, "messages", "of each message"),
        ({"messages": [{"role": "judge", "content": "a"}]}, 400, "messages", "expected a role"),
        ({"messages": [{"role": [], "content": "a"}]}, 400, "messages", "expected a role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages", "a text as its content"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "messages", "last message of role 'user'"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "messages", "an empty text"),
        ({"messages": [{"role": "user", "content": "x" * 10_001}]}, 400, "messages", "allowed: 10000"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", "half a character"),
        (
            {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
            400,
            "messages",
            "no sys",
        ),
        ({"max_tokens": 0}, 400, "max_tokens", "from 1 to 1024"),
        ({"max_tokens": True}, 400, "max_tokens", "from 1 to 1024"),
        ({"max_tokens": 1025}, 400, "max_tokens", "from 1 to 1024"),
        (
            {"max_tokens": 39},
            400,
            "messages",
            "2 tokens and 39 to be written are more than the model takes (40 together",
        ),
        ({"temperature": 2.5}, 400, "temperature", "from 0.01 to 2"),
        ({"temperature": float("nan")}, 400, "temperature", "from 0.01 to 2"),
        ({"temperature": 1e-40}, 400, "temperature", "from 0.01 to 2"),
        ({"\ud800": 1}, 400, "?", "received '?'"),
        ({"stream": 1}, 400, "stream", "true or false"),
    ],
)
def test_bad_requests_are_refused_in_openais_form(client, changes: dict, status: int, key: str, reason: str) -> None:
    for stream in ({}, {"stream": True}):
        reply = client.post(PATH, content=json.dumps({**asking(), **stream, **changes}))
        assert reply.status_code == status
        error = reply.json()["error"]
        assert {*error} == {"message", "type", "param", "code"}
        assert (error["type"], error["param"]) == ("invalid_request_error", key)
        assert reason in error["message"]
    assert client.post(PATH, json=asking()).status_code == 200


def test_the_same_bounds_hold_here(model: Repeating) -> None:
    with TestClient(make_app(model, "name", "torch", Bounds(rate=3, body=200))) as client:
        large = client.post(PATH, json=asking("x" * 300))
        assert (large.status_code, large.json()["error"]["type"]) == (413, "invalid_request_error")
        codes = [client.get("/v1/models") for _ in range(4)]
    assert codes[-1].status_code == 429
    assert codes[-1].headers["retry-after"] == "1"
    assert codes[-1].json()["error"]["type"] == "rate_limit_error"
    with TestClient(make_app(Counting(), "name", "int8", Bounds())) as other:  # it writes no texts
        assert other.post(PATH, json=asking()).status_code == 404
        assert other.get("/v1/models").status_code == 404


def test_a_failure_tells_nothing_of_the_model(client) -> None:
    whole, streamed = (client.post(PATH, json=asking("crash", stream=stream)) for stream in (False, True))
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "server_error")
    assert '"type": "server_error"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert "secret" not in whole.text + streamed.text
    assert client.post(PATH, json=asking()).status_code == 200


def _request(content: dict[str, object]) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_whoever_leaves_ends_the_writing_and_few_may_wait(model: Repeating, monkeypatch) -> None:
    async def play() -> None:
        chat = Completions(model, "name", Bounds(writing=1))
        quickly, written, most = model._said, [0], [0]

        def waiting(words: list[str], tell) -> None:
            written[0] += 1
            most[0] = max(most[0], written[0])
            time.sleep(0.2)
            written[0] -= 1
            quickly(words, tell)

        monkeypatch.setattr(model, "_said", waiting)
        reply: Any = await chat.complete(_request(asking("a " * 30, stream=True)))
        with pytest.raises(RefusedError, match="too many completions are waiting"):  # before anybody has read
            await chat.complete(_request(asking()))
        assert "assistant" in await anext(reply.body_iterator)
        with pytest.raises(RefusedError, match="too many completions are waiting"):
            await chat.complete(_request(asking()))
        await reply.body_iterator.aclose()
        await asyncio.sleep(0.5)
        monkeypatch.setattr(model, "_said", quickly)
        assert (await chat.complete(_request(asking()))).status_code == 200
        later: Any = await chat.complete(_request(asking("slow " * 30, stream=True)))
        told: list[str] = []

        def slowly(words: list[str], tell) -> None:
            for word in words:
                told.append(word)
                tell(word)
                time.sleep(0.02)

        monkeypatch.setattr(model, "_said", slowly)
        await anext(later.body_iterator)
        await anext(later.body_iterator)
        await later.body_iterator.aclose()
        await asyncio.sleep(0.3)
        assert 0 < len(told) < 30
        monkeypatch.setattr(model, "_said", waiting)
        many = Completions(model, "name", Bounds(writing=8))
        replies: list[Any] = [await many.complete(_request(asking("a b", stream=True))) for _ in range(4)]
        for left in replies[:3]:  # they go, or read nothing: the last one is answered all the same
            await anext(left.body_iterator)
        await replies[0].body_iterator.aclose()
        parts = [part async for part in replies[3].body_iterator]
        assert parts[-1] == "data: [DONE]\n\n"
        assert most == [1]

    asyncio.run(play())


def test_a_terminal_sees_texts_while_they_are_written(model: Repeating, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "in.txt").write_text("good film\nbad\n")
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    assert predict_file(model, str(tmp_path / "in.txt"), None, "text", columns=Columns()) == 2
    assert screen.getvalue().splitlines()[0] == "text,predicted"  # a pipe gets rows
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    screen.truncate(0)
    screen.seek(0)
    assert predict_file(model, str(tmp_path / "in.txt"), None, "text", columns=Columns()) == 2
    assert screen.getvalue() == "good film\ngood film \n\nbad\nbad \n\n"
    (tmp_path / "in.txt").write_text("a\x1b]0;owned\x07b\n")
    predict_file(model, str(tmp_path / "in.txt"), None, "text", columns=Columns())
    assert "\x1b" not in screen.getvalue()
