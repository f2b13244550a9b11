"""Rows → records with a tokenizer alone, as a model encodes them (`FineTuneModel.tokenised`): for looking at data
before any weights are loaded."""

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ..config.tables import ModelSection
from ..data.spelling import Spelling, spelling_of
from ..tasks import Task
from ..types import Records, Rows
from .loading import CHARACTERS, tokenizer_of


@dataclass(frozen=True)
class Reader:
    tokenizer: PreTrainedTokenizerBase
    spelling: Spelling | None


def reader_of(path: str, model: ModelSection) -> Reader:
    """path: the backbone's folder."""
    tokenizer = tokenizer_of(path)
    return Reader(tokenizer, spelling_of(model.spelling, tokenizer.get_vocab(), model.known_words))


def encoded(task: Task, rows: Rows, reader: Reader, max_length: int) -> Records:
    """Raises as `Task.encode`."""
    rows = rows.within(CHARACTERS * max_length)
    if reader.spelling is not None:
        rows = replace(rows, text=[reader.spelling.read(text) for text in rows.text])
    return task.encode(rows, reader.tokenizer, max_length)
