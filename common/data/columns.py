"""A table's columns → what is read of the rows, and what is wrong with each row."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config.tables import DataSection
from ..errors import DataError
from ..types import Conversation, Reads
from .content import joined, mark
from .conversations import conversation
from .files import kind_of
from .formats import Problem, Table, is_name
from .images import ImageForm, decoded, image_file
from .values import EMPTY, EXACT, UnreadableError, as_class, as_text

LONGEST = 2**22
"""characters of a text or label: what one row may cost in memory is bounded, whatever is in it"""
_LONGEST_NAME = 1000
"""characters of whose a row is: to write accents in one form takes the square of their number"""
_WHERE = "image"
_WHOLE = re.compile(r"-?\d{1,15}\.0+")
_ROUNDED = re.compile(r"[-+]?(\d+\.\d+[eE][-+]?\d+|\d+[eE][-+]\d+|\d{16,}\.\d*)")
_SCHEMES = {"S": "B", "U": "B", "E": "I", "L": "I", "M": "I"}
"""how words of an entity are marked elsewhere: a single one, the last one, one in the middle"""
_UNSEEN = "\u00ad\u200b\u200c\u200d\u2060\ufeff\0"
_NOBODY = {
    "",
    "nan",
    "none",
    "null",
    "nil",
    "na",
    "n/a",
    "n.a.",
    "#n/a",
    "<na>",
    "nat",
    "-",
    "--",
    "?",
    "unknown",
    "missing",
    "undefined",
    "anonymous",
    "#value!",
    "#ref!",
}
"""what files hold where a value is missing"""


@dataclass(frozen=True)
class Notes:
    """The problems of a table, by the place of the row."""

    table: Table
    strict: bool
    found: dict[int, Problem] = field(default_factory=dict)

    def add(self, place: int, column: str, what: str) -> None:
        """Raises DataError where it is strict. Keeps the first problem of a row."""
        problem = Problem(self.table.rows[place], column, what)
        if self.strict:
            raise DataError(f"{self.table.source}: {problem}")
        self.found.setdefault(place, problem)

    def all(self) -> list[Problem]:
        """In the order of the rows."""
        return sorted([*(lost.problem for lost in self.table.lost), *self.found.values()], key=lambda one: one.row)


def refuse(notes: Notes) -> None:
    """Raises DataError for rows that cannot be parsed, or an empty file, where it is strict."""
    table = notes.table
    if notes.strict and table.lost:
        raise DataError(f"{table.source}: {table.lost[0].problem}")
    if notes.strict and not table.names:
        raise DataError(f"{table.source}: the file is empty; expected a header and rows")


def require(notes: Notes, columns: Iterable[str]) -> None:
    """Raises DataError for a missing column. Where a row alone says which columns there are, that is its problem."""
    table = notes.table
    refuse(notes)
    for column in columns:
        if column not in table.names and (notes.strict or table.declared):
            # at a site the message is logged, and the first line of a csv without a header is a record
            if not notes.strict and kind_of(Path(table.source)) in (".csv", ".tsv"):
                raise DataError(
                    f"{table.source}: column '{column}' is missing; none of the {len(table.names)} fields of the first "
                    "line is called so; set the name in [datasets], or give the file a header line"
                )
            raise DataError(
                f"{table.source}: column '{column}' is missing; {columns_told(table.names)}; set the name in [data]"
            )
    if notes.strict and not table.rows:
        raise DataError(f"{table.source}: there are no rows; expected at least one")


def columns_told(names: Sequence[str]) -> str:
    """Which columns there are; of a first line that is rather a record than a header, how many fields."""
    if not all(map(is_name, names)):
        return f"none of the {len(names)} fields of the first line is called so; is it a header?"
    shown = ", ".join(names[:20]) or "none"
    return f"the columns are: {shown}{f' … ({len(names)} in all)' if len(names) > 20 else ''}"


_Reader = Callable[[object], str | None]
"""`as_text`, or `as_class` of labels"""


def read_text(notes: Notes, column: str, place: int, value: object, reader: _Reader = as_text) -> str | None:
    try:
        text = reader(value)
    except UnreadableError as error:
        notes.add(place, column, str(error))
        return None
    if text is not None and len(text) > LONGEST:
        notes.add(place, column, f"a text of {len(text):,} characters; at most {LONGEST:,}; shorten it")
        return None
    return text


def read_strings(notes: Notes, column: str, *, words: bool = False, reader: _Reader = as_text) -> list[str]:
    """(N,) texts; "" where a row has a problem. words: also lists of words, or of their tags."""
    result = []
    for place, value in enumerate(notes.table.column(column)):
        text = read_text(notes, column, place, joined(value) if words else value, reader) or ""
        if not text.strip():
            notes.add(place, column, EMPTY)
        result.append(text)
    return result


def as_bio(tag: str, numbered: list[str] | None) -> str:
    """A tag in the names that are learned: those of other schemes (BIOES, BILOU, BMES) say where an entity ends, too.
    numbered: what numbers mean."""
    if numbered is not None and tag.isdecimal() and len(tag) < 9 and int(tag) < len(numbered):
        tag = numbered[int(tag)]
    mark, dash, kind = tag.partition("-")
    return f"{_SCHEMES[mark]}-{kind}" if dash and mark in _SCHEMES else tag


def read_turns(notes: Notes, column: str) -> list[Conversation]:
    """(N,) conversations; without a message where a row has a problem."""
    result: list[Conversation] = []
    for place, value in enumerate(notes.table.column(column)):
        try:
            turns = conversation(value)
            if (size := sum(len(content) for _, content in turns)) > LONGEST:
                raise UnreadableError(f"a conversation of {size:,} characters; at most {LONGEST:,}; shorten it")
        except UnreadableError as error:
            notes.add(place, column, str(error))
            turns = ()
        result.append(turns)
    return result


def read_labels(notes: Notes, data: DataSection, labels: list[str] | None, reads: Reads) -> np.ndarray | None:
    """(N,) class indices, numbers measured by `data.scale`, or, of several classes a row, (N, K) uint8."""
    if reads.label == "number":
        return read_numbers(notes, data.label, data.scale)
    if labels is None or reads.label == "tags":
        return None
    index = {name: i for i, name in enumerate(labels)}
    if reads.label == "classes":
        return _read_several(notes, data.label, index)
    classes = np.zeros(len(notes.table.rows), dtype=np.int64)
    values = notes.table.column(data.label)
    for place, name in enumerate(read_strings(notes, data.label, reader=as_class)):
        found = index.get(name)
        if found is None:
            found = index.get(_otherwise(values[place]))
        if found is not None:
            classes[place] = found
        else:
            notes.add(place, data.label, f"a label that is not one of {_allowed(labels)}")
    return classes


def _read_several(notes: Notes, column: str, index: dict[str, int]) -> np.ndarray:
    """(N, K) uint8: 1 for the classes of a row, of which there may be none."""
    classes = np.zeros((len(notes.table.rows), len(index)), dtype=np.uint8)
    for place, value in enumerate(notes.table.column(column)):
        for one in several(value):
            name = read_text(notes, column, place, one, as_class)
            found = index.get(name or "", index.get(_otherwise(one)))
            if found is not None:
                classes[place, found] = 1
                continue
            what = f"a label that is not one of {_allowed([*index])}" if (name or "").strip() else EMPTY
            notes.add(place, column, what)
            break  # the first decides; there may be millions
    return classes


def read_classes(notes: Notes, column: str) -> None:
    """Notes each value that is neither a class nor a list of some; what a run makes of it, it does not say."""
    for place, value in enumerate(notes.table.column(column)):
        for one in value if isinstance(value, list | tuple) else [value]:
            read_text(notes, column, place, one, as_class)


def several(value: object) -> list[object]:
    """The classes of a row: of a list, or of one as JSON text, as a csv has it; anything else is one class."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def read_label_names(notes: Notes, column: str) -> list[str]:
    """All classes of all rows that have several."""
    found = []
    for place, value in enumerate(notes.table.column(column)):
        for one in several(value):
            name = read_text(notes, column, place, one, as_class) or ""
            if not name.strip():
                notes.add(place, column, EMPTY)
            found.append(name)
    return found


def _otherwise(value: object) -> str:
    """A whole number as another column has it: one row with 0.5, or with nothing, makes some writers store 1 as 1.0 in
    every row."""
    if isinstance(value, str):
        return value.partition(".")[0] if _WHOLE.fullmatch(value) else ""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= EXACT:
        return ""
    return str(float(value))


def read_persons(notes: Notes, column: str) -> np.ndarray:
    """(N,) strings: whose each row is. A row of nobody has a problem: no ε would speak of it.

    One person is one unit however a file writes them: 7 and 7.0 (a column with a gap), and the two forms that Unicode
    has of one name. What may be two persons stays two (case, leading zeros); `confide site check` counts such.
    """
    result = []
    for place, value in enumerate(notes.table.column(column)):
        text = read_text(notes, column, place, value) or ""
        person = _canonical(text) if len(text) <= _LONGEST_NAME else ""
        if len(text) > _LONGEST_NAME:
            notes.add(place, column, f"a person's name of more than {_LONGEST_NAME:,} characters; shorten it")
        elif (isinstance(value, float) and abs(value) >= EXACT) or _ROUNDED.fullmatch(person):
            what = "a rounded number, which may stand for several persons; write such numbers as text"
            notes.add(place, column, what)
        elif not person.strip(_UNSEEN) or person.casefold() in _NOBODY:
            notes.add(place, column, "no person is named; say whose the row is, or drop it")
        result.append(person)
    return np.asarray(result, dtype=object)


def _canonical(person: str) -> str:
    person = unicodedata.normalize("NFC", person).strip()
    return person.partition(".")[0] if _WHOLE.fullmatch(person) else person


def read_numbers(notes: Notes, column: str, scale: tuple[float, float] | None) -> np.ndarray:
    """(N,) float64, measured by `scale`."""
    mean, deviation = scale or (0.0, 1.0)
    values = np.zeros(len(notes.table.rows))
    for place, text in enumerate(read_strings(notes, column)):
        try:
            number = float(text)
        except ValueError:
            number = np.nan
        if np.isfinite(number):
            values[place] = number
        else:
            notes.add(place, column, "not a finite number; correct the row")
    return (values - mean) / deviation


def read_tags(notes: Notes, data: DataSection, labels: list[str]) -> list[np.ndarray]:
    """One (W,) array of class indices a row, a tag a word."""
    index = {name: i for i, name in enumerate(labels)}
    texts = read_strings(notes, data.text, words=True)
    columns = read_strings(notes, data.label, words=True, reader=as_class)
    result = []
    for place, (text, tags) in enumerate(zip(texts, columns, strict=True)):
        words, names = text.split(), [as_bio(tag, data.numbered_tags) for tag in tags.split()]
        if len(words) != len(names):
            what = f"{len(names)} tags for {len(words)} words; each word needs one, separated by spaces"
            notes.add(place, data.label, what)
        elif not index.keys() >= set(names):
            notes.add(place, data.label, f"a tag that is not one of {_allowed(labels)}")
        result.append(np.array([index.get(name, 0) for name in names], dtype=np.int32))
    return result


def _allowed(labels: list[str]) -> str:
    names = ", ".join(labels[:8]) + (f" … ({len(labels)} in all)" if len(labels) > 8 else "")
    return f"the {len(labels)} of this run; allowed: {names}; correct the row, or state all classes in data.labels"


def read_images(notes: Notes, column: str, folder: Path, form: ImageForm) -> tuple[np.ndarray, list[bytes | None]]:
    """(good rows, C, H, W) uint8, and what the digest covers of every row's."""
    values = notes.table.column(column)
    result = np.empty((len(values), form.channels, form.height, form.width), dtype=np.uint8)
    marks, kept = [], 0
    for place, value in enumerate(values):
        content = None
        try:
            content = image_file(value, folder, _WHERE)
            if place not in notes.found:
                result[kept] = decoded(content, form, _WHERE)
                kept += 1
        except DataError as error:
            notes.add(place, column, str(error).removeprefix(f"{_WHERE}: "))
        marks.append(mark(value, content))
    return result[:kept], marks
