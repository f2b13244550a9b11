"""The classes, tags and numbers that a run learns, as its public sets have them."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np

from ..config.tables import DataSection
from ..errors import DataError
from .columns import Notes, as_bio, read_label_names, read_numbers, read_strings, require, several
from .formats import load
from .sql import shown
from .values import as_class

log = logging.getLogger("confide.data")


def has_lists(sources: list[str], data: DataSection) -> bool:
    """Whether the rows of public sources have lists of classes: in every row a list, or its JSON text. Raises DataError
    as `read_rows`."""
    for source in sources:
        lists = [is_list(value) for value in _column(source, data.label).table.column(data.label)]
        if any(lists) and not all(lists):
            told = f"{sum(lists):,} of {len(lists):,} rows have a list in column '{data.label}'"
            log.warning("%s: %s, the others have not, so each is taken as one class", shown(source), told)
        if not all(lists):
            return False
    return True


def is_list(value: object) -> bool:
    return several(value) != [value]


def label_names(sources: list[str], data: DataSection, kind: str | None = "class") -> list[str]:
    """The classes that occur in public sources, numbers in numeric order, names in alphabetical order.

    kind: as `Reads.label`; of tags, B-x and I-x for every type x of entity that occurs, and O. Raises DataError as
    `read_rows`.
    """
    names: set[str] = set()
    per_word = kind == "tags"
    for source in sources:
        if kind == "classes":
            names.update(read_label_names(_column(source, data.label), data.label))
            continue
        names.update(_names(source, data, per_word=per_word))
    return bio_names(names, ", ".join(sources)) if per_word else sorted_names(names)


def class_counts(sources: list[str], data: DataSection, kind: str | None = "class") -> np.ndarray:
    """(K,) rows of each of `data.labels` in public sources; of tags words. kind: as `Reads.label`, one a row or word.
    Raises DataError as `read_rows`."""
    found = Counter(name for source in sources for name in _names(source, data, per_word=kind == "tags"))
    return np.array([found[name] for name in data.labels or []], dtype=np.int64)


def _names(source: str, data: DataSection, *, per_word: bool) -> list[str]:
    """The class of each row, or the tag of each word as BIO."""
    found = read_strings(_column(source, data.label), data.label, words=per_word, reader=as_class)
    return [as_bio(tag, data.numbered_tags) for row in found for tag in row.split()] if per_word else found


def sorted_names(names: Collection[str]) -> list[str]:
    numbers = all(re.fullmatch(r"-?\d{1,4000}", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def bio_names(names: Iterable[str], source: str) -> list[str]:
    """All tags of the types in `names`, in the order that `token-classification` needs. Raises DataError."""
    kinds = set()
    for name in (as_bio(one, None) for one in names):
        if name != "O" and not re.match(r"^[BI]-.", name):
            remedy = "state what the numbers mean in data.labels" if name.isdecimal() else "convert the tags"
            raise DataError(f"{source}: tag '{name[:40]}' received; allowed: B-TYPE, I-TYPE and O (or BIOES); {remedy}")
        kinds.add(name[2:])
    kinds.discard("")
    return [*(f"B-{kind}" for kind in sorted(kinds)), *(f"I-{kind}" for kind in sorted(kinds)), "O"]


def number_scale(sources: list[str], data: DataSection) -> tuple[float, float]:
    """Mean and standard deviation of the numbers in public sources. Raises DataError."""
    values = np.concatenate([read_numbers(_column(source, data.label), data.label, None) for source in sources])
    if not values.std():
        raise DataError(
            f"{', '.join(sources)}: column '{data.label}' holds the same number everywhere; nothing to learn"
        )
    return float(values.mean()), float(values.std())


def _column(source: str, column: str) -> Notes:
    """A public source, strictly, which has this column."""
    notes = Notes(load(source, [column]), strict=True)
    require(notes, [column])
    return notes
