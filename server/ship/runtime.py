"""What a finished model is asked and answers, and a variant of it that runs on onnxruntime: a folder with model.onnx,
variant.json and, where it reads text, tokenizer.json.

No torch, no transformers: what a small machine needs to answer is numpy, tokenizers and onnxruntime.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ...common.data.images import ImageForm
from ...common.data.spelling import Spelling, Words, spelling_of
from ...common.data.words import with_blanks, word_numbers
from ...common.errors import ConfigError
from ...common.run_folder import own_file
from ...common.types import DEFAULT_TASK, Reads, Rows
from ...common.whole import write_whole

VARIANTS = "variants"
"""folder of a run that holds a folder for each"""
MODEL, TOKENIZER, FACTS = "model.onnx", "tokenizer.json", "variant.json"
UNREAD = "?"
"""the tag of a word beyond what the model reads"""
_BATCH = 64
_SEGMENTS = "token_type_ids"
_LEFT_OUT = ["SkipLayerNormFusion"]
"""of onnxruntime's rewrites: its kernel takes five times as long as the sum and the norm that it joins, a quarter of an
int8 model's time (1.32.0, measured on one and two threads)"""


def fault_of(text: str) -> str | None:
    """What makes a text one that no model reads; None: nothing."""
    if not text.strip():
        return "an empty text was received"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "a text with half a character (a lone surrogate) was received"
    return None


def input_names(reads: Reads, segments: bool) -> list[str]:
    """Names of a model's arguments, in their order. segments: whether it is told which of two texts a token is of."""
    return [
        *(["input_ids", "attention_mask"] if reads.text else []),
        *([_SEGMENTS] if segments else []),
        *(["pixel_values"] if reads.images else []),
    ]


@dataclass(frozen=True)
class Variant:
    """variant.json: what a model.onnx is."""

    name: str
    what: str
    """in words: how it came about"""
    labels: list[str]
    max_length: int
    """tokens a text is cut to"""
    pad: int
    sha256: str
    """of model.onnx"""
    task: str = DEFAULT_TASK
    size: tuple[int, int, int] | None = None
    """channels, height and width of an image"""
    scale: tuple[float, float] | None = None
    """of a number: mean and standard deviation of the numbers that it was taught in"""
    spelling: Words = "none"
    """words that misspelled ones are read as"""
    known_words: tuple[str, ...] = ()
    """known beside those"""
    facts: dict[str, Any] = field(default_factory=dict)
    two_texts: bool = False
    """whether a record has a second text"""
    several: bool = False
    """whether a record may have several classes"""

    def save(self, folder: Path) -> None:
        write_whole(folder / FACTS, json.dumps(asdict(self), indent=2) + "\n")


def load_variant(folder: Path) -> Variant:
    """Raises ConfigError: no variant, or a model.onnx that is not the one that was made."""
    try:
        variant = Variant(**json.loads(own_file(folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"{folder}: no {FACTS} there; make variants with confide compress RUN") from None
    if variant.spelling not in get_args(Words):
        raise ConfigError(
            f"{folder / FACTS}: spelling: received {variant.spelling!r}; allowed: {', '.join(get_args(Words))}"
        )
    if not (folder / MODEL).is_file() or file_sha256(folder / MODEL) != variant.sha256:
        raise ConfigError(f"{folder / MODEL}: is missing or was changed since it was made; make it again")
    return variant


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Answering(ABC):
    """A model that answers rows. Its first five attributes are those of `Variant`."""

    task: str
    labels: list[str]
    pad: int
    size: tuple[int, int, int] | None
    scale: tuple[float, float] | None
    spelling: Spelling | None
    reads: Reads
    """its task's"""
    two_texts: bool = False
    """whether a record has a second text"""
    segments: bool = False
    """whether the model is told which of the two a token is of"""

    def joined(self, texts: Sequence[str], pair: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Of models of two texts: the token ids of each two, and, with `segments`, which of the two each token is
        of."""
        raise NotImplementedError

    @abstractmethod
    def pieces(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int | None]]]:
        """The token ids of each text, and for tags the number of each token's word."""

    def as_read(self, text: str) -> str:
        """The text that is cut into tokens; its blanks are those of the text."""
        return text if self.spelling is None else self.spelling.read(text)

    def given(self, texts: Sequence[str]) -> list[str]:
        """Texts as a tokenizer takes them: as they are read; of tags the words, one blank between each."""
        read = [self.as_read(text) for text in texts]
        return [with_blanks(text) for text in read] if self.reads.label == "tags" else read

    @abstractmethod
    def run(self, inputs: list[np.ndarray]) -> np.ndarray:
        """The logits of a batch; inputs: what `input_names` says, padded."""

    @property
    def form(self) -> ImageForm | None:
        """What images are scaled to when they are read; None where none are."""
        return None if self.size is None else ImageForm(*self.size)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """(N, K) float32; for tasks that give one class for a text."""
        return np.stack(self.outputs(Rows("texts", list(texts))))

    def outputs(self, rows: Rows) -> list[np.ndarray]:
        """For each row (K,) logits, (W, K) of its words, NaN where one is not read, or a number (1,)."""
        words: list[list[int | None]] = []
        segments: list[list[int]] = []
        if self.two_texts:
            ids, segments = self.joined(rows.text, rows.pair or [])
        else:
            ids, words = self.pieces(rows.text) if self.reads.text else ([[] for _ in rows.text], [])
        found: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(ids)
        order = np.argsort([len(one) for one in ids], kind="stable")
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            inputs = list(padded([ids[i] for i in part], self.pad)) if self.reads.text else []
            if self.segments:
                inputs.append(padded([segments[i] for i in part], 0)[0])
            if self.reads.images and rows.images is not None:
                inputs.append(rows.images[part].astype(np.float32))
            for i, row in zip(part, self.run(inputs), strict=True):
                found[i] = row if self.reads.label != "tags" else by_word(row, words[i], len(rows.text[i].split()))
        return found

    def answers(self, rows: Rows) -> list[dict[str, Any]]:
        """For each row, by what the task gives:

        a class: label, probability, probabilities (of each class);
        several classes: labels (those more likely than not), probabilities (of each class by itself);
        tags: words, tags (`UNREAD` for a word that the model does not read), probabilities (of those tags);
        a number: number.
        """
        outputs = self.outputs(rows)
        if self.reads.label == "class":
            return [self._class(row) for row in softmax(np.stack(outputs))]
        if self.reads.label == "classes":
            return [self._several(row) for row in np.stack(outputs)]
        if self.reads.label == "tags":
            return [self._tags(text.split(), row) for text, row in zip(rows.text, outputs, strict=True)]
        mean, deviation = self.scale or (0.0, 1.0)
        return [{"number": float(row.item()) * deviation + mean} for row in outputs]

    def _class(self, row: np.ndarray) -> dict[str, Any]:
        best = int(row.argmax())
        probabilities = {label: round(float(p), 6) for label, p in zip(self.labels, row, strict=True)}
        return {
            "label": self.labels[best],
            "probability": probabilities[self.labels[best]],
            "probabilities": probabilities,
        }

    def _several(self, row: np.ndarray) -> dict[str, Any]:
        likely = 1 / (1 + np.exp(-row.astype(np.float64)))
        probabilities = {label: round(float(p), 6) for label, p in zip(self.labels, likely, strict=True)}
        return {
            "labels": [label for label, p in zip(self.labels, row, strict=True) if p > 0],
            "probabilities": probabilities,
        }

    def _tags(self, words: list[str], logits: np.ndarray) -> dict[str, Any]:
        read = ~np.isnan(logits[:, 0])
        rows = softmax(np.nan_to_num(logits))
        tags = [self.labels[i] if there else UNREAD for i, there in zip(rows.argmax(1), read, strict=True)]
        shares = [round(float(p), 6) if there else None for p, there in zip(rows.max(1), read, strict=True)]
        return {"words": words, "tags": tags, "probabilities": shares}

    def example(self, count: int) -> Rows:
        """Rows for trying it out."""
        images = None if self.size is None else np.zeros((count, *self.size), dtype=np.uint8)
        texts = ["a text of some words"] * count
        return Rows("examples", texts, images=images, pair=texts if self.two_texts else None)


class OnnxModel(Answering):
    """A variant, on a number of threads."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Raises ConfigError."""
        self.variant = load_variant(folder)
        self.task, self.labels, self.pad = self.variant.task, self.variant.labels, self.variant.pad
        self.size, self.scale = self.variant.size, self.variant.scale
        self.spelling = None
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise ConfigError(f"{folder}: needs {error.name}; pip install 'confide[ship]'") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / MODEL), options, providers=["CPUExecutionProvider"], disabled_optimizers=_LEFT_OUT
        )
        self.two_texts = self.variant.two_texts
        self.reads = self._read_of_graph()
        if self.reads.text:
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(self.variant.max_length)
            words, known = self.variant.spelling, self.variant.known_words
            self.spelling = spelling_of(words, self._tokenizer.get_vocab(), known)

    def _read_of_graph(self) -> Reads:
        """Without torch there is no task to ask: the graph says what it takes, and that it gives (B, T, K) for tags;
        a number has no classes."""
        inputs = {one.name for one in self._session.get_inputs()}
        self.segments = _SEGMENTS in inputs
        rank = len(self._session.get_outputs()[0].shape)
        one = "classes" if self.variant.several else "class"
        label = "tags" if rank == 3 else one if self.labels else "number"
        return Reads(label, text="input_ids" in inputs, images="pixel_values" in inputs)

    def pieces(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int | None]]]:
        given = self.given(texts)
        encoded = self._tokenizer.encode_batch(given)
        ids = [one.ids for one in encoded]
        if self.reads.label != "tags":
            return ids, []
        return ids, [word_numbers(one.offsets, text) for one, text in zip(encoded, given, strict=True)]

    def joined(self, texts: Sequence[str], pair: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        both = [*zip(self.given(texts), self.given(pair), strict=True)]
        found = self._tokenizer.encode_batch(both)
        return [one.ids for one in found], [one.type_ids for one in found]

    def run(self, inputs: list[np.ndarray]) -> np.ndarray:
        names = input_names(self.reads, self.segments)
        return np.asarray(self._session.run(None, dict(zip(names, inputs, strict=True)))[0])


def by_word(logits: np.ndarray, words: list[int | None], count: int) -> np.ndarray:
    """(T, K) of tokens → (count, K) of words, each that of its first token; words: the number of each token's word."""
    result = np.full((count, logits.shape[1]), np.nan, dtype=np.float32)
    for place in range(len(words) - 1, -1, -1):
        if (word := words[place]) is not None:
            result[word] = logits[place]
    return result


def padded(ids: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, T) int64 tokens and mask, padded on the right to the longest."""
    longest = max(len(one) for one in ids)
    tokens = np.full((len(ids), longest), pad, dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, one in enumerate(ids):
        tokens[row, : len(one)], mask[row, : len(one)] = one, 1
    return tokens, mask


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) → (N, K)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
