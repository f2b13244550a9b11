"""Direct preference optimisation (Rafailov et al. 2023, eq. 7): of two answers to a prompt, one becomes the likelier.

A record is one pair. With the answers' log-probabilities, summed over their own tokens, its loss is

    −log σ(β·m),  m = [log π(chosen) − log π_ref(chosen)] − [log π(rejected) − log π_ref(rejected)],

a function of that pair alone. π_ref is the same model with what is trained switched off, without a gradient. Each of
the two texts is read in a pass of its own, with one row a record, so that hooks of per-record gradients add both passes
up to one gradient a pair; a row is as long as the longer of the two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn

from ..types import IGNORED, Metrics, Reads, Records, Rows
from . import ACCURACY, Batch, Counted, beginnings, mean_of, no_constant, ragged, read_by
from .causal_lm import build, next_tokens

__all__ = ["build", "constant", "counted", "encode", "main", "metrics", "parts", "record_losses", "score", "targets"]

HEAD: list[str] = []
CLASSES, VARIANTS, READS = False, 1, Reads(label=None, pairs=True)
EXPORT, PIPELINE, MAIN = "text", "text-generation", ACCURACY
COUNTED = (Counted(ACCURACY),)
main, constant = mean_of, no_constant


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    """The prompt with the chosen answer in `tokens`, the rejected answer beside it in `wanted`; an end token closes
    each, and `IGNORED` fills the shorter one up. `targets`: where the answers begin."""
    if rows.response is None or rows.rejected is None:
        raise ValueError("rows without two answers cannot be compared")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    begin = next(int(i) for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if i is not None)
    prompts = beginnings(rows.text, tokenizer)
    answers = [
        read_by(tokenizer, texts, truncation=False, add_special_tokens=False)["input_ids"]
        for texts in (rows.response, rows.rejected)
    ]
    lists, starts, wanted = [], np.empty(len(prompts), dtype=np.int64), []
    for i, (prompt, *pair) in enumerate(zip(prompts, *answers, strict=True)):
        prompt = prompt or [begin]
        # a long prompt loses its beginning, the same for both, so that half of the length stays for the answers
        room = max(max_length // 2, max_length - len(prompt))
        pair = [(answer + end)[:room] for answer in pair]
        prompt = prompt[-(max_length - max(map(len, pair))) :]
        both = np.array(list(zip_longest(*pair, fillvalue=IGNORED)), dtype=np.int32).reshape(-1, 2)  # (T − prompt, 2)
        lists.append(np.concatenate([prompt, both[:, 0]]).astype(np.int32))
        wanted.append(np.concatenate([np.full(len(prompt), IGNORED), both[:, 1]]).astype(np.int32))
        starts[i] = len(prompt)
    return ragged(lists, starts, wanted)


def targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    """(B, 2, T): the tokens of the chosen and of the rejected answer in their places, `IGNORED` elsewhere."""
    if records.wanted is None:
        raise ValueError("records without two answers cannot be compared")
    result = np.full((len(indices), 2, length), IGNORED, dtype=np.int64)
    for row, index in enumerate(indices):
        own, first = slice(records.offsets[index], records.offsets[index + 1]), records.targets[index]
        tokens = records.tokens[own]
        result[row, 0, first : len(tokens)] = tokens[first:]
        result[row, 1, first : len(tokens)] = records.wanted[own][first:]
    return torch.from_numpy(result)


def _texts(batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Token ids, mask and answer (B, T) of the prompts with the chosen answers, and with the rejected ones."""
    answers = batch["targets"] != IGNORED  # (B, 2, T)
    begin = answers.any(1).int().argmax(1, keepdim=True)  # (B, 1)
    prompt = torch.arange(answers.shape[2], device=answers.device) < begin
    for number in range(2):
        wanted, answer = batch["targets"][:, number], answers[:, number]
        ids = torch.where(answer, wanted, torch.where(prompt, batch["input_ids"], 0))
        yield ids, (prompt | answer).long(), wanted


def _log_probability(module: nn.Module, ids: torch.Tensor, mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(B,): log π of the tokens that are wanted, added up. ids, mask, wanted: (B, T)."""
    return -next_tokens(module, {"input_ids": ids, "attention_mask": mask}, wanted)[0].sum(1)


@contextmanager
def _switched_off(module: nn.Module) -> Iterator[None]:
    """Within, the model is what it was before training. PEFT switches gradients on afterwards, also those of A factors
    that stay frozen, so they are put back."""
    if not isinstance(module, PeftModel):
        raise TypeError(f"{type(module).__name__} received; only PEFT's model can be read without what is trained")
    wanted = [(p, p.requires_grad) for p in module.parameters()]
    try:
        with module.disable_adapter():
            yield
    finally:
        for p, needs_gradient in wanted:
            p.requires_grad_(needs_gradient)


def _margins(module: nn.Module, batch: Batch) -> torch.Tensor:
    """(B,): m of each pair; gradients flow."""
    texts = list(_texts(batch))
    with torch.no_grad(), _switched_off(module):
        chosen_before, rejected_before = (_log_probability(module, *text) for text in texts)
    chosen, rejected = (_log_probability(module, *text) for text in texts)
    return (chosen - chosen_before) - (rejected - rejected_before)


def record_losses(module: nn.Module, batch: Batch) -> torch.Tensor:
    return -F.logsigmoid(batch["beta"] * _margins(module, batch))


def score(module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    margins = batch["beta"] * _margins(module, batch)
    return {"loss": -F.logsigmoid(margins).cpu().numpy(), "margin": margins.cpu().numpy()}


def metrics(scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
    """accuracy: share of pairs with a positive margin β·m, those of exactly 0 (all, before training) counting half;
    margin: its mean."""
    margins = scores["margin"]
    return {
        "accuracy": float(parts(scores, classes)[:, 0].mean()),
        "margin": float(margins.mean()),
        "loss": float(scores["loss"].mean()),
    }, None


def parts(scores: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """(N, 2): 1 for a positive margin, ½ for one of exactly 0, and 1."""
    margins = scores["margin"]
    return np.stack([(margins > 0) + 0.5 * (margins == 0), np.ones(len(margins))], axis=1)


def counted(scores: dict[str, np.ndarray]) -> np.ndarray:
    return parts(scores, 0)[:, :1]
