"""Rows that say the same: exactly, but for case, spacing and punctuation, or nearly, by shared runs of letters."""

import re

import numpy as np
from datasketch import MinHash, MinHashLSH

_WORD = re.compile(r"\w+")
SHINGLE, PERMUTATIONS = 4, 96
NEAR = 0.75
"""Jaccard similarity of the sets of letter runs from which two rows are nearly the same"""
_SHORTEST = 16
"""letters below which one typing error makes another text of a row: only exact duplicates count"""


def normal(text: str) -> str:
    """Words in lower case, single spaces: what exact duplicates share."""
    return " ".join(_WORD.findall(text.casefold()))


def exact(texts: list[str]) -> np.ndarray:
    """(N,) number of the first row with the same normal form; its own for a first one, or a row without words."""
    first: dict[str, int] = {}
    result = np.arange(len(texts))
    for number, text in enumerate(texts):
        form = normal(text)
        if form:
            result[number] = first.setdefault(form, number)
    return result


def near(texts: list[str], among: np.ndarray) -> dict[int, int]:
    """Row → an earlier row that is nearly the same, among the numbered rows (each of another normal form).

    Candidates come from MinHash with locality-sensitive hashing (Broder 1997; Leskovec et al. 2014, ch. 3); each is
    confirmed by its exact similarity. Of several earlier rows the first counts.
    """
    shingles = {int(number): _shingles(texts[number]) for number in among}
    rows = [number for number, found in shingles.items() if found is not None]
    # rather too many candidates than too few: each is confirmed
    index = MinHashLSH(threshold=NEAR - 0.1, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    result: dict[int, int] = {}
    hashes = MinHash.generator(
        ([piece.encode() for piece in shingles[number] or ()] for number in rows), num_perm=PERMUTATIONS
    )
    for number, hashed in zip(rows, hashes, strict=True):
        mine = shingles[number] or set()
        for candidate in sorted(int(str(key)) for key in index.query(hashed)):
            other = shingles[candidate] or set()
            if len(mine & other) >= NEAR * len(mine | other):
                result[number] = candidate
                break
        index.insert(number, hashed, check_duplication=False)
    return result


def _shingles(text: str) -> set[str] | None:
    form = normal(text)
    if len(form) < _SHORTEST:
        return None
    return {form[i : i + SHINGLE] for i in range(len(form) - SHINGLE + 1)}
