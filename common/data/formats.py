"""The raw columns of a source: csv, jsonl, parquet, conll, hub id, SQL url, or the data that confide generates.

Between a source and the same source without one row, nothing about any other row may change. So each value is read on
its own, no type is inferred over a column, and what cannot be read costs its row alone:

| source | a row | what costs a row |
|---|---|---|
| csv | a record of RFC 4180; every value is text | a wrong number of columns; a quote that is not closed |
| jsonl | a line that is not blank; values by `str` | no JSON object |
| parquet | a row; the file's own schema gives the types | a value that Python has no type for |
| conll | a sentence | a word without a tag |
| txt | a line that is not blank | nothing |
| SQL | a row of the answer, as the driver gives it; nothing is kept on disk | nothing here |

Values that are not UTF-8 stay in the table as lone surrogates; they cost their row where they are read: `as_text`.

Where a row still costs more than itself: quotes in a csv that no library wrote (csv_records.py); a SQL query that
computes (sql.py); a parquet column of Arrow's dictionary type that is not UTF-8, which pyarrow refuses whole.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from ..errors import DataError
from . import demo
from .conll import sentences
from .csv_records import records
from .demo_facts import facts
from .demo_images import digits
from .files import FILES, bytes_of, is_file, kind_of
from .hub import rows_of
from .json_rows import BOM, NO_OBJECT, objects, objects_a_line
from .sql import URL, query, shown
from .values import Unread, UnreadableError, as_text

DEMO = "demo:"
_SEPARATORS, _HEADER = ",;\t|", 2**16
_NO_ROWS = "the file is empty; expected a header and rows"
_UNCONVERTED = (pa.ArrowException, ValueError, OverflowError, LookupError)
"""the last: a time zone that this machine does not know"""


@dataclass(frozen=True)
class Problem:
    """A row that contributes nothing."""

    row: int
    """counted from 1; the header of a csv is row 1"""
    column: str | None
    """None: the row as a whole"""
    what: str
    """what is wrong and what to do, without anything that the row holds"""

    @property
    def brief(self) -> str:
        """What is wrong, without what to do."""
        what = self.what.partition(";")[0]
        return what if self.column is None else f"column '{self.column}': {what}"

    def __str__(self) -> str:
        column = "" if self.column is None else f", column '{self.column}'"
        return f"row {self.row}{column}: {self.what}"


@dataclass(frozen=True)
class Lost:
    """A row that has no values: it cannot be parsed."""

    problem: Problem
    raw: bytes


@dataclass(frozen=True)
class Table:
    """The rows of a source that could be parsed (N), and those that could not."""

    source: str
    """as messages show it: without a password"""
    names: Sequence[str]
    """all columns"""
    columns: dict[str, list[object]]
    """the columns that were asked for and are there, (N,) each: strings, bytes, numbers, None, …"""
    rows: Sequence[int]
    """(N,) the numbers of the rows, as messages count them"""
    lost: Sequence[Lost] = field(default_factory=list)
    declared: bool = True
    """whether the source names its columns apart from the rows; False: a column is there if a row has it"""

    @property
    def folder(self) -> Path:
        """What paths of images are relative to."""
        return Path(self.source).parent

    def column(self, name: str) -> list[object]:
        """(N,) values; None where the rows have no such column."""
        return self.columns.get(name) or [None] * len(self.rows)


def load(source: str, wanted: Collection[str] | None = None) -> Table:
    """Reads a source. wanted: the columns to keep; None: all.

    Raises DataError when there is no such source, it is unreadable as a whole, or has a wanted column twice; never for
    a row.
    """
    if source.startswith(DEMO):
        spec = source.removeprefix(DEMO)
        made = digits if "digits" in spec else facts if spec.startswith("facts") else demo.table
        return _from_arrow(source, made(spec), wanted)
    if URL.match(source):
        return _from_sql(source, wanted)
    path = Path(source)
    if not is_file(source):
        return _from_arrow(source, rows_of(source), wanted)
    kinds = ", ".join(suffix[1:] for suffix in FILES)
    if kind_of(path) not in FILES:
        raise DataError(f"{path}: no kind of file that is read; allowed: {kinds}; convert it")
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the path of a file ({kinds})")
    try:
        return _from_file(path, wanted)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); check its permissions") from None


def _from_file(path: Path, wanted: Collection[str] | None) -> Table:
    kind = kind_of(path)
    return _from_parquet(path, wanted) if kind == ".parquet" else parsed(path, kind, bytes_of(path), wanted)


def parsed(path: Path, kind: str, content: bytes, wanted: Collection[str] | None = None) -> Table:
    """A file of text. path: for messages, and what paths in it are relative to. kind: its suffix. Raises DataError as
    `load`."""
    text = content.decode("utf-8", "surrogateescape")
    if kind == ".jsonl":
        return _of_objects(path, objects_a_line(text), wanted)
    if kind == ".json":
        try:
            return _of_objects(path, objects(text), wanted)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
    if kind == ".conll":
        return _from_conll(path, text, wanted)
    if kind == ".txt":
        return _from_lines(path, text, wanted)
    # the mark stands before the header, which is no record
    return _from_csv(path, text.removeprefix(BOM), wanted, kind)


def is_name(text: str) -> bool:
    """Whether a field of a first line is rather a column's name than a record's text, which no message may show."""
    return len(text) <= 40 and len(text.split()) <= 3


def twice(name: str) -> str:
    """What a message says of a column that is there twice."""
    return f"column '{name}' is there twice; rename one" if is_name(name) else "two fields of the first line are alike"


def _kept(source: str, names: Sequence[str], wanted: Collection[str] | None) -> dict[str, int]:
    """The places of the columns to keep. Raises DataError for one that is there twice."""
    kept: dict[str, int] = {}
    for place, name in enumerate(names):
        if wanted is not None and name not in wanted:
            continue
        if name in kept:
            raise DataError(f"{source}: {twice(name)}")
        kept[name] = place
    return kept


def _raw(text: str) -> bytes:
    """The bytes that a text was decoded from."""
    return text.encode("utf-8", "surrogateescape")


def _separator(text: str, kind: str) -> str:
    """What stands between the fields: of a tsv a tab, otherwise the first of `_SEPARATORS` by which the header, which
    is no record, has more than one."""
    if kind == ".tsv":
        return "\t"
    beginning = text[:_HEADER]
    return next((mark for mark in _SEPARATORS if len(next(records(beginning, mark), ([], ""))[0] or []) > 1), ",")


def _from_csv(path: Path, text: str, wanted: Collection[str] | None, kind: str) -> Table:
    found = records(text, _separator(text, kind))
    names, _ = next(found, ([], ""))
    if not names:
        raise DataError(f"{path}: {_NO_ROWS if names == [] else 'row 1: a quote is not closed; correct the header'}")
    try:
        kept = _kept(str(path), [as_text(name) or "" for name in names], wanted)
    except UnreadableError as error:
        raise DataError(f"{path}: row 1: {error}") from None
    rows: list[int] = []
    values: list[list[str]] = []
    lost: list[Lost] = []
    for row, (fields, raw) in enumerate(found, start=2):
        if fields is not None and len(fields) == len(names):
            rows.append(row)
            values.append(fields)
        else:
            wrong = "a quote is not closed" if fields is None else f"{len(fields)} columns instead of {len(names)}"
            lost.append(Lost(Problem(row, None, f"{wrong}; check quotes and separators"), _raw(raw)))
    columns: dict[str, list[object]] = {name: [fields[place] for fields in values] for name, place in kept.items()}
    return Table(str(path), names, columns, rows, lost)


def _of_objects(
    path: Path, found: Iterable[tuple[dict[str, object] | None, str]], wanted: Collection[str] | None
) -> Table:
    """Of each row its object, or None, and how it is written."""
    rows: list[int] = []
    values: list[dict[str, object]] = []
    lost: list[Lost] = []
    for row, (value, written) in enumerate(found, start=1):
        if value is not None:
            rows.append(row)
            values.append(value)
        else:
            lost.append(Lost(Problem(row, None, NO_OBJECT), _raw(written)))
    names = list(dict.fromkeys(name for value in values for name in value))
    columns = {name: [value.get(name) for value in values] for name in names if wanted is None or name in wanted}
    return Table(str(path), names, columns, rows, lost, declared=False)


def _from_conll(path: Path, text: str, wanted: Collection[str] | None) -> Table:
    """Columns text and label: the words of a sentence and their tags, joined by spaces.

    Each line holds a word and, last, its tag, separated by tabs or spaces; an empty line ends a sentence.
    """
    rows: list[int] = []
    texts: list[object] = []
    labels: list[object] = []
    lost: list[Lost] = []
    for row, sentence in enumerate(sentences(text), start=1):
        bare = next((number for number, parts in sentence if len(parts) == 1), None)
        if bare is None:
            rows.append(row)
            texts.append(" ".join(parts[0] for _, parts in sentence))
            labels.append(" ".join(parts[-1] for _, parts in sentence))
        else:
            what = f"line {bare}: a word without a tag; expected WORD TAB TAG"
            lost.append(Lost(Problem(row, None, what), _raw("\n".join("\t".join(parts) for _, parts in sentence))))
    columns = {"text": texts, "label": labels}
    kept = {name: values for name, values in columns.items() if wanted is None or name in wanted}
    return Table(str(path), list(columns) if text else [], kept, rows, lost, declared=False)


def _from_lines(path: Path, text: str, wanted: Collection[str] | None) -> Table:
    """Column text: the lines that are not blank. A byte-order mark may stand before any: files are joined, and lose
    their first rows."""
    found = (line.rstrip("\r").removeprefix(BOM) for line in text.split("\n"))
    lines: list[object] = [line for line in found if line.strip()]
    columns = {"text": lines} if wanted is None or "text" in wanted else {}
    return Table(str(path), ["text"] if lines else [], columns, range(1, len(lines) + 1), declared=False)


def _from_parquet(path: Path, wanted: Collection[str] | None) -> Table:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: {_NO_ROWS}")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            kept = _kept(str(path), names, wanted)
            return _from_arrow(str(path), file.read(columns=list(kept)), wanted, names)
    except (
        pa.ArrowException,
        UnicodeDecodeError,
        OSError,
    ) as error:  # a message may quote bytes, so none of it is passed on
        raise DataError(f"{path}: not a readable parquet file ({type(error).__name__})") from None


def _from_arrow(
    source: str, table: pa.Table, wanted: Collection[str] | None, names: Sequence[str] | None = None
) -> Table:
    """names: all columns, where `table` holds some of them."""
    kept = _kept(source, table.column_names, wanted)
    columns = {name: _values(table.column(place)) for name, place in kept.items()}
    return Table(source, names or table.column_names, columns, range(1, table.num_rows + 1))


def _values(column: pa.ChunkedArray) -> list[object]:
    """What a column holds. A string that is not UTF-8 has lone surrogates."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = (
            pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind.value_type),
            kind.value_type,
        )
    if pa.types.is_string_view(kind):
        column, kind = column.cast(pa.binary_view()).cast(pa.large_binary()), pa.large_string()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raw = column.cast(pa.binary() if pa.types.is_string(kind) else pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    try:
        return column.to_pylist()
    except _UNCONVERTED:
        return [_value(column, place) for place in range(len(column))]


def _value(column: pa.ChunkedArray, place: int) -> object:
    try:
        return column[place].as_py()
    except _UNCONVERTED:
        try:
            alone = pa.table({"": column.take(pa.array([place]))}).combine_chunks()
        except _UNCONVERTED:  # a type that pyarrow cannot take apart either: its row alone is lost
            return Unread(b"")
        return Unread(b"".join(batch.serialize().to_pybytes() for batch in alone.to_batches()))


def _from_sql(source: str, wanted: Collection[str] | None) -> Table:
    names, answer = query(source)
    kept = _kept(shown(source), names, wanted)
    columns = {name: [row[place] for row in answer] for name, place in kept.items()}
    return Table(shown(source), names, columns, range(1, len(answer) + 1))
