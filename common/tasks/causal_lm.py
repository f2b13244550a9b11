"""Next-token prediction on plain text or on instructions (prompt → response).

The loss of a record is the mean over its own supervised tokens. Hugging Face's own causal loss averages over the tokens
of the whole batch: one record's gradient then depends on its batch-mates, and clipping bounds nothing.
"""

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ..config.tables import ModelSection
from ..model.output import base_of, decoded, ends_apart, guessed, note_end
from ..model.weights import read_weights
from ..types import IGNORED, Metrics, Reads, Records, Rows
from . import ACCURACY, Batch, inputs_of, ragged, record_means, token_losses, token_metrics, token_score

HEAD: list[str] = []
CLASSES, VARIANTS, READS = False, 1, Reads(label=None)
EXPORT, PIPELINE, MAIN = "text", "text-generation", ACCURACY


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    return note_end(read_weights(AutoModelForCausalLM, path, model))


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    """Text, or prompt and response joined; an end token closes each. The loss counts from the response on."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompts = tokenizer(rows.text, truncation=False, padding=False, add_special_tokens=True)["input_ids"]
    if rows.response is None:
        lists = [(ids + end)[:max_length] for ids in prompts]
        return ragged(lists, np.ones(len(lists), dtype=np.int64))
    answers = tokenizer(rows.response, truncation=False, padding=False, add_special_tokens=False)["input_ids"]
    lists, starts = [], np.empty(len(prompts), dtype=np.int64)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        # a long prompt loses its beginning, so that half of the length stays for the answer
        answer = (answer + end)[: max(max_length // 2, max_length - len(prompt))]
        prompt = prompt[-(max_length - len(answer)) :]
        lists.append(prompt + answer)
        starts[i] = max(1, len(prompt))
    return ragged(lists, starts)


def targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    """(B, T): the token itself where it counts, −100 elsewhere; position t is predicted from those before it."""
    result = np.full((len(indices), length), IGNORED, dtype=np.int64)
    for row, index in enumerate(indices):
        ids = records.tokens[records.offsets[index] : records.offsets[index + 1]]
        first = records.targets[index]
        result[row, first : len(ids)] = ids[first:]
    return torch.from_numpy(result)


def _guesses(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, whether guessed, and the token that is wanted, of each position but the first: (B, T−1) each."""
    base, wanted = base_of(module), batch["targets"][:, 1:]
    if ends_apart(base):
        return *guessed(base, decoded(base, inputs_of(batch))[:, :-1], wanted), wanted
    logits = module(**inputs_of(batch)).logits[:, :-1].float()
    return token_losses(logits, wanted)[0], logits.argmax(-1) == wanted, wanted


def record_losses(module: nn.Module, batch: Batch) -> torch.Tensor:
    losses, _, wanted = _guesses(module, batch)
    return record_means(losses, wanted)


def score(module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    return token_score(*_guesses(module, batch))


def metrics(scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
    """accuracy: share of next tokens guessed; perplexity over all tokens."""
    return token_metrics(scores), None
