"""Answers from a file and over HTTP: in order, bounded, and every bad request a 4xx of one line."""

import contextlib
import csv
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from confide.common.credentials import issue, make_ca
from confide.common.data.formats import parsed
from confide.common.errors import ConfigError, DataError
from confide.common.types import Reads
from confide.server.ship.predict import Columns, Format, format_of, predict, predict_file, written_as
from confide.server.ship.runtime import Answering
from confide.server.ship.serve import Bounds, OwnNames, Rates, certified, check_address, make_app, run

LABELS, TASK = ["negative", "positive"], "sequence-classification"


class Counting(Answering):
    """Positive when a text is long; fails on one word."""

    task, labels, pad, size, scale, reads = TASK, LABELS, 0, None, None, Reads()

    def __init__(self) -> None:
        self.passes: list[int] = []

    def pieces(self, texts):
        if "crash" in texts:
            raise RuntimeError("a secret of the model")
        return [[len(text)] for text in texts], []

    def run(self, inputs):
        lengths = inputs[0][:, 0]
        self.passes.append(len(lengths))
        return np.stack([0.0 * lengths, lengths - 8.0], axis=1).astype(np.float32)


def answered(text: str, format_: Format, **more) -> str:
    out = io.StringIO()
    table = parsed(Path("asked"), f".{format_}".replace("text", "txt"), text.encode())
    predict(Counting(), table, out, written_as(format_, None), **more)
    return out.getvalue()


def test_rows_keep_their_order_and_their_columns() -> None:
    lines = "".join(f"{i},{'x' * (1 + i % 20)}\n" for i in range(200))
    rows = list(csv.DictReader(io.StringIO(answered("id,text\n" + lines, "csv"))))
    assert [row["id"] for row in rows] == [str(i) for i in range(200)]
    assert all(row["predicted"] == LABELS[len(row["text"]) > 8] for row in rows)
    assert float(rows[0]["probability"]) == pytest.approx(1 / (1 + np.exp(-7)), abs=1e-5)
    given = '{"body": "short", "n": 1}\n\n{"body": "long enough", "n": 2}\n'
    found = [json.loads(line) for line in answered(given, "jsonl", columns=Columns(text="body")).splitlines()]
    assert [(row["n"], row["predicted"]) for row in found] == [(1, "negative"), (2, "positive")]
    assert answered("short\n\nlong enough, quite\n", "text").splitlines()[2].startswith('"long enough, quite",positive')


@pytest.mark.parametrize(
    ("text", "format_", "reason"),
    [
        ("id,words\n1,a\n", "csv", "column 'text' is missing; the columns are: id, words"),
        ("text,predicted\na,b\n", "csv", "column 'predicted' is there already"),
        ("id,text\n1,a,secret\n", "csv", "row 2: 3 columns instead of 2"),
        ("id,text\n1\n", "csv", "row 2: 1 columns instead of 2"),
        ('text\n"secret', "csv", "row 2: a quote is not closed"),
        ("text,secret\n,b\n", "csv", "row 2, column 'text': the field is empty"),
        ('{"text": "a"}\n{"text": secret}\n', "jsonl", "row 2: it cannot be parsed"),
        ('{"text": ["secret"]}\n', "jsonl", "row 1, column 'text': a list where a text or a number is expected"),
        ('{"text": "a", "b": "\\ud800"}\n', "jsonl", "row 1, column 'b': half a surrogate pair"),
        ('{"text": "a", "more": ["\\udfff"]}\n', "jsonl", "row 1, column 'more': half a surrogate pair"),
        ("text,id,id\na,1,2\n", "csv", "column 'id' is there twice; rename one"),
        ("what a patient said about the pain\n", "csv", "none of the 1 fields of the first line is called so"),
        ('["secret"]\n', "jsonl", "row 1: it cannot be parsed"),
        ('{"secret": ', "json", "row 1: it cannot be parsed"),
        ("", "csv", "the file is empty"),
        ("\n", "text", "the file is empty"),
    ],
)
def test_bad_rows_are_named_as_in_a_run_and_never_shown(text: str, format_: Format, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        answered(text, format_)
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_of_answers_is_whole_or_not_there(tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text\n" + "a\n" * 100 + "b,c\n")
    with pytest.raises(DataError, match="row 102"):
        predict_file(Counting(), str(source), out, "csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    source.write_text("text\na\n")
    assert predict_file(Counting(), str(source), out, "csv") == 1
    with pytest.raises(ConfigError, match="is there already"):
        predict_file(Counting(), str(source), out, "csv")
    source.write_bytes(b"text\n\xff\xfe\n")
    with pytest.raises(DataError, match="row 2, column 'text': bytes that are not UTF-8"):
        predict_file(Counting(), str(source), tmp_path / "other.csv", "csv")
    with pytest.raises(DataError, match="no such file"):
        predict_file(Counting(), str(tmp_path / "nosuch.csv"), None, "csv")
    assert format_of("a/b.jsonl", None) == "jsonl"
    assert format_of("notes.txt", None) == "text"
    with pytest.raises(ConfigError, match="allowed: csv, tsv, json"):
        format_of("-", None)


@pytest.fixture
def client():
    model = Counting()
    with TestClient(make_app(model, "name", "int8", Bounds(rate=10_000))) as client:
        yield client


def test_what_a_model_does_not_read_is_refused(client) -> None:
    for more in ({"text_pairs": ["a"]}, {"images": ["a"]}):
        reply = client.post("/predict", json={"texts": ["short"], **more})
        assert (reply.status_code, f'"{next(iter(more))}" received' in reply.json()["error"]) == (422, True)


def test_texts_are_answered_with_every_probability(client) -> None:
    found = client.post("/predict", json={"texts": ["short", "long enough"]}).json()["predictions"]
    assert [one["label"] for one in found] == ["negative", "positive"]
    assert all(sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5) for one in found)
    facts = client.get("/health").json()
    assert facts == {
        "status": "ok",
        "model": "name",
        "variant": "int8",
        "task": TASK,
        "labels": LABELS,
        "explains": False,
    }
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "text/javascript" in client.get("/try.js").headers["content-type"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"[]", 422),
        (b"5", 422),
        (b"{}", 422),
        (b'{"texts": "a"}', 422),
        (b'{"texts": []}', 422),
        (b'{"texts": [1]}', 422),
        (b'{"texts": [" "]}', 422),
        (b'{"texts": ["\\ud800"]}', 422),
        (b'{"texts": ["' + b"x" * 10_001 + b'"]}', 422),
        (json.dumps({"texts": ["a"] * 65}).encode(), 422),
        (b'{"texts": ["' + b"x" * 300_000 + b'"]}', 413),
        (b'{"texts": [NaN]}', 422),
    ],
)
def test_bad_requests_are_answered_and_the_next_is_served(client, content: bytes, status: int) -> None:
    reply = client.post("/predict", content=content)
    assert reply.status_code == status
    assert [*reply.json()] == ["error"]
    assert client.post("/predict", json={"texts": ["good"]}).status_code == 200


def test_other_ways_in_are_closed(client) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/nosuch").status_code == 404
    assert client.post("/explain", json={"text": "a"}).status_code == 404
    streamed = (b"x" * 1024 for _ in range(1000))
    assert client.post("/predict", content=streamed).status_code == 413
    assert client.post("/predict", content=b"{}", headers={"content-length": "-5"}).status_code in (400, 413)
    failed = client.post("/predict", json={"texts": ["crash"]})
    assert failed.status_code == 500
    assert "secret" not in failed.text
    assert client.post("/predict", json={"texts": ["good"]}).status_code == 200


def test_an_address_that_asks_too_much_waits_while_others_are_served() -> None:
    now = [0.0]
    rates = Rates(5, lambda: now[0])
    assert [rates.admits("a") for _ in range(7)] == [True] * 5 + [False] * 2
    assert rates.admits("b")
    now[0] = 0.2
    assert [rates.admits("a") for _ in range(2)] == [True, False]
    with TestClient(make_app(Counting(), "name", "int8", Bounds(rate=3))) as client:
        codes = [client.get("/health").status_code for _ in range(6)]
    assert codes.count(200) in (3, 4)
    assert codes[-1] == 429


def test_waiting_texts_are_answered_together_and_no_more_than_are_allowed_wait() -> None:
    import asyncio

    from confide.server.ship.serve import RefusedError, Row, Together

    async def play() -> tuple[Counting, list]:
        model = Counting()
        together = Together(model, waiting=100)
        asking = [asyncio.create_task(together.ask([Row(f"text {i}")])) for i in range(100)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="too many"):
            await together.ask([Row("one more")])
        task = asyncio.create_task(together.run())
        rows = await asyncio.gather(*asking)
        task.cancel()
        return model, rows

    model, rows = asyncio.run(play())
    assert model.passes == [64, 36]
    assert len(rows) == 100


def test_other_machines_need_tls_or_somebody_who_says_otherwise() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_address(host, tls=False, insecure=False)
    for host in ("0.0.0.0", "model.example.org", "10.0.0.5"):  # noqa: S104
        with pytest.raises(ConfigError, match="without TLS"):
            check_address(host, tls=False, insecure=False)
        check_address(host, tls=True, insecure=False)
        check_address(host, tls=False, insecure=True)


@pytest.fixture
def served(make_config, wordpiece: Path):
    """The command in a process of its own."""
    from confide.simulations.run import simulate

    folder = simulate(make_config(model={"backbone": str(wordpiece)}, run={"rounds": 1}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "confide.cli.main", "serve", str(folder), "--port", str(port), "--explain"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield port, process
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(served) -> None:
    port, process = served
    address = f"http://127.0.0.1:{port}"
    secret = "a gloomy film of someone"
    found = httpx.post(f"{address}/predict", json={"texts": [secret]}).json()["predictions"][0]
    assert found["label"] in LABELS
    why = httpx.post(f"{address}/explain", json={"text": secret}, timeout=60).json()
    assert why["words"] == secret.split()
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(garbage)
            raw.settimeout(10)
            with contextlib.suppress(OSError):
                raw.recv(1024)
    assert httpx.get(f"{address}/health").status_code == 200
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert f"http://127.0.0.1:{port}/" in out
    assert secret not in out + err


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((own, 200) for own in ("127.0.0.1", "127.0.0.1:8008", "[::1]:8008", "localhost:1", "LOCALHOST.", "10.0.0.7")),
        *((own, 200) for own in ("model.example.org", "Model.Example.Org:443", "a.wards.example.org")),
        *((other, 421) for other in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", ":8008")),
        *((other, 421) for other in ("b.a.wards.example.org", "wards.example.org", "example.org", "127.0.0.1@evil")),
    ],
)
def test_a_name_that_is_not_its_own_gets_no_answer(host: str, status: int) -> None:
    """DNS rebinding: a page's own name that points here."""
    app = make_app(Counting(), "name", "int8", Bounds())
    with TestClient(OwnNames(app, ["127.0.0.1", "model.example.org", "*.wards.example.org"])) as client:
        for method, path in (("GET", "/health"), ("GET", "/"), ("POST", "/predict")):
            answer = client.request(method, path, headers={"host": host}, json={"texts": ["a"]})
            assert answer.status_code == status, (method, path)
            assert ("--name" in answer.text) == (status == 421)


def test_names_of_a_certificate_are_its_own(tmp_path: Path) -> None:
    make_ca(tmp_path)
    issue(tmp_path, "server", ["model.example.org", "127.0.0.1"])
    assert certified(str(tmp_path / "server.crt")) == ["model.example.org"]
    assert certified(str(tmp_path / "nowhere")) == certified(str(tmp_path / "ca.key")) == []


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"POST /predict HTTP/1.1\r\nhost: localhost\r\n"])
def test_whoever_sends_no_request_is_put_out(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from confide.server import doors

    def quick(**settings: Any) -> doors.Limits:
        return Limits(**settings, stranger_seconds=1.0, header_seconds=0.5)

    Limits = doors.Limits
    monkeypatch.setattr("confide.server.ship.serve.Limits", quick)
    started: list[doors.Gateway] = []
    begin = doors.Gateway.startup

    async def noted(self: doors.Gateway, sockets: Any = None) -> None:
        await begin(self, sockets)
        started.append(self)

    monkeypatch.setattr(doors.Gateway, "startup", noted)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(Counting(), "name", "int8", Bounds())
    thread = threading.Thread(target=run, args=(app, "127.0.0.1", port), daemon=True)
    thread.start()
    while not started:
        time.sleep(0.05)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as idle:
            idle.sendall(sent)
            idle.settimeout(5)
            with contextlib.suppress(ConnectionError):
                assert idle.recv(100) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as long:
            long.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 20_000)
            with contextlib.suppress(ConnectionError):
                assert long.recv(100).startswith((b"HTTP/1.1 400", b""))
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        assert httpx.post(f"http://127.0.0.1:{port}/predict", json={"texts": ["a"]}).status_code == 200
    finally:
        started[0].should_exit = True
        thread.join(20)
    assert not thread.is_alive()


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def in_a_browser(app, text: str, scratch: Path) -> str:
    """The page's elements after it was opened with a link to a text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        quiet = [
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        return subprocess.run(
            [
                str(BROWSER),
                *("--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={scratch}"),
                *("--virtual-time-budget=10000", "--dump-dom", f"http://127.0.0.1:{port}/#{quote(text)}"),
            ],
            capture_output=True,
            text=True,
            timeout=40,
        ).stdout
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("refused", [False, True])
def test_the_page_in_a_browser(tmp_path: Path, refused: bool) -> None:
    """A text is asked, its answer and its map are shown, and markup in it stays text."""
    text = "a <b>gorgeous</b> film & no <script>alert(1)</script>"

    def explain(asked: str, word: int | None) -> dict:
        words = asked.split(" ")
        scores = [float(i) for i in range(len(words))]
        return {
            "words": words,
            "scores": scores,
            "title": "positive (90.0 %)",
            "label": "positive",
            "value": 0.9,
            "delta": 0.001,
            "refused": refused,
        }

    page = in_a_browser(make_app(Counting(), "a/model", "int8", Bounds(), explain), text, tmp_path)
    assert '<h1 id="model">a/model</h1>' in page
    assert '<h2 id="label">positive (100.0 %)</h2>' in page
    assert '<section id="answer">' in page  # not hidden any more
    shown = page[page.index('id="words"') : page.index('id="check"')]
    assert "<script" not in shown
    if refused:
        assert "gorgeous" not in shown
        assert "withheld" in page
    else:
        assert "&lt;b&gt;gorgeous&lt;/b&gt;" in shown
        assert shown.count("<span") == len(text.split(" "))
        assert 'class="for-4"' in shown


class Tagging(Answering):
    """Capitals begin a place; words after the third are not read."""

    task, labels, pad, size, scale = "token-classification", ["B-loc", "I-loc", "O"], 0, None, None
    reads = Reads(label="tags")

    def pieces(self, texts):
        words = [text.split()[:3] for text in texts]
        numbers: list[list[int | None]] = [[*range(len(one))] for one in words]
        return [[1 + word[0].isupper() for word in one] for one in words], numbers

    def run(self, inputs):
        capital = inputs[0] == 2
        return np.stack([9.0 * capital, 0.0 * capital, 9.0 * ~capital], axis=-1).astype(np.float32)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_page_shows_tags_beside_their_words(tmp_path: Path) -> None:
    page = in_a_browser(make_app(Tagging(), "a/tagger", "int8", Bounds()), "from Paris to Rome", tmp_path)
    shown = page[page.index('id="bars"') : page.index('id="why"')]
    assert '<span>from</span> <span class="tagged">Paris<sub>B-loc</sub></span> <span>to</span>' in shown
    assert "Rome<sub>?</sub>" in shown
    assert "3 tags" in page
    assert "<button" not in shown


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_each_word_of_a_tagging_page_can_be_asked_why(tmp_path: Path) -> None:
    """The first map is shown; every word that is read is a button for its own."""

    def explain(asked: str, word: int | None) -> dict:
        title = f"word {word} of {asked}"
        return {"title": title, "label": "B-loc", "words": ["Paris"], "scores": [1.0], "delta": 0.0, "refused": False}

    page = in_a_browser(make_app(Tagging(), "a/tagger", "torch", Bounds(), explain), "from Paris to Rome", tmp_path)
    shown = page[page.index('id="bars"') : page.index('id="why"')]
    assert shown.count('<button type="button" class="word"') == 3
    assert '<span id="title">word None of from Paris to Rome</span>' in page
