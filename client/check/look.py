"""All findings about a table of texts and classes."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ...common.data.columns import columns_told
from ...common.errors import ConfigError, DataError
from . import duplicates, labels
from . import identifiers as personal
from .trial import Trial, tried

_NEIGHBOURS, _REFERENCE = 10, 5000
_FAR = 3.5
"""modified z-score above which a row lies far from all others (Iglewicz and Hoaglin 1993)"""
_MOJIBAKE = re.compile(r"Ã[\x80-\xbf©®¼½¾¡-¿]|â€|\ufffd|Â[\xa0-\xbf]")
StageCallback = Callable[[str], None]


@dataclass(frozen=True)
class Judgement:
    """All labels that could be ranked, the most doubtful first."""

    rows: np.ndarray
    likely: list[str]
    """… the class that each most likely has, which may be the given one"""
    score: np.ndarray
    """… the probability of the given one"""
    estimated: int
    """how many are estimated to be wrong"""
    trial: Trial
    """whether the ranking can be believed"""


@dataclass
class Findings:
    """What was found. Rows are numbered from 0 within the table."""

    texts: list[str]
    names: list[str] | None
    """the label of each row, as it stands"""
    empty: np.ndarray
    """rows without a text, or without a label"""
    encoding: np.ndarray
    """rows that were once read in a wrong encoding, or hold control characters"""
    copies: dict[int, int]
    """row → the earlier row that says the same"""
    near: dict[int, int]
    """row → an earlier row that says nearly the same"""
    conflicts: np.ndarray
    """rows that say the same as another and have another label"""
    leaked: np.ndarray
    """rows that (nearly) stand in the test set"""
    judgement: Judgement | None = None
    """None: there are no labels, or too few of a class"""
    cut: int = 0
    """how many of the ranking are named as wrong"""
    far: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    """rows unlike all others, the farthest first"""
    details: dict[str, np.ndarray] = field(default_factory=dict)
    """kind of personal detail → rows"""
    classes: dict[str, int] = field(default_factory=dict)

    @property
    def wrong(self) -> np.ndarray:
        """Rows whose label looks wrong, the most doubtful first."""
        return np.zeros(0, dtype=int) if self.judgement is None else self.judgement.rows[: self.cut]

    @property
    def rather(self) -> list[str]:
        """… and what each would rather be."""
        return [] if self.judgement is None else self.judgement.likely[: self.cut]

    @property
    def judged(self) -> bool:
        """Whether labels were ranked, and the trial says that the ranking can be believed."""
        return self.judgement is not None and self.judgement.trial.passed


def check_rows(
    table: pa.Table,
    text: str,
    label: str | None,
    test: pa.Table | None,
    embed: Callable[[list[str]], np.ndarray] | None,
    seed: int,
    progress: StageCallback,
    label_cut: int | None = None,
    *,
    nearly: bool = True,
) -> Findings:
    """text, label: columns; label None: there are no classes. test: rows that must not be among the others. nearly:
    whether rows that say nearly the same are copies, too.

    embed: texts → (N, h). label_cut: how many labels are named as wrong; None: as many as are estimated to be, and none
    where labels cannot be judged. Raises DataError for a missing column, or no rows; ConfigError for a cut beyond the
    ranking.
    """
    texts, names = _column(table, text), None if label is None else _column(table, label)
    progress("empty rows and encodings")
    empty = np.array([not t.strip() or (names is not None and not names[i].strip()) for i, t in enumerate(texts)])
    there = np.flatnonzero(~empty)
    progress("duplicates")
    first = duplicates.exact(texts)
    first[empty] = np.flatnonzero(empty)
    copies = {int(i): int(first[i]) for i in there if first[i] != i}
    singles = np.array([i for i in there if first[i] == i], dtype=int)
    near = duplicates.near(texts, singles) if nearly else {}
    checked = Findings(
        texts,
        names,
        np.flatnonzero(empty),
        np.array([i for i in there if _broken(texts[i])], dtype=int),
        copies,
        near,
        _conflicts(names, copies),
        _leaked(texts, there, test, text, nearly),
        classes=_count(names, there),
    )
    vectors = None
    if embed is not None:
        progress("embeddings")
        once = embed([texts[i] for i in singles])  # copies mean the same
        place = np.zeros(len(texts), dtype=int)
        place[singles] = np.arange(len(singles))
        vectors = np.zeros((len(texts), once.shape[1]), dtype=np.float32)
        vectors[there] = once[place[first[there]]]
    if names is not None:
        checked.judgement = _judgement(checked, there, vectors, seed, progress)
    checked.cut = _cut(checked, label_cut)
    if vectors is not None:
        progress("outliers")
        checked.far = there[_far(vectors[there], seed)]
    progress("personal details")
    details: dict[str, list[int]] = {}
    for i in there:
        for kind in personal.details(texts[i]):
            details.setdefault(kind, []).append(int(i))
    checked.details = {kind: np.array(rows) for kind, rows in details.items()}
    return checked


def _column(table: pa.Table, column: str) -> list[str]:
    if column not in table.column_names:
        raise DataError(f"column '{column}' is missing; {columns_told(table.column_names)}")
    if table.num_rows == 0:
        raise DataError("there are no rows; expected at least one")
    return ["" if value is None else str(value) for value in table[column].to_pylist()]


def _broken(text: str) -> bool:
    control = any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text)
    return control or _MOJIBAKE.search(text) is not None


def _conflicts(names: list[str] | None, copies: dict[int, int]) -> np.ndarray:
    if names is None:
        return np.zeros(0, dtype=int)
    rows = {i for pair in copies.items() if names[pair[0]] != names[pair[1]] for i in pair}
    return np.array(sorted(rows), dtype=int)


def _leaked(texts: list[str], there: np.ndarray, test: pa.Table | None, column: str, nearly: bool) -> np.ndarray:
    if test is None:
        return np.zeros(0, dtype=int)
    tests = [t for t in _column(test, column) if t.strip()]
    both = [*tests, *(texts[i] for i in there)]
    first = duplicates.exact(both)
    singles = np.array([i for i in range(len(both)) if first[i] == i], dtype=int)
    near = duplicates.near(both, singles) if nearly else {}
    found = [
        i
        for place, i in enumerate(there, start=len(tests))
        if first[place] < len(tests) or near.get(int(first[place]), len(tests)) < len(tests)
    ]
    return np.array(found, dtype=int)


def _count(names: list[str] | None, there: np.ndarray) -> dict[str, int]:
    if names is None:
        return {}
    found, counts = np.unique([names[i] for i in there], return_counts=True)
    return {str(name): int(count) for name, count in zip(found, counts, strict=True)}


def _judgement(
    checked: Findings, there: np.ndarray, vectors: np.ndarray | None, seed: int, progress: StageCallback
) -> Judgement | None:
    kinds, own = np.unique([checked.names[i] for i in there] if checked.names else [], return_inverse=True)
    judged = labels.judged_rows(own)
    if not len(judged):
        return None
    progress("labels")
    same = np.arange(len(checked.texts))
    for row, other in sorted({**checked.copies, **checked.near}.items()):
        same[row] = same[other]  # the earlier row's group is known by now
    rows = there[judged]
    features = labels.features_of([checked.texts[i] for i in rows], None if vectors is None else vectors[rows])
    if not features:
        return None
    classes, own = np.unique(own[judged], return_inverse=True)
    ranking = labels.ranked(features, own, same[rows], seed)
    progress("labels: trial")
    trial = tried(features, own, same[rows], seed)
    likely = [str(kinds[classes[k]]) for k in ranking.likely]
    return Judgement(rows[ranking.order], likely, ranking.score, ranking.estimated, trial)


def _cut(checked: Findings, chosen: int | None) -> int:
    ranked = 0 if checked.judgement is None else len(checked.judgement.rows)
    if chosen is not None and chosen > ranked:
        raise ConfigError(f"--label-cut: received {chosen}; {ranked} labels were ranked; give at most that, or omit it")
    if chosen is not None:
        return chosen
    return checked.judgement.estimated if checked.judgement is not None and checked.judged else 0


def _far(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Rows whose mean distance to their nearest neighbours (among a sample) stands out, the farthest first."""
    if len(vectors) <= 2 * _NEIGHBOURS:
        return np.zeros(0, dtype=int)
    unit = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    sample = unit[np.random.default_rng([seed, 0xFA2]).permutation(len(unit))[:_REFERENCE]]
    distances = np.empty(len(unit))
    for start in range(0, len(unit), 2048):
        likeness = unit[start : start + 2048] @ sample.T
        nearest = -np.partition(-likeness, _NEIGHBOURS, axis=1)[:, : _NEIGHBOURS + 1]
        distances[start : start + 2048] = 1 - np.sort(nearest, axis=1)[:, :_NEIGHBOURS].mean(1)
    middle = np.median(distances)
    spread = 1.4826 * np.median(np.abs(distances - middle))
    far = np.flatnonzero(distances > middle + _FAR * spread) if spread > 0 else np.zeros(0, dtype=int)
    return far[np.argsort(-distances[far], kind="stable")]
