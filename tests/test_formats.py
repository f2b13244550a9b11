"""Formats × what people's files have in them: training, a site, predict, data check and label import, one answer each.

A value is read as it is, or its row is refused by number, column and reason; never changed, never half read. The same
file gives the same answer to a run and to `predict`.
"""

import csv
import datetime
import gzip
import io
import json
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from confide.client.check.run import check_source
from confide.client.labelling import import_labels
from confide.common.config.tables import DataSection
from confide.common.data import files
from confide.common.data.classes import label_names
from confide.common.data.formats import Problem
from confide.common.data.sources import examine, read_rows, read_table
from confide.common.errors import ConfideError, DataError
from confide.common.types import Reads
from confide.server.ship.predict import format_of, predict, read
from confide.server.ship.runtime import Answering

SECRET = "measles"
LONG = "word " * 200_000
ROW = 2
"""the place of the odd value among the rows"""
TEXTS = ["a good film", "a bad film", "ODD", "the last one"]
LABELS = ["yes", "no", "yes", "no"]
TIME = datetime.datetime(2020, 1, 31, 12, tzinfo=datetime.UTC)
EMPTY, LISTED, OBJECT = "the field is empty", "a list where a text", "an object where a text"

VALUES: dict[str, tuple[Any, str | None, str | None]] = {
    # the value, what is read of it as a text, and why it is refused otherwise
    "tab": ("a\tb", "a\tb", None),
    "quotes": (f'"{SECRET}" said', f'"{SECRET}" said', None),
    "a quote alone": ('5" long', '5" long', None),
    "line end": ("a\nb", "a\nb", None),
    "carriage return": ("a\rb", "a\rb", None),
    "separators": ("a, b; c | d", "a, b; c | d", None),
    "letters of everywhere": ("é😀 中 e\u0301", "é😀 中 e\u0301", None),
    "byte-order mark": ("\ufeffa", "\ufeffa", None),
    "zero byte": ("a\0b", "a\0b", None),
    "blanks around": ("  a ", "  a ", None),
    "a million letters": (LONG, LONG, None),
    "looks like a number": ("007", "007", None),
    "looks like nothing": ("None", "None", None),
    "formula": ("=1+2", "=1+2", None),
    "blank": (" \t ", None, EMPTY),
    "empty": ("", None, EMPTY),
    "null": (None, None, EMPTY),
    "half a pair": ("\ud800" + SECRET, None, "half a surrogate pair"),
    "not UTF-8": (b"\xff" + SECRET.encode(), None, "bytes that are not UTF-8"),
    "list": ([SECRET], None, LISTED),
    "object": ({SECRET: 1}, None, OBJECT),
    "whole number": (3, "3", None),
    "broken number": (2.5, "2.5", None),
    "nan": (float("nan"), None, EMPTY),
    "truth value": (True, "True", None),
    "time": (TIME, str(TIME), None),
    "too long": (SECRET * 700_000, None, "characters; at most"),
}
"""odd texts by what they are"""


def _lines(values: list[Any], separator: str) -> bytes:
    """As csv writers of libraries write it."""
    out = io.StringIO(newline="")
    texts = [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]
    rows = [["text", "label"], *([value, label] for value, label in zip(texts, LABELS, strict=True))]
    csv.writer(out, delimiter=separator).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogateescape")


def _json(values: list[Any], listed: bool) -> bytes:
    found = []
    for value, label in zip(values, LABELS, strict=True):
        text = b'"' + value + b'"' if isinstance(value, bytes) else json.dumps(value).encode()
        found.append(b'{"text": ' + text + b', "label": "' + label.encode() + b'"}')
    return b"[" + b",\n".join(found) + b"]" if listed else b"\n".join(found) + b"\n"


def _parquet(path: Path, values: list[Any]) -> None:
    """Of one type a column; other types than texts: tests/common/test_data.py."""
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    pq.write_table(pa.table({"text": pa.array(raw, pa.binary()).view(pa.string()), "label": LABELS}), path)


def _database(path: Path, values: list[Any]) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE m (text, label)")
        connection.executemany("INSERT INTO m VALUES (?, ?)", zip(values, LABELS, strict=True))
        connection.execute("UPDATE m SET text = CAST(text AS TEXT) WHERE typeof(text) = 'blob'")
    connection.close()


def _txt(values: list[Any]) -> bytes:
    return b"\n".join(value if isinstance(value, bytes) else value.encode() for value in values) + b"\n"


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


_PACKED = {".gz": gzip.compress, ".zst": _zstd}


def source_of(kind: str, folder: Path, values: list[Any]) -> str:
    """A file (or database) of this kind with these texts."""
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        _parquet(path, values)
    elif kind == "db":
        _database(path, values)
        return f"sqlite:///{path}#m"
    elif kind == "txt":
        path.write_bytes(_txt(values))
    else:
        separator = {"semicolon.csv": ";", "tsv": "\t"}.get(kind, ",")
        content = _json(values, kind == "json") if kind.startswith("json") else _lines(values, separator)
        path.write_bytes(_PACKED.get(path.suffix, bytes)(content))
    return str(path)


KINDS = ("csv", "semicolon.csv", "csv.gz", "tsv", "json", "jsonl", "jsonl.zst", "parquet", "db", "txt")


def holds(kind: str, value: Any) -> bool:
    """Whether such a file can have it."""
    if isinstance(value, str) and "\ud800" in value:
        return kind.startswith("json")  # as an escape
    if kind.startswith("json"):
        return not isinstance(value, datetime.datetime)
    if kind == "parquet":
        return isinstance(value, str | bytes | None)
    if kind == "txt":
        return isinstance(value, str | bytes) and not (isinstance(value, str) and set("\n\r") & set(value))
    if kind == "db":
        return not isinstance(value, list | dict | bool | datetime.datetime)
    return not isinstance(value, list | dict)


DERIVED = ("semicolon.csv", "csv.gz", "tsv", "jsonl.zst")
CASES = [
    pytest.param(kind, what, marks=pytest.mark.slow if kind in DERIVED else ())
    for what, (value, *_) in VALUES.items()
    for kind in KINDS
    if holds(kind, value)
]


class Length(Answering):
    """Class 1 of two for a text of more than nine letters; it sees what was read."""

    task, labels, pad, size, scale, spelling = "sequence-classification", ["no", "yes"], 0, None, None, None
    reads = Reads()

    def __init__(self) -> None:
        self.seen: list[str] = []

    def pieces(self, texts):
        self.seen += texts
        return [[1] for _ in texts], []

    def run(self, inputs):
        return np.zeros((len(inputs[0]), 2), dtype=np.float32)


def asked(source: str) -> tuple[list[str] | None, str | None]:
    """What `predict` reads, or why it refuses."""
    model = Length()
    try:
        predict(model, read(source, format_of(source, None)), io.StringIO(), "csv")
    except DataError as error:
        return None, str(error)
    return model.seen, None


def learned(source: str, problems: list[Problem] | None = None) -> tuple[list[str] | None, str | None]:
    """What a run reads, or why it refuses; with problems: as a site does."""
    data = DataSection(test=source)
    try:
        return read_rows(source, data, None, reads=Reads(label=None), problems=problems).text, None
    except DataError as error:
        return None, str(error)


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_a_value_is_read_as_it_is_or_its_row_is_refused(tmp_path: Path, kind: str, what: str) -> None:
    value, wanted, reason = VALUES[what]
    values = [*TEXTS]
    values[ROW] = value
    if kind in ("csv", "semicolon.csv", "csv.gz", "tsv") and value is not None and not isinstance(value, str | bytes):
        value, wanted, reason = str(value), wanted or str(value), None  # a csv has nothing but texts
        values[ROW] = VALUES[what][0]
    source = source_of(kind, tmp_path, values)
    if kind == "txt" and what == "byte-order mark":
        wanted = "a"  # it stands before a line where files were joined
    if kind == "txt" and what in ("blank", "empty"):
        wanted, reason, values = None, None, [v for v in values if v.strip()]
    elif wanted is not None:
        values[ROW] = wanted
    first = ROW + (2 if kind in ("csv", "semicolon.csv", "csv.gz", "tsv") else 1)
    found, refused = learned(source)
    predicted, unanswered = asked(source)
    problems: list[Problem] = []
    at_a_site, _ = learned(source, problems)
    if reason is None:
        assert (found, refused) == (values, None)
        assert (predicted, unanswered) == (values, None)
        assert (at_a_site, problems) == (values, [])
    else:
        assert found is None is predicted
        assert refused == unanswered
        assert refused is not None
        assert f"row {first}, column 'text': " in refused
        assert reason in refused
        assert at_a_site == [text for place, text in enumerate(TEXTS) if place != ROW]
        assert [one.row for one in problems] == [first]
        assert SECRET not in refused + str(problems[0])
    examine(source, DataSection(test=source))  # the operator's look raises nothing
    _looked_at(source, tmp_path)


def check_line(error: ConfideError) -> None:
    """One line, without anything of a row."""
    assert "\n" not in str(error)
    assert SECRET not in str(error)


def _looked_at(source: str, folder: Path) -> None:
    """What `data check` and `label import` read: all of it, or one line."""
    try:
        rows = read_table(source, DataSection(test=source))
        assert rows.num_rows >= len(TEXTS) - 1
    except DataError as error:
        check_line(error)
    answers = folder / "answers.csv"
    with answers.open("w", newline="") as file:
        csv.writer(file).writerows([["row", "text", "label"], ["1", TEXTS[0], "yes"]])
    try:
        import_labels(answers, source, folder / "out")
    except ConfideError as error:
        check_line(error)
    assert len([*(folder / "out").glob("*")]) in (0, 2)


FILES: dict[str, tuple[str, bytes, str | list[str]]] = {
    # kind, content, and the texts or what the refusal says
    "mark before the header": ("csv", b"\xef\xbb\xbftext,label\na,yes\n", ["a"]),
    "mark and lines": ("jsonl", b'\xef\xbb\xbf{"text": "a", "label": "yes"}\n', ["a"]),
    "mark and a list": ("json", b'\xef\xbb\xbf[{"text": "a", "label": "yes"}]', ["a"]),
    "ends of Windows": ("csv", b"text,label\r\na,yes\r\nb,no\r\n", ["a", "b"]),
    "ends of old machines": ("csv", b"text,label\ra,yes\rb,no\r", ["a", "b"]),
    "no end": ("tsv", b"text\tlabel\na\tyes", ["a"]),
    "blank lines": ("csv", b"\n\ntext,label\n\na,yes\n\n\n", ["a"]),
    "blank lines between objects": ("jsonl", b'\n{"text": "a", "label": "yes"}\n\n', ["a"]),
    "other keys": ("jsonl", b'{"text": "a", "label": "yes"}\n{"x": [1], "text": "b", "label": "no"}\n', ["a", "b"]),
    "nothing": ("csv", b"", "the file is empty"),
    "nothing, packed": ("csv.gz", gzip.compress(b""), "the file is empty"),
    "nothing at all in a parquet": ("parquet", b"", "the file is empty"),
    "an empty list": ("json", b"[]", "the file is empty"),
    "header alone": ("csv", b"text,label\n", "there are no rows"),
    "column twice": ("csv", b"text,text,label\na,b,yes\n", "column 'text' is there twice"),
    "no such column": ("csv", b"body,label\na,yes\n", "column 'text' is missing; the columns are: body, label"),
    "no header": ("csv", b"a good film,yes\nbad,no\n", "column 'text' is missing"),
    "a field too many": ("csv", b"text,label\na,yes\nmeasles,b,no\n", "row 3: 3 columns instead of 2"),
    "a field too few": ("tsv", b"text\tlabel\nmeasles\n", "row 2: 1 columns instead of 2"),
    "an open quote": ("csv", b'text,label\n"measles,yes\n', "row 2: a quote is not closed"),
    "no object": ("jsonl", b'{"text": "a", "label": "yes"}\n["measles"]\n', "row 2: it cannot be parsed"),
    "cut object": ("jsonl", b'{"text": "measles', "row 1: it cannot be parsed"),
    "cut list": ("json", b'[{"text": "measles"},', "a list that cannot be parsed as JSON"),
    "wrapped list": ("json", b'{"data":\n [{"text": "measles"}]}', "one object; expected a list of objects"),
    "no parquet": ("parquet", b"measles", "not a readable parquet file"),
    "cut gzip": ("csv.gz", gzip.compress(b"text,label\na,yes\n" * 99)[:20], "not a readable gzip file, or cut"),
    "no gzip": ("jsonl.gz", b"measles", "not a readable gzip file"),
    "no zstd": ("jsonl.zst", b"measles", "not a readable zstd file"),
    "unknown": ("xlsx", b"measles", "no kind of file that is read"),
}
"""files that are odd as a whole"""


@pytest.mark.parametrize("what", FILES)
def test_a_file_is_read_or_refused_alike(tmp_path: Path, what: str) -> None:
    kind, content, expected = FILES[what]
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content)
    for found, refused in (learned(str(path)), asked_or_refused(path)):
        if isinstance(expected, list):
            assert (found, refused) == (expected, None)
        else:
            assert refused is not None
            assert expected in refused
            assert SECRET not in refused
            assert "\n" not in refused
    _looked_at_if_there(path, tmp_path)


def asked_or_refused(path: Path) -> tuple[list[str] | None, str | None]:
    try:
        return asked(str(path))
    except ConfideError as error:  # of its kind
        return None, f"no kind of file that is read: {error}"


def _looked_at_if_there(path: Path, folder: Path) -> None:
    for look in (
        lambda: read_table(str(path), DataSection(test=str(path))),
        lambda: examine(str(path), DataSection(test=str(path))),
        lambda: import_labels(path, str(path), folder / "out"),
    ):
        try:
            look()
        except ConfideError as error:
            check_line(error)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "what"), CASES)
def test_the_whole_check_takes_what_is_read(tmp_path: Path, kind: str, what: str) -> None:
    """`confide data check`, with its page, on the rows around the odd one."""
    values = [*TEXTS]
    values[ROW] = VALUES[what][0]
    source = source_of(kind, tmp_path, values)
    label, outcome = None if kind == "txt" else "label", None
    try:
        outcome = check_source(source, tmp_path / "out", text="text", label=label, backbone=None)
    except ConfideError as error:
        check_line(error)
    assert (tmp_path / "out" / "check.html").is_file() == (outcome is not None)


def test_a_column_whose_name_cannot_be_written_again_costs_its_row(tmp_path: Path) -> None:
    for name, extra in (("escaped", b'{"\\ud800": 1, "text": "b"}'), ("raw", b'{"\xff": 1, "text": "b"}')):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b'{"text": "a"}\n' + extra + b'\n{"text": "c"}\n')
        for refused in (learned(str(path))[1], asked(str(path))[1]):
            assert refused is not None
            assert "row 2: it cannot be parsed" in refused
        problems: list[Problem] = []
        assert learned(str(path), problems)[0] == ["a", "c"]
        assert [one.row for one in problems] == [2]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_unpacks_to_more_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"rows.csv{suffix}"
    path.write_bytes(_PACKED[suffix](b"text,label\n" + b"a,yes\n" * 2**23))  # 48 MiB
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(files, "total_ram", lambda: 8 * 2**20)
    for found in (learned(str(path))[1], asked(str(path))[1], learned(str(path), [])[1]):
        assert found == (
            f"{path}: unpacks to more than 1 MiB, an eighth of this machine's memory; give fewer rows, or a parquet "
            "file, whose columns are read one by one"
        )


DAY = datetime.date(2020, 1, 31)
NO_LABELS: dict[str, tuple[pa.Array | list[Any], str]] = {
    "date": (pa.array([DAY, DAY]), "a date"),
    "date and time": (pa.array([TIME, TIME]), "a date"),
    "category of dates": (pa.array([DAY, DAY]).dictionary_encode(), "a date"),
    "time of day": (pa.array([TIME.time(), TIME.time()]), "a time of day"),
    "duration": (pa.array([datetime.timedelta(1)] * 2), "a duration"),
    "list of dates": (pa.array([[DAY], [DAY]]), "a date"),
    "infinity": (pa.array([float("inf"), -float("inf")]), "an infinite number"),
    "infinity in JSON": ([1e999, 1e999], "an infinite number"),  # as JSON
}
"""labels that `str` would make a class of"""


@pytest.mark.parametrize("what", NO_LABELS)
def test_what_is_no_class_is_refused_wherever_labels_are_read(tmp_path: Path, what: str) -> None:
    labels, kind = NO_LABELS[what]
    texts, source = ["a", "b"], tmp_path / "rows.parquet"
    if isinstance(labels, list):
        source = tmp_path / "rows.jsonl"
        rows = zip(texts, labels, strict=True)
        source.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    else:
        pq.write_table(pa.table({"text": texts, "label": labels}), source)
    config = DataSection(test=str(source))
    reads = Reads("classes" if isinstance(labels, pa.ListArray) else "class")
    (tmp_path / "pool.txt").write_text("a\nb\n")
    answers = tmp_path / "answers.csv"
    answers.write_text("row,text,label\n1,a,yes\n")
    for look in (
        lambda: label_names([str(source)], config, reads.label),
        lambda: read_rows(str(source), config, ["yes", "no"], reads=reads),
        lambda: check_source(str(source), tmp_path / "check", backbone=None),
        lambda: import_labels(answers, str(tmp_path / "pool.txt"), tmp_path / "out", train=str(source)),
    ):
        with pytest.raises(DataError, match=f"row 1, column 'label': {kind} where a class is expected; allowed: text"):
            look()
    problems: list[Problem] = []
    assert len(read_rows(str(source), config, ["yes", "no"], reads=reads, problems=problems)) == 0
    assert [one.row for one in problems] == [1, 2]
    found = examine(str(source), config)
    assert [str(one) for one in found.problems] == [str(one) for one in problems]


def test_numbers_truth_values_and_categories_are_classes(tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    for labels, names in (
        (pa.array([1, 2]), ["1", "2"]),
        (pa.array([1.0, 2.5]), ["1", "2.5"]),
        (pa.array([True, False]), ["False", "True"]),
        (pa.array(["b", "a"]).dictionary_encode(), ["a", "b"]),
        (pa.array([Decimal("1.5"), Decimal("2.5")]), ["1.5", "2.5"]),
    ):
        pq.write_table(pa.table({"text": ["a", "b"], "label": labels}), source)
        assert label_names([str(source)], DataSection(test=str(source))) == names
        assert sorted(examine(str(source), DataSection(test=str(source))).classes) == names


def test_times_of_a_zone_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "times.parquet"
    times = pa.array([1, 2], pa.timestamp("ns", tz="Mars/Phobos"))
    pq.write_table(pa.table({"text": times}), path)
    for refused in (learned(str(path))[1], asked(str(path))[1]):
        assert refused is not None
        assert "row 1, column 'text': a value that cannot be read" in refused
