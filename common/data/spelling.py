"""Misspelled words read as known ones, before a model sees them: a defence against noise on letters.

What becomes of a text depends on that text and on public words alone: under differential privacy a record stays one
record. After Pruthi et al. 2019 (a word recogniser before the model), here with symmetric deletes (SymSpell, Garbe) and
optimal string alignment distance in its place.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from symspellpy import SymSpell, Verbosity

Words = Literal["none", "vocabulary", "english"]

_SHORTEST, _FURTHEST, _LETTERS_AN_EDIT = 3, 2, 3
"""letters of the shortest word that is corrected; most edits of one, and one more for every so many letters"""
_WORD = re.compile(r"[^\W\d_]+")
_CAPITALS = re.compile(r"[A-ZÀ-ÖØ-Þ].*[A-ZÀ-ÖØ-Þ]")
_LOOKALIKES = str.maketrans(
    "аеіјорсѕухһԁԛԝѵАВЕЅІЈКМНОРСТУХҮԌαγινορυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeijopcsyxhdqwvABESIJKMHOPCTYXYGayivopuABEZHIKMNOPTYX",
)
"""Cyrillic and Greek letters → the Latin ones they are taken for (confusables of Unicode TR 39)"""


class Spelling:
    """Reads texts as words that are known."""

    def __init__(self, words: Words, vocabulary: Mapping[str, int], known: Iterable[str] = ()) -> None:
        """words: what misspelled ones are read as: those of the vocabulary, or English ones by how common they are.

        vocabulary: a tokenizer's, piece → number; of its words as near, that of the least number is taken, which
        vocabularies give to the commonest. Its words stay in either case. known: more words, which come first among
        those as near.
        """
        self.words: Words = words
        self.known_words = tuple(known)
        ranks = _whole_words(vocabulary)
        last = max(ranks.values(), default=0)
        counts = _english() if words == "english" else {word: last - rank + 1 for word, rank in ranks.items()}
        counts |= dict.fromkeys((word.lower() for word in self.known_words), max(counts.values(), default=0) + 1)
        self._known = SymSpell(max_dictionary_edit_distance=_FURTHEST)
        for word, count in counts.items():
            if len(word) >= _SHORTEST - 1:
                self._known.create_dictionary_entry(word, count)
        self._right = ranks.keys() | counts.keys()
        self._corrected = lru_cache(maxsize=1 << 16)(self._nearest)

    def over(self, vocabulary: Mapping[str, int]) -> "Spelling":
        """The same for another tokenizer."""
        return Spelling(self.words, vocabulary, self.known_words)

    def read(self, text: str) -> str:
        """The text with unknown words as the nearest known ones, and letters that look Latin as Latin ones where most
        are Latin. Blanks, marks and digits stay, and so do words that nothing known is near to, and those with several
        capitals in a text that has small letters: names of things, more often than not."""
        if not text.isascii():
            text = _as_latin(text)
        shouted = text.isupper()
        return _WORD.sub(lambda m: m[0] if not shouted and _CAPITALS.search(m[0]) else self._corrected(m[0]), text)

    def _nearest(self, word: str) -> str:
        small = word.lower()
        if len(small) < _SHORTEST or small in self._right:
            return word
        edits = min(_FURTHEST, max(1, len(small) // _LETTERS_AN_EDIT))
        found = self._known.lookup(small, Verbosity.TOP, max_edit_distance=edits)
        if not found:
            return word
        term = found[0].term
        return term.upper() if word.isupper() else term.capitalize() if word[0].isupper() else term


def spelling_of(words: Words, vocabulary: Mapping[str, int], known: Iterable[str]) -> Spelling | None:
    """What the settings of a model say; None: texts are read as they are."""
    return None if words == "none" else Spelling(words, vocabulary, known)


def _english() -> dict[str, int]:
    """Words → how often they are written; the list that symspellpy carries."""
    lines = files("symspellpy").joinpath("frequency_dictionary_en_82_765.txt").read_text(encoding="utf-8-sig")
    return {word: int(count) for word, count in (line.split() for line in lines.splitlines())}


def _whole_words(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Lower-case words of letters → the least number of a piece that is that word and begins one.

    Pieces that go on with a word are marked "##" (WordPiece), or are those without a mark where others have one (BPE's
    "Ġ", SentencePiece's "▁").
    """
    start = next((mark for mark in "Ġ▁" if sum(piece.startswith(mark) for piece in vocabulary) > 1), "")
    words: dict[str, int] = {}
    for piece, number in vocabulary.items():
        word = piece.removeprefix(start).lower()
        if piece.startswith(start) and word.isalpha():
            words[word] = min(number, words.get(word, number))
    return words


def _as_latin(text: str) -> str:
    """Words of letters that are Latin or look so, written in Latin ones, where most letters of the text are Latin."""
    letters = [c for c in text if c.isalpha()]
    if 2 * sum(map(_latin, letters)) <= len(letters):
        return text
    return _WORD.sub(_if_latin, text)


def _if_latin(match: re.Match[str]) -> str:
    folded = match[0].translate(_LOOKALIKES)
    return folded if all(map(_latin, folded)) else match[0]


def _latin(letter: str) -> bool:
    return letter < "ɐ"  # the end of Latin Extended-B
