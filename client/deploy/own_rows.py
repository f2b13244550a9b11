"""What `confide site check` tells of the site's own rows, for its operator alone: every number is one of theirs."""

import unicodedata
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ...common.config.run import SiteConfig
from ...common.config.tables import DataSection
from ...common.data.sources import CheckedRows, examine
from ...common.errors import DataError
from ...common.types import Conversation
from .folder import data_section

_NAMED = 5
"""rows with a problem that a check names"""


def data_told(folder: Path, name: str, dataset: Any, people: dict[str, set[str]]) -> str:
    """people: gets the persons of a data set that names some."""
    data = data_section(folder, dataset, DataSection(name=name, test=""))
    found = examine(data.training, data)
    if not len(found.rows):
        raise DataError(f"{found.rows.source}: {_left_out(found) or 'there are no rows; expected at least one'}")
    if found.rows.person is not None:
        people[name] = set(found.rows.person.tolist())
    parts = (
        f"{len(found.rows):,} rows",
        _messages(found.rows.turns),
        persons_told(found.rows.person),
        _classes(found.classes),
        _left_out(found),
    )
    return ", ".join(part for part in parts if part)


def _messages(turns: list[Conversation] | None) -> str:
    """How long conversations are, for the operator alone."""
    if not turns:
        return ""
    sizes = sorted(map(len, turns))
    return f"conversations of {sizes[0]:,} to {sizes[-1]:,} messages"


def persons_told(person: np.ndarray | None) -> str:
    """How many rows persons have, for the operator alone: it says what data.person_rows of a run would leave out."""
    if person is None or not len(person):
        return ""
    counts = np.unique(person, return_counts=True)[1]
    edges = [1, 2, 3, 5, 9, 17, 33, 65]
    found = np.histogram(counts, [*edges, np.inf])[0]
    names = ["1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65 and more"]
    shown = ", ".join(f"{name}: {many:,}" for name, many in zip(names, found, strict=True) if many)
    ids = set(person.tolist())
    alike = len(ids) - len({_bare(one) for one in ids})
    told = (
        f"; {alike:,} differ from another by case, blanks, marks or leading zeros alone: correct them if they are one"
        * bool(alike)
    )
    return f"{len(counts):,} persons (rows a person: {shown}{told})"


def in_several(config: SiteConfig, people: dict[str, set[str]]) -> str:
    """How many persons have rows in two data sets that have budgets of their own, for the operator alone."""
    told = [
        f"{len(people[one] & people[two]):,} persons of '{one}' are in '{two}', too"
        for one, two in combinations(people, 2)
        if people[one] & people[two] and config.budget(one)[0] != config.budget(two)[0]
    ]
    if not told:
        return "none has rows in two data sets with budgets of their own"
    return f"{'; '.join(told)}: what both spend adds up for them, and no budget says so; name one as same_as the other"


def _bare(person: str) -> str:
    """Its letters and digits, as simple as Unicode has them."""
    plain = unicodedata.normalize("NFKC", person).casefold()
    return "".join(letter for letter in plain if letter.isalnum()).lstrip("0")


def _classes(counts: dict[str, int]) -> str:
    """The classes, the most frequent first, so that a misspelled one stands at the end."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    if len(names) > max(20, sum(counts.values()) / 5):
        return f"{len(names):,} different labels"
    shown = [f"{' '.join(name.split())[:40]} ({counts[name]:,})" for name in names]
    if len(shown) > 12:
        shown = [*shown[:6], "…", *shown[-5:]]
    return f"{len(names)} classes: {', '.join(shown)}" if names else ""


def _left_out(found: CheckedRows) -> str:
    """How many rows a run would train nothing on, and which ones, without anything that they hold."""
    count, everyone = len(found.problems), len(found.rows) + len(found.problems)
    first = ", ".join(f"row {one.row} ({one.brief})" for one in found.problems[:_NAMED])
    more = ", …" if count > _NAMED else ""
    return f"{count:,} of {everyone:,} rows contribute{'s' * (count == 1)} nothing: {first}{more}" if count else ""
