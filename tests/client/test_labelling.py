"""Rows out to annotators, labels back in: to the rows they were asked for, and nothing else changes."""

import csv
import stat
from pathlib import Path

import pytest

from confide.client.labelling import import_labels, suggest
from confide.common.errors import ConfigError, DataError
from confide.simulations.run import simulate
from confide.tests.tiny import sentences, write_csv

TRUTH = dict(sentences(40, 21))


@pytest.fixture
def adapter(make_config) -> Path:
    return simulate(make_config(run={"rounds": 1})) / "adapter"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "pool.csv", [(text, str(i)) for i, text in enumerate(TRUTH)], ("text", "note"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def filled(path: Path, labels: dict[str, str]) -> Path:
    rows = table(path)
    return write_csv(
        path, [(row["row"], row["text"], labels.get(row["text"], "")) for row in rows], ("row", "text", "label")
    )


def test_labels_come_back_to_the_rows_they_were_asked_for(adapter: Path, pool: Path, tmp_path: Path) -> None:
    asked = tmp_path / "ask.csv"
    before = pool.read_bytes()
    assert suggest(str(pool), adapter, asked, strategy="margin", count=8) == 8
    assert stat.S_IMODE(asked.stat().st_mode) == 0o600
    texts = [row["text"] for row in table(asked)]
    assert len({*texts}) == 8
    left_out = texts[0]
    filled(asked, {text: TRUTH[text] for text in texts if text != left_out})
    train = write_csv(tmp_path / "old.csv", [("a good film", "positive")])
    found = import_labels(asked, str(pool), tmp_path / "next", train=str(train), adapter=adapter)
    assert (found.added, found.left) == (7, len(TRUTH) - 7)
    rows = table(tmp_path / "next" / "train.csv")
    assert rows[0] == {"text": "a good film", "label": "positive"}
    assert {row["text"]: row["label"] for row in rows[1:]} == {t: TRUTH[t] for t in texts if t != left_out}
    pooled = table(tmp_path / "next" / "pool.csv")
    assert left_out in {row["text"] for row in pooled}
    assert [*pooled[0]] == ["text", "note"]
    assert {row["text"] for row in pooled} | {row["text"] for row in rows[1:]} == {*TRUTH}
    assert pool.read_bytes() == before
    again = tmp_path / "again.csv"
    suggest(str(tmp_path / "next" / "pool.csv"), adapter, again, strategy="coreset", count=5, labelled=str(train))
    assert {row["text"] for row in table(again)} <= {row["text"] for row in pooled}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: [(rows[0][0], "another text", "positive")], "line 2: row and text are not those of the pool"),
        (lambda rows: [("999", rows[0][1], "positive")], "line 2: row and text are not those of the pool"),
        (
            lambda rows: [(*rows[0], "lukewarm")],
            "line 2: the label is none of the classes; allowed: negative, positive",
        ),
        (lambda rows: [(*rows[0], "positive")] * 2, "line 3: row"),
        (lambda rows: [(*rows[0], "")], "no row has a label"),
    ],
)
def test_answers_that_do_not_fit_are_refused(adapter: Path, pool: Path, tmp_path: Path, change, text: str) -> None:
    asked = tmp_path / "ask.csv"
    suggest(str(pool), adapter, asked, strategy="random", count=2)
    rows = [(row["row"], row["text"]) for row in table(asked)]
    write_csv(asked, change(rows), ("row", "text", "label"))
    with pytest.raises(DataError) as caught:
        import_labels(asked, str(pool), tmp_path / "next", adapter=adapter)
    assert text in str(caught.value)
    assert rows[0][1] not in str(caught.value)
    assert not (tmp_path / "next").exists()


def test_nothing_that_exists_is_overwritten(adapter: Path, pool: Path, tmp_path: Path) -> None:
    asked = tmp_path / "ask.csv"
    suggest(str(pool), adapter, asked, strategy="random", count=2)
    with pytest.raises(ConfigError, match="is there already"):
        suggest(str(pool), adapter, asked, strategy="random", count=2)
    with pytest.raises(ConfigError, match="is not empty"):
        import_labels(asked, str(pool), tmp_path)
    with pytest.raises(ConfigError, match="adapter folder of a finished run"):
        suggest(str(pool), tmp_path, tmp_path / "b.csv", strategy="random", count=2)
    with pytest.raises(DataError, match="column 'row' is missing"):
        import_labels(pool, str(pool), tmp_path / "next")
