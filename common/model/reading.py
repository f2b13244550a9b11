"""Rows → records with a tokenizer alone: what a model's encoding begins with, and a look at data without weights."""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..config.tables import ModelSection
from ..data.spelling import Spelling, spelling_of
from ..errors import ModelError, first_line, harmless
from ..tasks import Task, load_task
from ..types import CHARACTERS, Records, Rows

_FEWEST_WORDS = 5
_FIRST = 200
"""records in which words are looked for that the tokenizer does not know"""


@dataclass(frozen=True)
class Reader:
    tokenizer: PreTrainedTokenizerBase
    spelling: Spelling | None
    """how texts are read; None: as they are"""


def tokenizer_of(path: str) -> PreTrainedTokenizerBase:
    """Raises ModelError where there is none, or one without words: of a folder without its files transformers makes an
    empty one, to which every word is unknown."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # of tokenizers' own library, too
        why, advice = _why(path, error)
        raise ModelError(f"model.backbone: the tokenizer of '{path}' does not load ({why}); {advice}") from None
    if len(words := _words(tokenizer)) < _FEWEST_WORDS:
        raise ModelError(
            f"model.backbone: the tokenizer of '{path}' knows {len(words)} tokens besides its special ones; its files "
            "(tokenizer.json, or the vocabulary's) are probably missing: copy them there"
        )
    tokenizer.model_max_length = 10**9  # we cut to model.max_length; silences a warning on longer texts
    return tokenizer


def _why(path: str, error: Exception) -> tuple[str, str]:
    """What is wrong with a tokenizer, and what to do."""
    pieces = sorted(file.name for file in Path(path).glob("*.model"))
    if pieces and not (Path(path) / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        return (
            f"its tokens are in {pieces[0]} alone, which the package sentencepiece reads, and that is not installed",
            "pip install sentencepiece, or put a tokenizer.json into the folder",
        )
    return first_line(error).rstrip(": "), "its files belong into the folder"


def reader_of(path: str, model: ModelSection) -> Reader:
    """path: the backbone's folder. Raises ModelError."""
    tokenizer = tokenizer_of(path)
    if load_task(model.task).READS.label == "tags" and not tokenizer.is_fast:
        raise ModelError(
            f"model.backbone: the tokenizer of '{path}' does not say which letters a token stands for, and tags need "
            "that; allowed: one with a tokenizer.json"
        )
    return Reader(tokenizer, spelling_of(model.spelling, tokenizer.get_vocab(), model.known_words))


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Raises ModelError where the tokenizer is probably another model's, or has tokens that the model was not enlarged
    for. embeddings: tokens that the model has.

    Special tokens that texts do not use (Gemma's for an image) may lie beyond: they are read as padding.
    """
    used = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if not token.special}
    for name in ("pad", "unk", "bos", "eos", "cls", "sep", "mask"):
        if (number := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            used[number] = str(getattr(tokenizer, f"{name}_token"))
    if beyond := {number: name for number, name in used.items() if number >= embeddings}:
        first = min(beyond)
        raise ModelError(
            f"model.backbone: its tokenizer has {len(beyond)} tokens that the model has no embedding for, such as "
            f"'{harmless(beyond[first])}' (number {first}; the model has {embeddings:,}); enlarge the model "
            "(transformers' resize_token_embeddings) and save it, or leave the tokens out"
        )
    words = len(_words(tokenizer))
    if 2 * words < embeddings:
        raise ModelError(
            f"model.backbone: its tokenizer knows {words:,} tokens besides its special ones, and the model has "
            f"{embeddings:,}: it is probably another model's; put the model's own tokenizer files into the folder"
        )


def unknown_share(tokenizer: PreTrainedTokenizerBase | None, records: Records) -> float:
    """Of the first records' tokens, special ones aside, those that the tokenizer does not know."""
    unknown = None if tokenizer is None else tokenizer.unk_token_id
    if tokenizer is None or unknown is None:
        return 0.0
    tokens = records.tokens[: records.offsets[min(_FIRST, len(records))]]
    count = int((tokens == unknown).sum())
    known = int((~np.isin(tokens, tokenizer.all_special_ids)).sum())
    return count / max(1, count + known)


def _words(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids}


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
        pair = None if rows.pair is None else [spelling.read(text) for text in rows.pair]
        rows = replace(rows, text=[spelling.read(text) for text in rows.text], pair=pair)
    return task.encode(rows, tokenizer, max_length, variant)
