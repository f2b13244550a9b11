"""One registered site that answers whatever it likes costs its own replies, never the run, the report or a resume."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from confide.common import wire
from confide.common.errors import WireError
from confide.common.types import Update
from confide.server.plausible import one_line, require_plausible, site_name
from confide.server.report import read_report
from confide.simulations.local import LocalGrid
from confide.simulations.run import simulate
from confide.tests.rings import slow

EVIL = 2
"""the node of the first site"""
ESCAPES = "\x1b[2J\x1b]0;owned\x07done\r\n2026-01-01 INFO all is well\u202e\x00"
NASTY: tuple[Any, ...] = (
    *(0, 1, -1, 2**62, -(2**62), 2**63 - 1, 10**6),
    *(0.0, -1.0, 1e308, -1e308, 1e-308, float("nan"), float("inf"), float("-inf"), 0.5),
    *("", "a", ESCAPES, "a" * 100_000, "../../etc/passwd", "<script>alert(1)</script>", "nan"),
    *(b"", b"\x00" * 100, b"\xff" * 32, True, False),
    *([], [0], [1, 2, 3], [float("nan")], ["a", ESCAPES], [b"a"]),
)
Random = np.random.Generator


def mutated(rng: Random, content: RecordDict) -> RecordDict | Error:
    """One change of a reply, of any part of it."""
    kind = int(rng.integers(6))
    if kind == 0:
        code = int(rng.choice([0, 1, -1, wire.REFUSED, wire.DECLINED, wire.FAILED, wire.KEYS_LOST, 2**31 - 1]))
        return Error(code, str(rng.choice(["", ESCAPES, "a" * 100_000, "<b>x</b>", "{{ 7 * 7 }}"])))
    if kind == 1:
        return RecordDict()
    records = {key: copied(value) for key, value in content.items()}
    key = str(rng.choice(list(records)))
    if kind == 2:
        del records[key]
        return RecordDict(records)
    if kind == 3:
        records[key] = [ConfigRecord({}), MetricRecord({}), ArrayRecord({})][int(rng.integers(3))]
        return RecordDict(records)
    record = records[key]
    names = list(record)
    name = str(rng.choice(names)) if names and rng.random() < 0.9 else "something else"
    if isinstance(record, ArrayRecord):
        record[name] = Array(array_of(rng, record[name].numpy() if name in record else np.ones(3, np.float32)))
    elif rng.random() < 0.1 and name in record:
        del record[name]
    else:
        value = NASTY[int(rng.integers(len(NASTY)))]
        try:
            record[name] = value
        except (TypeError, ValueError):  # what Flower's own records do not hold
            record[name] = -1
    return RecordDict(records)


def copied(record: Any) -> Any:
    return type(record)(dict(record))


def array_of(rng: Random, array: np.ndarray) -> np.ndarray:
    """Another shape or type, or numbers that are none. What an update of the right form may do to a model is the
    aggregation's to bear, so its numbers stay small."""
    choices: list[Callable[[], np.ndarray]] = [
        lambda: array[:-1] if array.ndim else array,
        lambda: np.concatenate([array, array]) if array.ndim else array,
        lambda: array.reshape(-1)[None],
        lambda: np.zeros((0,), array.dtype),
        lambda: np.asarray(3),
        lambda: array.astype(np.float64).astype(np.complex128),
        lambda: array.astype(np.int64),
        lambda: np.full(array.shape, np.nan, np.float32),
        lambda: np.full(array.shape, np.inf, np.float32),
        lambda: np.full(array.shape, 3e38, np.float32),
        lambda: np.full(array.shape, -5e3, np.float32),
        lambda: np.array(["a", "b"]),
        lambda: np.zeros((2**20,), np.uint8),
    ]
    return choices[int(rng.integers(len(choices)))]()


def evil(monkeypatch: pytest.MonkeyPatch, rng: Random, share: float) -> Counter[str]:
    """From here on the first site's replies are mutated, a share of them. Returns how many, by kind of message."""
    count: Counter[str] = Counter()
    honest = LocalGrid._handle

    def handle(self: LocalGrid, message: Message) -> Message:
        reply = honest(self, message)
        kind = message.metadata.message_type
        rare = kind.endswith((".hello", ".ledger"))  # one lie in these, and nobody asks the site anything more
        if message.metadata.dst_node_id != EVIL or reply.has_error() or rng.random() > (share / 8 if rare else share):
            return reply
        count[kind] += 1
        return Message(mutated(rng, reply.content), reply_to=message)

    monkeypatch.setattr(LocalGrid, "_handle", handle)
    return count


PRIVATE = {"epsilon": 50.0, "sampling_rate": 0.2, "declared_examples": 240}
MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "local": {"privacy": {"mode": "local", **PRIVATE}},
    "distributed": {"privacy": {"mode": "distributed", **PRIVATE}},
    "client": {"privacy": {"mode": "client", "epsilon": 1000.0, "sampling_rate": 1.0, "clip_quantile": 0.5}},
    "at sites": {"evaluation": {"sites": True, "holdout": 0.2, "every": 1}},
    "at sites, local": {"privacy": {"mode": "local", **PRIVATE}, "evaluation": {"sites": True, "holdout": 0.2}},
}


def play(make_config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str, seed: int) -> Counter[str]:
    """A run beside the evil site, which must end well."""
    sections = {**MODES[mode], "run": {"rounds": 2, "output": str(tmp_path / f"{seed}")}}
    sections["server"] = {"min_clients": 2, **({"secure_aggregation": False} if mode == "client" else {})}
    with monkeypatch.context() as patched:
        count = evil(patched, np.random.default_rng([seed, len(mode)]), 0.7)
        folder = simulate(make_config(**sections))
    report = read_report(folder)
    rounds = json.loads((folder / "report.json").read_text())["rounds"]  # strict: no NaN
    assert len(rounds) == 2
    assert all({"site-2", "site-3", "site-4"} <= set(row["sites"]) for row in rounds if "void" not in row)
    page = (folder / "report.html").read_text()
    text = json.dumps(rounds) + (folder / "metrics.jsonl").read_text() + page
    assert "\x1b" not in text
    assert "\\u001b" not in text
    assert "<script>alert(1)" not in page  # JSON says what the site said, the page shows it as text
    assert max((len(failure["reason"]) for row in rounds for failure in row["failed"]), default=0) < 1000
    assert report is not None
    return count


@pytest.mark.parametrize("mode", ["none", "local", *slow("distributed", "client", "at sites", "at sites, local")])
def test_an_evil_site_costs_its_replies(make_config, monkeypatch, tmp_path: Path, mode: str) -> None:
    found = sum((play(make_config, monkeypatch, tmp_path, mode, seed) for seed in range(4)), Counter())
    assert sum(found.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_mutated_replies_cost_theirs(make_config, monkeypatch, tmp_path: Path, mode: str) -> None:
    found: Counter[str] = Counter()
    seed = 1000
    while sum(found.values()) < 170:  # in each of six modes
        seed += 1
        found += play(make_config, monkeypatch, tmp_path, mode, seed)


UPDATE = Update("site-1", {"a": np.ones(3, np.float32)}, 1.0, 1, 1.0)


@pytest.mark.parametrize(
    ("private", "change", "why"),
    [
        (True, {"weight": 2.0}, "weight 2.0 received; allowed under privacy: 1"),
        (False, {"weight": 1e308}, "weight 1e\\+308 received"),
        (False, {"weight": -1.0}, "weight -1.0 received"),
        (True, {"steps": 2**62}, "steps received; allowed: 0 to 3"),
        (True, {"steps": -1}, "-1 steps received"),
        (True, {"evaluations": 10**12}, "1000000000000 evaluations received; allowed: 0 to 0"),
        (True, {"metrics": {"loss": 0.5}}, "1 metrics received that this mode does not have"),
        (False, {"metrics": {"loss": float("nan")}}, "loss nan received"),
        (False, {"metrics": {"loss": 1e30}}, "loss 1e\\+30 received"),
        (False, {"metrics": {"whole": 1.0}}, "1 metrics received"),
        (False, {"metrics": {ESCAPES: 1.0}}, "1 metrics received"),
        (True, {"epsilon": float("nan")}, "ε = nan received"),
        (True, {"epsilon": -1.0}, "ε = -1.0 received"),
        (True, {"commitment": ESCAPES}, "a commitment that is not"),
        (False, {"delta": {"a": np.array([0, -2e3, 1], np.float32)}}, "a: a change of 2e\\+03 received"),
        (True, {"counts": np.array([1.0, 1e300])}, "counts of held-out records beyond"),
    ],
)
def test_what_no_honest_site_sends_is_refused(make_config, local, private: bool, change: dict, why: str) -> None:
    config = make_config(**({"privacy": {**local, "epsilon": 50.0}} if private else {}))
    require_plausible(config, UPDATE)
    with pytest.raises(WireError, match=why):
        require_plausible(config, replace(UPDATE, **change))


def test_what_a_site_says_forges_no_line_and_no_colour() -> None:
    said = one_line(ESCAPES)
    assert said == "[2J ]0;owned done 2026-01-01 INFO all is well"
    assert one_line("a" * 10**6) == "a" * 300 + "…"
    assert one_line("zwei Wörter, 名前") == "zwei Wörter, 名前"
    for name in ("", "a b", ESCAPES, "a" * 65, "../x", None, 3, b"a", ["a"]):
        with pytest.raises(WireError, match="a site calls itself"):
            site_name(name)
    assert site_name("ward-1.b_c") == "ward-1.b_c"
