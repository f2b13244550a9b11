"""A source and the same source without one row, whatever is wrong with it: no other row changes, and no error tells."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from confide.common.config.tables import DataSection, PartitionSection
from confide.common.data.columns import LONGEST
from confide.common.data.formats import Problem
from confide.common.data.sources import content_digest, read_checked, read_rows
from confide.common.errors import DataError
from confide.common.types import Reads, Rows
from confide.tests.row_files import CASES, DATA, KINDS, LABELS, SECRET, csv_file, database, jsonl_file, parquet_file


def same(first: Rows, second: Rows) -> bool:
    """Bit for bit."""
    arrays = [(first.labels, second.labels), (first.group, second.group), (first.images, second.images)]
    arrays += list(zip(first.tags or [], second.tags or [], strict=True))
    for one, other in arrays:
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None and (one.dtype != other.dtype or one.tolist() != other.tolist()):
            return False
    return (first.text, first.response, first.source) == (second.text, second.response, second.source)


def words(problems: list[Problem]) -> list[tuple[str | None, str]]:
    return [(one.column, one.what.split(": ")[-1]) for one in problems]


def test_text_of_any_arrow_type_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"good one", b"\xff" * 20, b"bad one"], pa.binary_view())
    texts = pa.Array.from_buffers(pa.string_view(), 3, raw.buffers())
    path = tmp_path / "r.parquet"
    pyarrow.parquet.write_table(pa.table({"text": texts, "label": ["yes", "no", "no"]}), path)
    checked = read_checked(str(path), DATA, ["no", "yes"])
    assert checked.rows.text == ["good one", "bad one"]
    assert [problem.row for problem in checked.problems] == [2]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_one_bad_row_changes_no_other(tmp_path: Path, kind: str, name: str) -> None:
    write, good, bad, labels, options = KINDS[kind]
    others = [*good, *good]
    source = write(tmp_path, others)
    without: list[Problem] = []
    expected = read_rows(source, DATA, labels, problems=without, **options)
    before = content_digest(source, DATA)
    assert (len(expected), without) == (len(others), [])
    assert same(read_rows(source, DATA, labels, **options), expected)
    digests = set()
    for place in (0, len(good), len(others)):
        source = write(tmp_path, [*others[:place], bad[name], *others[place:]])
        found = read_checked(source, DATA, labels, **options)
        problems: list[Problem] = []
        assert same(read_rows(source, DATA, labels, problems=problems, **options), expected)
        assert same(found.rows, expected)
        assert found.problems == problems
        assert len(problems) >= 1
        assert SECRET not in str(problems)
        assert problems[0].row == place + (2 if source.endswith(".csv") else 1)
        assert found.digest == content_digest(source, DATA) != before
        digests.add(found.digest)
        with pytest.raises(DataError, match=f"row {problems[0].row}") as refused:
            read_rows(source, DATA, labels, **options)
        assert SECRET not in str(refused.value)
    assert len(digests) == 1


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_bad_row_among_bad_rows_and_alone(tmp_path: Path, kind: str, name: str) -> None:
    """No row is left: no error either; and what is wrong with other rows stays what it was."""
    write, _, bad, labels, options = KINDS[kind]
    problems: list[Problem] = []
    rows = read_rows(write(tmp_path, [bad[name]]), DATA, labels, problems=problems, **options)
    assert len(rows) == 0
    nothing: list[Problem] = []
    empty = read_rows(write(tmp_path, []), DATA, labels, problems=nothing, **options)
    assert nothing == []
    assert same(rows, empty)
    others = [row for other, row in bad.items() if other != name]
    before: list[Problem] = []
    after: list[Problem] = []
    read_rows(write(tmp_path, others), DATA, labels, problems=before, **options)
    read_rows(write(tmp_path, [*others, bad[name]]), DATA, labels, problems=after, **options)
    assert words(after)[: len(before)] == words(before)
    assert len(after) == len(before) + len(problems)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_row_changes_no_other(tmp_path: Path, kind: str) -> None:
    write, good, bad, labels, options = KINDS[kind]
    rows = [*good, *bad.values()] if kind != "csv" else good
    for place in range(len(good)):
        expected = read_rows(write(tmp_path, rows), DATA, labels, problems=[], **options)
        others = [*rows[:place], *rows[place + 1 :]]
        found = read_rows(write(tmp_path, others), DATA, labels, problems=[], **options)
        assert same(found, expected.take(np.array([i for i in range(len(expected)) if i != place])))


def test_more_than_a_line_of_text_costs_nothing(tmp_path: Path) -> None:
    long = "word " * 400_000
    for source in (
        csv_file(tmp_path, [f"{long},yes\n".encode()]),
        jsonl_file(tmp_path, [json.dumps({"text": long, "label": "yes"}).encode()]),
        parquet_file(tmp_path, [(long, "yes")]),
    ):
        assert read_rows(source, DATA, LABELS).text == [long]


def test_values_are_read_one_by_one(tmp_path: Path) -> None:
    """What pyarrow and pandas make of a column is never seen: a whole number stays one beside a fraction or a gap."""
    rows = [b'{"text": "1", "label": 1}', b'{"text": "2020-01-31", "label": 1.5}', b'{"text": "x", "label": true}']
    labels = ["1", "1.5", "True"]
    found = read_rows(jsonl_file(tmp_path, rows), DATA, labels)
    assert (found.text, found.labels is not None and found.labels.tolist()) == (["1", "2020-01-31", "x"], [0, 1, 2])
    source = database(tmp_path, [("a", 1), ("b", None), ("c", 2)])
    found = read_rows(source, DATA, labels=["1", "2"], problems=[])
    assert (found.text, found.labels is not None and found.labels.tolist()) == (["a", "c"], [0, 1])


def test_an_open_quote_costs_its_line_and_where_that_ends(tmp_path: Path) -> None:
    rows = [b'"open,yes\n', b"a,yes\n", b'"b, c",no\n', b'd "e" f,yes\n', b"g,no\n"]
    problems: list[Problem] = []
    found = read_rows(csv_file(tmp_path, rows), DATA, LABELS, problems=problems)
    assert found.text == ["a", "b, c", 'd "e" f', "g"]
    assert [(one.row, one.what.partition(";")[0]) for one in problems] == [(2, "a quote is not closed")]
    rows[2] = b'b "c",no\n'  # a quote before a separator: no reader can tell that it does not close the field
    assert read_rows(csv_file(tmp_path, rows), DATA, LABELS, problems=[]).text == ["a", 'b "c"', 'd "e" f', "g"]
    rows[2] = b'5",no\n'
    found = read_rows(csv_file(tmp_path, rows), DATA, LABELS, problems=[])
    assert found.text == ["open,yes\na,yes\n5", 'd "e" f', "g"]
    many = [b'"open,yes\n'] * 20_000  # in linear time
    assert len(read_rows(csv_file(tmp_path, [*many, b"a,yes\n"]), DATA, LABELS, problems=[])) == 1


def test_groups_and_answers_are_checked_too(tmp_path: Path) -> None:
    header = b"q,a,ward\n"
    data = DataSection(test="x", prompt="q", response="a", partition=PartitionSection(kind="natural", column="ward"))
    good, bad = [b"q1,a1,north\n", b"q2,a2,south\n"], [b"q3,,north\n", b"q4,a4, \n", b"\xff,a5,north\n"]
    expected = read_rows(csv_file(tmp_path, good, header), data, None, whose=True)
    for row in bad:
        found = read_rows(csv_file(tmp_path, [row, *good], header), data, None, whose=True, problems=[])
        assert same(found, expected)
        assert found.group is not None
        assert found.group.tolist() == ["north", "south"]


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"x,y\na,b\n", "column 'label' is missing; none of the 2 fields of the first line is called so"),
        (b"text,text,label\na,b,c\n", "column 'text' is there twice"),
        (b"text,\xff\n", "row 1: bytes that are not UTF-8"),
        (b'"text,label\na,b\n', "row 1: a quote is not closed"),
    ],
)
def test_what_is_wrong_with_a_file_is_still_an_error(tmp_path: Path, header: bytes, part: str) -> None:
    source = csv_file(tmp_path, [], header)
    with pytest.raises(DataError, match=part):
        read_rows(source, DATA, LABELS, problems=[])
    if "missing" not in part:
        with pytest.raises(DataError, match=part):
            content_digest(source, DATA)


def test_what_is_wrong_with_a_source_is_still_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(b"PAR1 measles")
    for source, part in (
        ("gone.csv", "no such file"),
        ("r.parquet", "not a readable parquet file"),
        (f"sqlite:///{tmp_path}/r.db#m", "no such file"),
    ):
        with pytest.raises(DataError, match=part):
            read_rows(source if "#" in source else str(tmp_path / source), DATA, LABELS, problems=[])


def test_passwords_stay_out_of_messages_about_rows(tmp_path: Path) -> None:
    from confide.common.data.sql import shown

    assert shown("postgresql://user:s3@cr/et@host/x#m") == "postgresql://…@host/x#m"
    assert shown("a/b@c.csv") == "a/b@c.csv"
    source = database(tmp_path, [("a", None)])
    with pytest.raises(DataError, match="row 1, column 'label': the field is empty"):
        read_rows(source, DATA, LABELS)


@pytest.mark.parametrize("suffix", ["jsonl", "conll"])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_marks_of_joined_files_are_no_matter_of_the_row_before(tmp_path: Path, suffix: str, where: int) -> None:
    """`cat a.jsonl b.jsonl`, each with a byte-order mark: that of a row was taken off only in the first place."""
    lines = [json.dumps({"text": f"film {n}", "label": LABELS[0]}) + "\n" for n in range(3)]
    if suffix == "conll":
        lines = [f"film{n}\t{LABELS[0]}\n\n" for n in range(3)]
    lines[where] = "\ufeff" + lines[where]
    found = []
    for kept in (lines, lines[1:], lines[where:]):
        path = tmp_path / f"rows.{suffix}"
        path.write_text("".join(kept), encoding="utf-8")
        reads = Reads("tags") if suffix == "conll" else Reads()
        found.append(read_checked(str(path), DATA, LABELS, reads=reads).rows.text)
    assert [len(texts) for texts in found] == [3, 2, 3 - where]
    assert found[0][1:] == found[1]


def test_what_a_text_may_cost_is_bounded(tmp_path: Path) -> None:
    """A row of 70 MB ended the process that read it, which the server sees."""
    for length in (LONGEST, LONGEST + 1):
        rows = [{"text": "a" * length, "label": "yes"}, {"text": "b", "label": "yes"}]
        found = read_checked(jsonl_file(tmp_path, [json.dumps(row).encode() for row in rows]), DATA, LABELS)
        problems = [problem.what for problem in found.problems]
        if length == LONGEST:
            assert (len(found.rows), problems) == (2, [])
        else:
            assert (found.rows.text, problems) == (
                ["b"],
                [f"a text of {length:,} characters; at most {LONGEST:,}; shorten it"],
            )


@pytest.mark.parametrize("classes", [["0", "1"], ["0.0", "1.0"]])
def test_a_row_with_a_fraction_or_without_a_class_is_no_other_rows_matter(tmp_path: Path, classes: list[str]) -> None:
    """It makes a writer store a column of whole numbers as fractions: 1 as 1.0."""
    for extra in ([], [0.5], [None]):
        numbers = [0, 1, 1, *extra]
        kind = pa.float64() if extra else pa.int64()
        table = pa.table({"text": ["a", "b", "c", "d"][: len(numbers)], "label": pa.array(numbers, kind)})
        pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
        checked = read_checked(str(tmp_path / "r.parquet"), DATA, classes)
        assert checked.rows.labels is not None
        assert checked.rows.labels[:3].tolist() == [0, 1, 1]
        assert len(checked.problems) == len(extra)
