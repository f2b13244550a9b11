"""What of an answer a map explains: the logit of a class, of a word's tag or of the next token, or a number."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from ...common.errors import ConfigError
from ...common.types import Reads
from .runtime import softmax

OUTSIDE, HIGHER, LOWER = "O", "a higher number", "a lower number"


class Asked(Protocol):
    """A model of texts: `TorchModel`, or `Writer`."""

    module: nn.Module
    """(B, T) tokens and mask → logits: (B, K), (B, T, K) for tags, (B, 1) for a number, (B, V) of the next token"""
    labels: list[str]
    pad: int
    scale: tuple[float, float] | None

    @property
    def reads(self) -> Reads: ...

    @property
    def tokenizer(self) -> Any: ...

    def as_read(self, text: str) -> str:
        """The text that is cut into tokens."""
        ...

    def encoded(self, text: str) -> tuple[list[int], list[int | None], list[tuple[int, int]]]:
        """Of a text as read: token ids; which word each is a piece of, None for a mark; and its letters: from, to. Of
        tags a word is what stands between blanks, of which there is one between two words."""
        ...


@dataclass(frozen=True)
class Goal:
    """One number of a row of the output."""

    place: tuple[int, ...]
    label: str
    """what more of it speaks for"""
    word: int | None = None
    """the word that is tagged"""


@dataclass(frozen=True)
class Split:
    """A text as the model reads it."""

    ids: list[int]
    words: list[str]
    """as they are read; of tags those between blanks, some of which may have no token"""
    of_word: np.ndarray
    """(T,) which of the words a token is a piece of; −1: a mark"""

    def without(self, gone: np.ndarray, pad: int) -> list[int]:
        """The token ids with padding for the words that are gone; marks stay. gone: (T,) bool."""
        return np.where(gone & (self.of_word >= 0), pad, self.ids).tolist()


def split(model: Asked, text: str) -> Split:
    """Raises ConfigError for a text without words."""
    words: list[str] = []
    text = model.as_read(text)
    ids, numbers, spans = model.encoded(text)
    of_word, last = np.full(len(ids), -1), None
    for place, (number, (start, end)) in enumerate(zip(numbers, spans, strict=True)):
        if number is None:
            continue
        if number != last:
            words.append(text[start:end])
            last = number
        else:
            words[-1] += text[start:end]
        of_word[place] = len(words) - 1 if model.reads.label != "tags" else number
    if not words:
        raise ConfigError("TEXT: nothing that the tokenizer knows was received; give a text")
    return Split(ids, words if model.reads.label != "tags" else text.split()[: of_word.max() + 1], of_word)


def goals(model: Asked, row: np.ndarray, text: Split) -> list[Goal]:
    """What there is to explain of a row of the output: the answer; of tags each that is not O, or, where all are, the
    likeliest that would not be."""
    kind = model.reads.label
    if kind == "number":
        return [Goal((0,), HIGHER)]
    if kind == "class":
        best = int(row.argmax())
        return [Goal((best,), model.labels[best])]
    if kind is None:
        best = int(row.argmax())
        return [Goal((best,), model.tokenizer.decode([best]))]
    read = np.unique(text.of_word[text.of_word >= 0])
    tags = [tag_of(model, row, text, int(word)) for word in read]
    if found := [tag for tag in tags if tag.label != OUTSIDE]:
        return found
    firsts = [tag.place[0] for tag in tags]
    named = [index for index, label in enumerate(model.labels) if label != OUTSIDE]
    shares = softmax(row[firsts])[:, named]
    word, best = np.unravel_index(shares.argmax(), shares.shape)
    return [Goal((firsts[word], named[best]), model.labels[named[best]], int(read[word]))]


def tag_of(model: Asked, row: np.ndarray, text: Split, word: int) -> Goal:
    """The tag of one word: that of its first token. Raises ConfigError for a word that is not read."""
    places = np.flatnonzero(text.of_word == word)
    if word < 0 or not len(places):
        raise ConfigError(f"word: received {word}; allowed: 0 to {len(text.words) - 1}, of the words that are read")
    first = int(places[0])
    best = int(row[first].argmax())
    return Goal((first, best), model.labels[best], word)


def worth(model: Asked, outputs: np.ndarray, goal: Goal) -> np.ndarray:
    """(N, …) outputs → (N,): the probability of what is explained, or the number."""
    rows = outputs[(slice(None), *goal.place[:-1])]  # (N, K)
    if model.reads.label != "number":
        return softmax(rows)[:, goal.place[-1]]
    mean, deviation = model.scale or (0.0, 1.0)
    return rows[:, goal.place[-1]] * deviation + mean


def unit(model: Asked) -> float:
    """What a score of one is worth: a logit, or a standard deviation of the labels."""
    return (model.scale or (0.0, 1.0))[1] if model.reads.label == "number" else 1.0


def title(model: Asked, goal: Goal, text: Split, value: float) -> str:
    """The answer in words."""
    if model.reads.label == "number":
        return f"{value:.6g}"
    share = f"({100 * value:.1f} %)"
    if goal.word is not None:
        return f"{goal.label} for “{text.words[goal.word]}” {share}"
    return f"next: “{goal.label}” {share}" if model.reads.label is None else f"{goal.label} {share}"
