"""`confide data show`: some records of a run's data as its model gets them, and which of their tokens are learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..common.config.resolve import resolve
from ..common.config.run import RunConfig
from ..common.data.sources import read_rows
from ..common.errors import ConfigError
from ..common.model.backbones import resolve_backbone
from ..common.model.reading import encoded, reader_of
from ..common.tasks import load_task
from ..common.types import IGNORED, Records

SOURCES = ("train", "validation", "test")


@dataclass(frozen=True)
class Preview:
    """One record."""

    where: str
    """file and row"""
    parts: list[tuple[str, bool]]
    """its tokens as text, special ones included, and whether they are learned"""
    tokens: int
    learned: int | None
    """tokens that the loss counts; None: it counts one answer for the record"""
    answer: str | None
    """the class, the number, or the tags, of tasks that have some"""
    cut: bool
    """whether `model.max_length` is too short for it"""


def previews(config: RunConfig, name: str | None, count: int) -> list[Preview]:
    """The first `count` records of one of the run's sources.

    name: one of `SOURCES`; None: train, where the run names it, or else test. Raises ConfigError, DataError,
    ModelError.
    """
    if not load_task(config.model.task).READS.text:
        raise ConfigError(f"model.task: '{config.model.task}' received, which reads no text; there is nothing to show")
    config = resolve(config)
    task = load_task(config.model.task)
    source = _source(config, name)
    reader = reader_of(resolve_backbone(config.model.backbone), config.model)
    rows = read_rows(source, config.data, list(config.data.labels or []) if task.CLASSES else None, reads=task.READS)
    rows = rows.take(np.arange(min(count, len(rows))))
    records = encoded(task, rows, reader.tokenizer, reader.spelling, config.model.max_length)
    return [_preview(config, reader.tokenizer, records, place, rows.where(place)) for place in range(len(records))]


def _source(config: RunConfig, name: str | None) -> str:
    if name is not None and name not in SOURCES:
        raise ConfigError(f"--source: received '{name}'; allowed: {', '.join(SOURCES)}")
    source = getattr(config.data, name) if name else config.data.train or config.data.test
    if source is None:
        raise ConfigError(f"--source: received '{name}', and the run names no data.{name}; choose another one")
    return str(source)


def _preview(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, records: Records, place: int, where: str
) -> Preview:
    part = slice(records.offsets[place], records.offsets[place + 1])
    ids, learned = records.tokens[part], None
    if records.wanted is not None:
        learned = records.wanted[part] != IGNORED
    runs = list(_runs(tokenizer, ids, np.zeros(len(ids), bool) if learned is None else learned))
    cut = records.cut is not None and bool(records.cut[place])
    number = None if learned is None else int(learned.sum())
    return Preview(where, runs, len(ids), number, _answer(config, records, place), cut)


def _runs(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, learned: np.ndarray) -> Iterator[tuple[str, bool]]:
    """Neighbouring tokens of which all are learned, or none, as text."""
    for flag, group in groupby(zip(ids.tolist(), learned.tolist(), strict=True), key=lambda pair: pair[1]):
        yield str(tokenizer.decode([token for token, _ in group], skip_special_tokens=False)), bool(flag)


def _answer(config: RunConfig, records: Records, place: int) -> str | None:
    label, names = load_task(config.model.task).READS.label, list(config.data.labels or [])
    if label == "class":
        return f"class: {names[int(records.targets[place])]}"
    if label == "classes":
        own = [name for name, there in zip(names, records.targets[place], strict=True) if there]
        return f"classes: {', '.join(own) or 'none'}"
    if label == "number":
        mean, deviation = config.data.scale or (0.0, 1.0)
        return f"number: {records.targets[place] * deviation + mean:g}"
    if label == "tags" and records.wanted is not None:
        tags = records.wanted[records.offsets[place] : records.offsets[place + 1]]
        return f"tags: {' '.join(names[tag] for tag in tags if tag != IGNORED)}"
    return None
