"""Self-supervised pre-training of encoders: words are hidden and guessed (Devlin et al. 2019). Needs no labels.

Checkpoints for sentences or classes carry no head that guesses words, so it is ours: a linear map, at first the
identity, whose result is compared with the embeddings of all words. `model.pooling = "model"`: the checkpoint's own.

A record's loss is the mean over its own hidden tokens. Each record has `VARIANTS` maskings, which its own text decides;
a training step draws one, and evaluation always uses the first.
"""

import zlib
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from ..config.tables import ModelSection
from ..errors import ModelError
from ..model.output import base_of, compared, decoded, ends_apart, guessed, note_end, token_losses_at
from ..model.weights import read_weights
from ..types import IGNORED, Metrics, Reads, Records, Rows
from . import (
    LOSS,
    TOKENS_COUNTED,
    Batch,
    inputs_of,
    load_backbone,
    loss_parts,
    mean_of,
    no_constant,
    ragged,
    record_means,
    subword_ids,
    token_metrics,
    token_score,
    token_targets,
    tokens_counted,
)

HEAD = ["head"]
CLASSES, VARIANTS, READS = False, 4, Reads(label=None)
EXPORT, PIPELINE, MAIN = None, "fill-mask", LOSS
COUNTED = TOKENS_COUNTED
parts, main, constant, counted = loss_parts, mean_of, no_constant, tokens_counted
_HIDDEN, _AS_MASK, _AS_OTHER = 0.15, 0.8, 0.1
"""share of tokens that are guessed; of these, replaced by the mask, and by another token"""


class WordGuesser(nn.Module):
    """A backbone, a linear head, and the frozen embeddings as the last layer."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        size = int(backbone.config.hidden_size)
        self.head = nn.Linear(size, size)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def words(self) -> nn.Parameter:
        """(V, h): the embeddings of all words."""
        return cast(nn.Parameter, self.backbone.get_input_embeddings().weight)

    def vectors(self, inputs: Batch) -> torch.Tensor:
        """(B, T, h) of input_ids and attention_mask (B, T)."""
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        return self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state.float()

    def compared(self, vectors: torch.Tensor) -> torch.Tensor:
        """(…, h) → (…, V): with every word."""
        return vectors.to(self.words.dtype) @ self.words.T

    def forward(self, **inputs: torch.Tensor) -> MaskedLMOutput:
        """input_ids, attention_mask: (B, T). Returns logits (B, T, V)."""
        return MaskedLMOutput(logits=self.compared(self.head(self.vectors(inputs))))  # pyright: ignore[reportArgumentType]


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    if model.pooling == "model":
        return note_end(read_weights(AutoModelForMaskedLM, path, model))
    return WordGuesser(load_backbone(path, model))


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    """Raises ModelError for a tokenizer without a mask."""
    if tokenizer.mask_token_id is None:
        raise ModelError("model.backbone: its tokenizer has no mask token; masked-lm needs one, such as a BERT has")
    lists = subword_ids(rows, tokenizer, max_length)
    special, size = set(tokenizer.all_special_ids), len(tokenizer)
    hidden, wanted = [], []
    for ids in lists:
        tokens = np.asarray(ids, dtype=np.int32)
        rng = np.random.default_rng([zlib.crc32(tokens.tobytes()), variant])
        places = np.flatnonzero(~np.isin(tokens, list(special)))
        count = min(len(places), max(1, round(_HIDDEN * len(places))))
        chosen = rng.permutation(places)[:count]
        target = np.full(len(tokens), IGNORED, dtype=np.int32)
        target[chosen] = tokens[chosen]
        lots = rng.random(count)
        tokens[chosen[lots < _AS_MASK]] = tokenizer.mask_token_id
        others = chosen[(lots >= _AS_MASK) & (lots < _AS_MASK + _AS_OTHER)]
        tokens[others] = rng.integers(0, size, len(others))
        hidden.append(tokens)
        wanted.append(target)
    return ragged(hidden, np.zeros(len(lists), dtype=np.int64), wanted)


def targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    """(B, T): the token where one is hidden, −100 elsewhere."""
    return token_targets(records, indices, length)


def _at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, T, h) at places (B, M) → (B, M, h)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _guesses(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses of the hidden tokens, whether guessed, and what is wanted: (B, M) each; M is what a text of this length
    may hide, whoever is in the batch."""
    hidden = batch["targets"] != IGNORED
    most = max(1, round(_HIDDEN * hidden.shape[1]))
    places = hidden.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    wanted, base, inputs = batch["targets"].gather(1, places), base_of(module), inputs_of(batch)
    if isinstance(base, WordGuesser):
        found = base.head(_at(base.vectors(inputs), places))
        return *token_losses_at(found, wanted, base.compared, [base.words], len(base.words)), wanted
    if ends_apart(base):
        return *guessed(base, _at(decoded(base, inputs), places), wanted), wanted
    return *compared(_at(module(**inputs).logits, places), wanted), wanted


def record_losses(module: nn.Module, batch: Batch) -> torch.Tensor:
    losses, _, wanted = _guesses(module, batch)
    return record_means(losses, wanted)


def score(module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    return token_score(*_guesses(module, batch))


def metrics(scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
    """accuracy: share of hidden tokens guessed; perplexity over them."""
    return token_metrics(scores), None
