"""Rows from a source: csv, jsonl, parquet, hub id, SQL url, or the data that confide generates.

Two ways to meet a row that cannot be used. Strict, for public data and simulations: the first one raises. With a list
of problems, for a site's own data: it is left out and noted, and everything else is bit for bit what the source gives
without it, so that neither an error nor another row tells that it is there.

Errors name file, row and column, and never show what a row holds: they end up in logs that leave the site.
Rows are counted from 1 and the header of a csv is row 1; empty lines, and line ends inside quotes, do not count.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from ..config.tables import DataSection
from ..errors import DataError
from ..types import Reads, Rows
from .classes import bio_names, is_list, sorted_names
from .columns import (
    Notes,
    read_classes,
    read_images,
    read_label_names,
    read_labels,
    read_persons,
    read_strings,
    read_tags,
    read_text,
    read_turns,
    refuse,
    require,
)
from .content import ROLES, digest, identity, joined
from .files import is_file
from .formats import DEMO, Problem, Table, load
from .images import ImageForm
from .record_keys import choices, in_order, record_keys
from .sql import URL
from .values import UnreadableError, as_class, flat

_TEXT = Reads()
_SMALLEST = ImageForm(1, 1, 1)
"""for images that are decoded to see whether they can be"""
_BIO = re.compile(r"^(O|[BIESLUM]-.+)$")
PERSON_MOST = 256
"""rows of one person that a run reads at all whose unit is the person"""


@dataclass(frozen=True)
class CheckedRows:
    """A source, read once."""

    rows: Rows
    """those that can be used"""
    problems: list[Problem]
    """one for each that cannot"""
    digest: bytes
    """as `content_digest`, of exactly what was read"""
    identity: bytes
    """as `source_contents`"""
    classes: dict[str, int] = field(default_factory=dict)
    """class (or tag) → how often it occurs in `rows`"""


def read_rows(
    source: str,
    data: DataSection,
    labels: list[str] | None,
    *,
    reads: Reads = _TEXT,
    image: ImageForm | None = None,
    whose: bool = False,
    problems: list[Problem] | None = None,
) -> Rows:
    """Reads and checks a source.

    labels: the class names in order; None where there are no classes. reads: what of a row. image: what images are
    made into. whose: also read of which site of a `natural` partition, and of which person, a row is. problems: gets
    one for each row that cannot be used and is left out; None: the first one raises, and so does a source without rows.
    Raises DataError: source missing or unreadable, column missing; without `problems` also: no rows, a row that cannot
    be parsed, empty field, unknown label, no number, no image, not UTF-8.
    """
    group = whose and data.partition.kind == "natural"
    data = data if whose else data.model_copy(update={"person": None})
    needed = _needed(data, labels, reads, image, group)
    notes = Notes(load(source, needed), problems is None)
    rows, _ = _read(notes, data, labels, reads, image, group)
    if problems is not None:
        problems.extend(notes.all())
    return rows


def read_checked(
    source: str,
    data: DataSection,
    labels: list[str] | None,
    *,
    reads: Reads = _TEXT,
    image: ImageForm | None = None,
) -> CheckedRows:
    """Rows, problems and digest from one read. Raises DataError as `read_rows` with `problems`: never for a row."""
    return _checked(load(source, _covered(data)), data, labels, reads, image)


def content_digest(source: str, data: DataSection) -> bytes:
    """32 bytes: SHA-256 over what the columns of [data] hold, whatever the kind of source and the order of its rows.

    A row is its values by their role, as text, or as bytes; an image is its file's bytes, and a row that cannot be
    parsed its own. A column that is not there is as one without values. Raises DataError as `read_rows` with
    `problems`: never for a row.
    """
    return digest(load(source, _covered(data)), data, None)


def source_contents(source: str, data: DataSection) -> tuple[bytes, bytes]:
    """Whose records a source holds, 32 bytes over their texts (or images) alone, and its `content_digest`, from one
    read. Raises DataError as `content_digest`."""
    table = load(source, _covered(data))
    return identity(table, data, None), digest(table, data, None)


def examine(source: str, data: DataSection) -> CheckedRows:
    """What a source holds before any run is known: columns that are there are read, and the classes are those that
    occur, unless most labels are tags, or so many different numbers that they are no classes. For the operator of its
    site alone. Raises DataError as `read_checked`."""
    table = load(source, _covered(data))
    names = _readable(table.columns.get(data.label, []))
    labels, kind = None if names is None else sorted_names(names), "class"
    names = names or set()
    words = {word for name in names for word in name.split()}
    bio = [word for word in words if _BIO.match(word)]
    if len(bio) > len(words) / 2:
        labels, kind = bio_names(bio, source), "tags"
    elif any(isinstance(value, list | tuple) for value in table.columns.get(data.text, [])):
        labels, kind = sorted_names(words), "tags"  # of words, as numbers that a run names
    elif any(map(is_list, table.columns.get(data.label, []))):
        found = read_label_names(Notes(table, strict=False), data.label)
        labels, kind = sorted_names({name for name in found if name.strip()}), "classes"
    elif len(names) > max(20, len(table.rows) / 5) and sum(map(_is_number, names)) > len(names) / 2:
        labels, kind = None, "number"
    images = data.image in table.columns
    text = not images or (data.messages or data.prompt or data.text) in table.names
    pairs = {data.chosen, data.rejected} <= set(table.names)
    reads = Reads(kind, text, images, turns=True, pairs=pairs)
    return _checked(table, data.model_copy(update={"scale": None}), labels, reads, _SMALLEST)


def read_texts(source: str, column: str) -> list[str]:
    """A column of texts without anything else. Raises DataError as `read_rows` does."""
    return read_rows(source, DataSection(test=source, text=column), None, reads=Reads(label=None)).text


def read_table(
    source: str, data: DataSection, problems: list[Problem] | None = None, *, label: str | None = None
) -> pa.Table:
    """The raw columns of a source, each value by itself: as text, or as bytes where a column holds any; None where
    nothing is. problems: as in `read_rows`, for rows that cannot be parsed or are not UTF-8. label: the column of which
    every value must be a class, or a list of some. Raises DataError."""
    table = load(source)
    notes = Notes(table, problems is None)
    refuse(notes)
    columns: dict[str, list[bytes | str | None]] = {}
    for name, values in table.columns.items():
        if name == label:
            read_classes(notes, name)
        columns[name] = [
            value if isinstance(value, bytes) else read_text(notes, name, place, flat(value))
            for place, value in enumerate(values)
        ]
    kept = [place for place in range(len(table.rows)) if place not in notes.found]
    if problems is not None:
        problems.extend(notes.all())
    return pa.table({name: _array([values[place] for place in kept]) for name, values in columns.items()})


def is_hub_id(source: str) -> bool:
    """Whether a source is of the hub, or the demonstration's: the same wherever it is read."""
    return source.startswith(DEMO) or not (URL.match(source) or is_file(source))


def shuffled_limit(rows: Rows, limit: int | None, seed: int) -> Rows:
    """`limit` rows, the first in an order of each record's own; all rows as they stand without a limit.

    One more row brings itself in and pushes at most one other out: under privacy a record of the source is protected
    like a group of two (`claims.limits`).
    """
    if limit is None or limit >= len(rows):
        return rows
    return rows.take(_ordered(rows, seed)[:limit])


def _ordered(rows: Rows, seed: int) -> np.ndarray:
    return in_order(record_keys(rows, b"data.limit"), seed)


def training_rows(rows: Rows, data: DataSection, seed: int) -> Rows:
    """What a run trains on: `limit` rows, or the draw of them that `data.reference` names; of those of `of_persons`."""
    rows = of_persons(rows)
    if data.reference is None or data.limit is None:
        return shuffled_limit(rows, data.limit, seed)
    pool, drawn = reference_draw(rows, data, seed)
    return rows.take(pool[drawn])


def reference_draw(rows: Rows, data: DataSection, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For membership tests: the pool of the first 2·limit rows, of which the run itself took the first half, and which
    of them reference run `data.reference` takes.

    Returns (P,) row numbers and positions in it, of about half. Raises DataError when there are too few rows.
    """
    count = len(rows)
    size = 2 * (data.limit or count)
    if size > count:
        raise DataError(
            f"{data.train}: {count} rows, of which the run took {data.limit or 'all'}; as many again must be left to "
            f"compare with; lower data.limit to {count // 2} or less"
        )
    pool = _ordered(rows, seed)[:size]
    # in pairs, by each record's own key: every record is in one of the two, and one row more moves none of the others
    number = data.reference or 0
    halves = choices(record_keys(rows.take(pool), b"data.reference"), seed + number // 2, 2)
    return pool, np.flatnonzero(halves == number % 2)


def _needed(
    data: DataSection, labels: list[str] | None, reads: Reads, image: ImageForm | None, group: bool
) -> list[str]:
    """The columns that are read."""
    labelled = reads.label == "number" or labels is not None
    columns = [
        data.image if reads.images and image is not None else None,
        data.label if labelled else None,
        data.text if labelled and reads.label == "tags" else None,
        _text_column(data, reads),
        *_answers(data, reads),
        data.text_pair if reads.two_texts else None,
        data.person,
        (data.partition.column or "") if group else None,
    ]
    return [column for column in columns if column is not None]


def _text_column(data: DataSection, reads: Reads) -> str | None:
    """Of the texts, the prompts, or the conversations."""
    if not reads.text:
        return None
    return data.messages if reads.turns and data.messages is not None else data.prompt or data.text


def _answers(data: DataSection, reads: Reads) -> tuple[str | None, str | None]:
    """The column of the answer, or of the chosen one, and that of the rejected one."""
    return (data.chosen or "", data.rejected or "") if reads.pairs else (data.response, None)


def _covered(data: DataSection) -> list[str]:
    """The columns that a digest covers, and so all that a site's rows may be read of."""
    return [column for role in ROLES if (column := getattr(data, role)) is not None]


def _checked(
    table: Table,
    data: DataSection,
    labels: list[str] | None,
    reads: Reads,
    image: ImageForm | None,
) -> CheckedRows:
    notes = Notes(table, strict=False)
    rows, marks = _read(notes, data, labels, reads, image, group=False)
    found = rows.labels if reads.label == "class" else np.concatenate(rows.tags) if rows.tags else None
    if reads.label == "classes" and rows.labels is not None:
        found = rows.labels.nonzero()[1]
    counts = Counter() if found is None or labels is None else Counter(labels[number] for number in found)
    who = identity(table, data, marks)
    return CheckedRows(rows, notes.all(), digest(table, data, marks), who, dict(counts))


def _read(
    notes: Notes,
    data: DataSection,
    labels: list[str] | None,
    reads: Reads,
    image: ImageForm | None,
    group: bool,
) -> tuple[Rows, list[bytes | None] | None]:
    """The rows without a problem, and what the digest covers of every row's image, where images are read."""
    table = notes.table
    require(notes, _needed(data, labels, reads, image, group))
    classes = read_labels(notes, data, labels, reads)
    tags = read_tags(notes, data, labels) if labels is not None and reads.label == "tags" else None
    text, turns = [""] * len(table.rows), None
    if reads.turns and data.messages is not None:
        turns = read_turns(notes, data.messages)
    elif reads.text:
        text = read_strings(notes, data.prompt or data.text, words=reads.label == "tags")
    response, rejected = (None if column is None else read_strings(notes, column) for column in _answers(data, reads))
    pair = read_strings(notes, data.text_pair) if reads.two_texts and data.text_pair is not None else None
    groups = np.asarray(read_strings(notes, data.partition.column or ""), dtype=object) if group else None
    person = read_persons(notes, data.person) if data.person else None
    images, marks = None, None
    if reads.images and image is not None:  # last: rows with a problem so far need no place
        images, marks = read_images(notes, data.image, table.folder, image)
    numbers = np.asarray(table.rows, dtype=np.int64)
    template = None if turns is None else data.template
    rows = Rows(
        table.source, text, response, classes, tags, groups, None, person, turns, template, numbers, rejected, pair
    )
    if notes.found:
        rows = rows.take(np.array([place for place in range(len(text)) if place not in notes.found], dtype=np.int64))
    rows = replace(rows, images=images)
    return rows, marks


def of_persons(rows: Rows) -> Rows:
    """The rows that a run reads whose unit is the person: of each person the first `PERSON_MOST` in an order of their
    own. What a person costs a site in time and memory must not grow with their rows, or one person could end its
    rounds. For no other run: without one row another would come in, and the two would be a group."""
    if rows.person is None:
        return rows
    owner = np.unique(rows.person, return_inverse=True)[1]
    if np.bincount(owner, minlength=1).max() <= PERSON_MOST:
        return rows
    order = np.lexsort((record_keys(rows, b"data.person"), owner))
    starts = np.searchsorted(owner[order], owner[order])
    return rows.take(np.sort(order[np.arange(len(rows)) - starts < PERSON_MOST]))


def _readable(values: Iterable[object]) -> set[str] | None:
    """The classes that can be read; None where every label is empty."""
    found: set[str] = set()
    empty = True
    for value in values:
        try:
            found.add(as_class(joined(value)) or "")
        except UnreadableError:
            empty = False
    found = {text for text in found if text.strip()}
    return found if found or not empty else None


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _array(values: list[bytes | str | None]) -> pa.Array:
    """As text, or, where there are bytes among them, all as bytes."""
    if not any(isinstance(value, bytes) for value in values):
        return pa.array(values, pa.string())
    return pa.array([value.encode() if isinstance(value, str) else value for value in values], pa.binary())
