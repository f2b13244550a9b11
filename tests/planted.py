"""Faults planted in real rows, for the data check's test and its benchmark."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from confide.client.check.duplicates import normal


@dataclass(frozen=True)
class Planted:
    rows: list[tuple[str, str]]
    flipped: set[int]
    """rows whose label was changed"""
    copies: set[int]
    """rows that were added: an earlier row of eight words and more with one letter changed"""


def replaced(path: Path, limit: int, share: float, seed: int) -> tuple[list[tuple[str, str]], set[int]]:
    """`limit` rows of a csv file, a share of the labels replaced by any other class, all alike; and which."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    rng = np.random.default_rng(seed)
    rows = [rows[i] for i in rng.permutation(len(rows))[:limit]]
    names = sorted({label for _, label in rows})
    wrong = {int(i) for i in rng.permutation(limit)[: round(share * limit)]}
    other = rng.integers(1, len(names), limit)
    return [
        (text, names[(names.index(label) + int(other[i])) % len(names)] if i in wrong else label)
        for i, (text, label) in enumerate(rows)
    ], wrong


def planted(path: Path, limit: int | None, seed: int) -> Planted:
    """10 % of the labels flipped, and 5 % more rows that are near copies, at the end."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    rng = np.random.default_rng(seed)
    rows = [rows[i] for i in rng.permutation(len(rows))[:limit]]
    names = sorted({label for _, label in rows})
    flipped = {int(i) for i in rng.permutation(len(rows))[: len(rows) // 10]}
    rows = [
        (text, names[(names.index(label) + 1) % len(names)] if i in flipped else label)
        for i, (text, label) in enumerate(rows)
    ]
    long = [i for i, (text, _) in enumerate(rows) if len(normal(text).split()) >= 8]
    originals = rng.permutation(long)[: len(rows) // 20]
    added = []
    flipped |= {len(rows) + place for place, i in enumerate(originals) if int(i) in flipped}
    for i in originals:
        text, label = rows[i]
        letters = [place for place, letter in enumerate(text) if letter.isalpha()]
        place = letters[int(rng.integers(len(letters)))]
        added.append((text[:place] + "x" + text[place + 1 :], label))
    copies = set(range(len(rows), len(rows) + len(added)))
    return Planted([*rows, *added], flipped, copies)
