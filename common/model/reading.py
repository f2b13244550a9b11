"""Rows → records with a tokenizer alone: what a model's encoding begins with, and a look at data without weights."""

import os
from dataclasses import dataclass, replace

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..config.tables import ModelSection
from ..data.spelling import Spelling, spelling_of
from ..tasks import Task
from ..types import CHARACTERS, Records, Rows


@dataclass(frozen=True)
class Reader:
    tokenizer: PreTrainedTokenizerBase
    spelling: Spelling | None
    """how texts are read; None: as they are"""


def tokenizer_of(path: str) -> PreTrainedTokenizerBase:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.model_max_length = 10**9  # we cut to model.max_length; silences a warning on longer texts
    return tokenizer


def reader_of(path: str, model: ModelSection) -> Reader:
    """path: the backbone's folder."""
    tokenizer = tokenizer_of(path)
    return Reader(tokenizer, spelling_of(model.spelling, tokenizer.get_vocab(), model.known_words))


def encoded(
    task: Task,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase | None,
    spelling: Spelling | None,
    max_length: int,
    variant: int = 0,
) -> Records:
    """Of each text the part is read that can become tokens: what a record costs must not grow with what is cut off
    anyway, or one long record could end a site's round. Raises as `Task.encode`."""
    rows = rows.within(CHARACTERS * max_length)
    if spelling is not None:
        rows = replace(rows, text=[spelling.read(text) for text in rows.text])
    return task.encode(rows, tokenizer, max_length, variant)
