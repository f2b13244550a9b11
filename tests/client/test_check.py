"""`confide data check`: planted faults are found, the cleaned copy holds the rest, and nothing leaves."""

import csv
import socket
import stat
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from confide.cli.main import main
from confide.client.check import duplicates
from confide.client.check import identifiers as personal
from confide.client.check.clean import reasons
from confide.client.check.look import check_rows
from confide.client.check.run import check_source
from confide.common.errors import ConfigError, DataError
from confide.tests.conftest import shared_data
from confide.tests.federation import Federation
from confide.tests.tiny import sentences, write_csv

WORDS = [*"the of and film story actor plot scene music very quite".split(), *"rather almost never often long".split()]  # noqa: SIM905


def reviews(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of some length, none like another, and their classes."""
    rng = np.random.default_rng(seed)
    moods = {"good": ["lovely", "bright", "warm", "happy"], "bad": ["gloomy", "dark", "cold", "awful"]}
    rows = []
    for _ in range(count):
        label = ("good", "bad")[int(rng.integers(2))]
        words = [*rng.choice(moods[label], 3), *rng.choice(WORDS, 9)]
        rows.append((" ".join(rng.permutation(words)), label))
    return rows


def table(rows: list[tuple[str, str]]) -> pa.Table:
    return pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


def look(rows: list[tuple[str, str]], test: list[tuple[str, str]] | None = None):
    return check_rows(table(rows), "text", "label", None if test is None else table(test), None, 0, lambda _: None)


def test_planted_faults_are_found_and_left_out() -> None:
    rows = reviews(300, 1)
    first, second, third, fourth = rows[:4]
    rows[10] = ("  ", "good")
    rows[11] = (rows[11][0], "")
    rows[20] = (first[0].upper() + "!", first[1])
    rows[21] = (second[0].replace("  ", " ") + " again", second[1])  # a word more
    rows[22] = (third[0], "bad" if third[1] == "good" else "good")
    rows[30] = ("the cafÃ© film was never long again and again quite", "good")
    found = look(rows, test=[fourth, ("nothing like it in here at all, not a word", "good")])
    assert found.empty.tolist() == [10, 11]
    assert found.copies == {20: 0, 22: 2}
    assert found.near == {21: 1}
    assert found.conflicts.tolist() == [2, 22]
    assert found.leaked.tolist() == [3]
    assert found.encoding.tolist() == [30]
    assert found.classes.keys() == {"good", "bad"}
    without = reasons(found, drop_labels=False)
    assert without == {
        3: "in the test set", 10: "empty", 11: "empty", 20: "copy of row 1", 21: "nearly a copy of row 2",
        22: "copy of row 3",
    }  # fmt: skip
    assert reasons(found, drop_labels=True).keys() >= {2, 3, 10, 11, 20, 21, 22}


def test_near_copies_are_what_the_definition_says() -> None:
    """Against all pairs, on texts with a few letters changed; what the index misses is stated in its parameters."""
    rng = np.random.default_rng(7)
    texts = [text for text, _ in reviews(150, 8)]
    for text in texts[:50]:
        letters = list(text)
        for place in rng.integers(0, len(letters), int(rng.integers(1, 6))):
            letters[place] = "x"
        texts.append("".join(letters))
    sets = [duplicates._shingles(text) or set() for text in texts]
    like = {(i, j) for i in range(200) for j in range(i) if len(sets[i] & sets[j]) >= 0.75 * len(sets[i] | sets[j])}
    found = duplicates.near(texts, np.arange(200))
    assert set(found.items()) <= like
    assert len(found) >= 0.95 * len({i for i, _ in like})
    assert len(like) >= 20


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to ann.b@example.org", ["e-mail address"]),
        ("card 4111 1111 1111 1111 please", ["payment card"]),
        ("card 4111 1111 1111 1112 please", []),
        ("pay DE89 3704 0044 0532 0130 00 now", ["IBAN"]),
        ("pay DE88 3704 0044 0532 0130 00 now", []),
        ("call +49 (30) 1234-56789 or so", []),
        ("call +1 212-555-0172", ["phone number"]),
        ("his number 078-05-1120", ["US social security number"]),
        ("from 192.168.0.17", ["IP address"]),
        ("from 999.168.0.17 and version 3.1", []),
        ("born 1.2.1980, seen 2020-05-17", ["date of a day"]),
        ("ask @somebody", ["user name"]),
        ("in 2019 we paid 1,200 for 3 of 4", []),
    ],
)
def test_personal_details_by_pattern(text: str, kinds: list[str]) -> None:
    assert personal.details(text) == kinds
    hidden = personal.masked(text)
    assert (hidden == text) is (not kinds)
    assert personal.details(hidden) == []


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["confide", "data", "check", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_writes_a_local_folder(bert: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    source = write_csv(tmp_path / "a.csv", [*sentences(200, 9), ("reach me at ann@example.org, film", "positive")])
    test = write_csv(tmp_path / "t.csv", sentences(20, 10))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    options = ["--out", str(tmp_path / "out"), "--backbone", str(bert), "--test", str(test)]
    assert command(monkeypatch, str(source), *options) == 0
    out = capsys.readouterr().out
    assert "201 rows" in out
    assert "ann@" not in out
    page = (tmp_path / "out" / "check.html").read_text()
    assert "belongs to the site" in page
    assert "[e-mail address]" in page
    assert "ann@example.org" not in page
    for path in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with (tmp_path / "out" / "cleaned.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    with (tmp_path / "out" / "dropped.csv").open(newline="") as file:
        dropped = list(csv.DictReader(file))
    assert len(kept) + len(dropped) == 201
    assert kept[0].keys() == {"text", "label"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "check.html", "cleaned.csv", "dropped.csv", "labels.csv"
    }  # fmt: skip
    assert command(monkeypatch, str(source), *options) != 0
    assert "is not empty" in capsys.readouterr().err
    assert command(monkeypatch, str(source), *options, "--overwrite") == 0


def test_the_page_reads_in_the_dark_and_has_no_pictures(tmp_path: Path) -> None:
    """Classes of any letters are text in a table, of which each column has a head."""
    rows = [(f"{text} {i}", ("🌍", "$x_{$", "<b>")[i % 3]) for i, (text, _) in enumerate(sentences(60, 3))]
    outcome = check_source(str(write_csv(tmp_path / "a.csv", rows)), tmp_path / "out")
    page = outcome.page.read_text()
    assert "prefers-color-scheme: dark" in page
    assert "<img" not in page
    assert '<th scope="row">🌍</th><td class="number">20</td>' in page
    assert '<th scope="row">&lt;b&gt;</th>' in page
    assert page.count("<table") == page.count("<caption>") == page.count("<thead>") > 0


def test_rows_that_are_all_empty_are_no_fault(bert: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "a.csv", [("", "positive"), ("a film", "")])
    outcome = check_source(str(source), tmp_path / "out", backbone=str(bert))
    assert set(outcome.left_out.values()) == {"empty"}
    assert "Labels were not judged" in outcome.page.read_text()


def test_a_site_is_looked_at_by_its_folder(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "federation", 1)
    federation.make()
    outcome = check_source(str(federation.site("site-1")), tmp_path / "out")
    assert len(outcome.checked.texts) == 120
    with pytest.raises(ConfigError, match=r"no data set 'other' in site\.toml; allowed: default"):
        check_source(str(federation.site("site-1")), tmp_path / "two", dataset="other")


@pytest.mark.parametrize(
    ("content", "part"),
    [("a,b\n1,2\n", "column 'text' is missing; the columns are: a, b"), ("text,label\n", "there are no rows")],
)
def test_bad_input_writes_nothing(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=part):
        check_source(str(tmp_path / "a.csv"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shared_data() is None, reason="no ../shared/data beside this checkout")
def test_on_real_reviews_with_planted_faults(tmp_path: Path) -> None:
    """4,000 rows of SST-2, 10 % of the labels flipped, 5 % copies with a letter changed; without embeddings."""
    from confide.tests.planted import planted

    folder = shared_data()
    assert folder is not None
    fault = planted(folder / "sst2" / "train.csv", 4000, 0)
    found = check_rows(table(fault.rows), "text", "label", None, None, 0, lambda _: None)
    copied = set(found.near) | set(found.copies)
    assert len(copied & fault.copies) >= 0.95 * len(fault.copies)
    assert not found.judged  # few rows: the figures of all are in RESULTS.md
    assert found.judgement is not None
    first = set(found.judgement.rows[: len(fault.flipped)].tolist())
    assert len(first & fault.flipped) >= 0.2 * len(first)  # twice what chance gives
