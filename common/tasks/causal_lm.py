"""Next-token prediction on plain text, on instructions (prompt → response) or on conversations.

The loss of a record is the mean over its own supervised tokens. Hugging Face's own causal loss averages over the tokens
of the whole batch: one record's gradient then depends on its batch-mates, and clipping bounds nothing.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ..config.tables import ModelSection
from ..data.chat_template import Encoded, encode_conversations, shortened
from ..model.output import base_of, compared, decoded, ends_apart, guessed, note_end
from ..model.weights import read_weights
from ..types import IGNORED, Metrics, Reads, Records, Rows
from . import (
    LOSS,
    TOKENS_COUNTED,
    Batch,
    beginnings,
    inputs_of,
    loss_parts,
    mean_of,
    no_constant,
    ragged,
    read_by,
    record_means,
    token_metrics,
    token_score,
    tokens_counted,
)

HEAD: list[str] = []
CLASSES, VARIANTS, READS = False, 1, Reads(label=None, turns=True)
EXPORT, PIPELINE, MAIN = "text", "text-generation", LOSS
COUNTED = TOKENS_COUNTED
parts, main, constant, counted = loss_parts, mean_of, no_constant, tokens_counted


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    return note_end(read_weights(AutoModelForCausalLM, path, model))


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    """Text, or prompt and response joined, and an end token; or a conversation as its template writes it.

    All tokens of a text are learned, of a prompt and a response those of the response, of a conversation those of the
    assistant's turns. `wanted` says which, `targets` is the first of them.
    """
    if rows.turns is not None:
        found = encode_conversations(rows, tokenizer, max_length)
    else:
        found = _joined(rows, tokenizer, max_length)
    for one in found:
        one.learned[:1] = False  # nothing is before it that it could be guessed from
    wanted = [np.where(one.learned, one.ids, IGNORED) for one in found]
    starts = np.array([_first(one) for one in found], dtype=np.int64)
    records = ragged([one.ids for one in found], starts, wanted)
    return replace(records, cut=np.array([one.cut for one in found], dtype=bool))


def _first(found: Encoded) -> int:
    return int(np.argmax(found.learned)) if found.learned.any() else len(found.ids)


def _joined(rows: Rows, tokenizer, max_length: int) -> list[Encoded]:
    """Texts, or prompts and responses, each with an end token."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompts = beginnings(rows.text, tokenizer)
    if rows.response is None:
        return [
            Encoded(ids[:max_length], np.ones(min(len(ids), max_length), bool), len(ids) > max_length)
            for ids in (prompt + end for prompt in prompts)
        ]
    answers = read_by(tokenizer, rows.response, truncation=False, add_special_tokens=False)["input_ids"]
    return [
        shortened(prompt + answer + end, np.arange(len(prompt + answer + end)) >= len(prompt), max_length)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    """(B, T): the token itself where it counts, −100 elsewhere; position t is predicted from those before it. Records
    that nothing is said of (`wanted`) count from `targets` on."""
    result = np.full((len(indices), length), IGNORED, dtype=np.int64)
    for row, index in enumerate(indices):
        part = slice(records.offsets[index], records.offsets[index + 1])
        ids = records.tokens[part]
        counts = np.arange(len(ids)) >= records.targets[index]
        if records.wanted is not None:
            counts = records.wanted[part] != IGNORED
        result[row, : len(ids)] = np.where(counts, ids, IGNORED)
    return torch.from_numpy(result)


def _guesses(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, whether guessed, and the token that is wanted, of each position but the first: (B, T−1) each."""
    return *next_tokens(module, inputs_of(batch), batch["targets"]), batch["targets"][:, 1:]


def next_tokens(module: nn.Module, inputs: Batch, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each position but the first (B, T−1), and whether it was guessed, as `token_losses_at`. wanted:
    (B, T)."""
    base, wanted = base_of(module), wanted[:, 1:]
    if ends_apart(base):
        return guessed(base, decoded(base, inputs)[:, :-1], wanted)
    return compared(module(**inputs).logits[:, :-1], wanted)


def record_losses(module: nn.Module, batch: Batch) -> torch.Tensor:
    losses, _, wanted = _guesses(module, batch)
    return record_means(losses, wanted)


def score(module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    return token_score(*_guesses(module, batch))


def metrics(scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
    """accuracy: share of next tokens guessed; perplexity over all tokens."""
    return token_metrics(scores), None
