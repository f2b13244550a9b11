"""Texts as people and their keyboards spoil them, and small changes that should not matter.

Strength is the share of letters (or words) that are touched. Every function is deterministic in its generator. Noise on
letters follows Belinkov and Bisk 2018 and Pruthi et al. 2019; checks follow CheckList (Ribeiro et al. 2020).
"""

import re
from collections.abc import Callable

import numpy as np

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_HOMOGLYPHS = dict(zip("aceiopsxyACEHKMOPTX", "асеіорѕхуАСЕНКМОРТХ", strict=True))
"""Latin letters and the Cyrillic ones that look alike"""
_AT_ONCE = 64
"""letters of a word that are edited together"""
_MARKS = ".,;:!?-'\""
_NAMES = ("Maria", "John", "Wei", "Fatima", "Olga", "Kwame", "Aisha", "Carlos", "Priya", "Hans")
_VERBS = re.compile(r"\b(is|are|was|were|has|have|had|do|does|did|can|could|will|would|should)\b", re.IGNORECASE)


def _neighbours() -> dict[str, str]:
    """Letter → those beside it on a QWERTY keyboard."""
    place = {letter: (row, column) for row, line in enumerate(_ROWS) for column, letter in enumerate(line)}
    return {
        letter: "".join(
            other for other, (r, c) in place.items() if other != letter and abs(r - row) <= 1 and abs(c - column) <= 1
        )
        for letter, (row, column) in place.items()
    }


_NEAR = _neighbours()


def swap_characters(word: str, place: int, rng: np.random.Generator) -> str:
    """The letter and the next one change places (the last with the one before)."""
    place = min(place, len(word) - 2)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :] if place >= 0 else word


def drop_character(word: str, place: int, rng: np.random.Generator) -> str:
    return word[:place] + word[place + 1 :] if len(word) > 1 else word


def neighbour_key(word: str, place: int, rng: np.random.Generator) -> str:
    near = _NEAR.get(word[place].lower())
    return word if near is None else word[:place] + near[int(rng.integers(len(near)))] + word[place + 1 :]


def homoglyph(word: str, place: int, rng: np.random.Generator) -> str:
    return word[:place] + _HOMOGLYPHS.get(word[place], word[place]) + word[place + 1 :]


Edit = Callable[[str, int, np.random.Generator], str]
EDITS: dict[str, Edit] = {
    "swap": swap_characters,
    "drop": drop_character,
    "neighbour": neighbour_key,
    "homoglyph": homoglyph,
}
"""one change at one place of a word"""


def with_edits(text: str, strength: float, rng: np.random.Generator, edits: tuple[str, ...] = tuple(EDITS)) -> str:
    """About `strength` of the letters hit by one of `edits` each."""

    def edited(word: str) -> str:
        for place in sorted(np.flatnonzero(rng.random(len(word)) < strength), reverse=True):
            if place < len(word) and word[place].isalpha():
                word = EDITS[edits[int(rng.integers(len(edits)))]](word, int(place), rng)
        return word

    # a part at a time: an edit copies what it changes, and one endless word must not take the square of its length
    return " ".join(
        "".join(edited(word[start : start + _AT_ONCE]) for start in range(0, max(1, len(word)), _AT_ONCE))
        for word in text.split(" ")
    )


def drop_words(text: str, strength: float, rng: np.random.Generator) -> str:
    """At least one word stays."""
    words = text.split()
    if not words:
        return text
    keep = rng.random(len(words)) >= strength
    keep[int(rng.integers(len(words)))] = True
    return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)


def change_case(text: str, strength: float, rng: np.random.Generator) -> str:
    return "".join(c.swapcase() if hit else c for c, hit in zip(text, rng.random(len(text)) < strength, strict=True))


def change_punctuation(text: str, strength: float, rng: np.random.Generator) -> str:
    """Marks vanish, and others come behind words."""
    words = []
    for word in text.split():
        if rng.random() < strength:
            stripped = word.strip(_MARKS)
            word = (stripped or word) if stripped != word else word + _MARKS[int(rng.integers(len(_MARKS)))]
        words.append(word)
    return " ".join(words)


def characters(text: str, strength: float, rng: np.random.Generator) -> str:
    """All edits of letters, mixed."""
    return with_edits(text, strength, rng)


def _only(edit: str) -> "Perturbation":
    return lambda text, strength, rng: with_edits(text, strength, rng, (edit,))


Perturbation = Callable[[str, float, np.random.Generator], str]
PERTURBATIONS: dict[str, Perturbation] = {
    "characters": characters,
    **{name: _only(name) for name in EDITS},
    "word drop": drop_words,
    "casing": change_case,
    "punctuation": change_punctuation,
}
STRENGTHS = (0.05, 0.1, 0.2)


def negated(text: str) -> str | None:
    """ "not" after the first auxiliary verb; None where there is none. A classifier of opinions should notice."""
    return _VERBS.sub(lambda match: f"{match[0]} not", text, count=1) if _VERBS.search(text) else None


def names_swapped(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """The same text, said by one person and by another: the class should not depend on who."""
    first, second = (str(name) for name in rng.choice(_NAMES, 2, replace=False))
    return f"{first} says: {text}", f"{second} says: {text}"


def reworded(text: str, swap: float, delete: float, insert: float, punctuation: float, rng: np.random.Generator) -> str:
    """Words change places, are left out, said again, or get a mark before them, each with its probability; one word at
    least stays. For training, not for tests of robustness."""
    words = [word for word in text.split() if rng.random() >= delete] or text.split()[:1]
    for place in np.flatnonzero(rng.random(len(words)) < swap):
        other = int(rng.integers(len(words)))
        words[place], words[other] = words[other], words[place]
    again: dict[int, list[str]] = {}
    """by the place that it comes before, what is said again; time grows with the words, not with their square"""
    for word in [word for word in words if rng.random() < insert]:
        again.setdefault(int(rng.integers(len(words) + 1)), []).append(word)
    if again:
        words = [one for place in range(len(words) + 1) for one in (*again.get(place, ()), *words[place : place + 1])]
    marked = ([_MARKS[int(rng.integers(len(_MARKS)))], w] if rng.random() < punctuation else [w] for w in words)
    return " ".join(part for parts in marked for part in parts)
