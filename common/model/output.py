"""The end of a language model, where a vector becomes a logit for every token there is, in pieces of fixed shape.

A vocabulary of 262,144 × 64 records × 128 tokens in float32 is 8.6 GB a copy. Here logits are computed only where the
loss counts, some hundred positions at a time; each piece's gradient is taken at once, so that nothing of positions ×
vocabulary outlives its piece. Pieces of one batch have one shape, which follows from the batch's: a position's numbers
do not depend on what else is in the piece (`proof.py` looks at it, as at everything).
"""

import copy
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..types import IGNORED
from .limits import input_embeddings, positions

_NUMBERS = 2**25
"""logits of a piece at most: 128 MiB in float32"""
_FEWEST, _MOST = 16, 1024
"""positions of a piece"""
_MARK = "output_apart"
"""attribute of a model: whether its end was found to give the same by itself"""
_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""relative difference of logits that two ways of computing them may have"""

Model = TypeVar("Model", bound=PreTrainedModel)
End = Callable[[torch.Tensor], torch.Tensor]
"""(…, n, h) → (…, n, V)"""


class _Answer(BaseModelOutputWithPast):
    """What a decoder returns, and nothing where more is asked for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return


class _Given(nn.Module):
    """In the place of a decoder: gives the vectors that it was made with."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    @property
    def decoder(self) -> "_Given":
        """Some architectures ask for the decoder's decoder."""
        return self

    def forward(self, *_: object, **__: object) -> BaseModelOutputWithPast:
        return _Answer(last_hidden_state=cast(Any, self.hidden))


def base_of(module: nn.Module) -> nn.Module:
    return module.get_base_model() if isinstance(module, PeftModel) else module


def end_of(base: nn.Module) -> End:
    """What a model with a head for tokens computes behind its decoder, soft caps and scales included."""
    prefix = cast(str, base.base_model_prefix)

    def end(hidden: torch.Tensor) -> torch.Tensor:
        rest = copy.copy(base)
        rest._modules = {**base._modules, prefix: _Given(hidden)}
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        return rest(input_ids=tokens).logits

    return end


def note_end(base: Model) -> Model:
    """Finds out once, on a few tokens, whether the model's end gives for some of its decoder's vectors what it gives
    for them among all. Where it does not, logits are computed whole."""
    decoder = getattr(base, base.base_model_prefix, None)
    apart = isinstance(decoder, nn.Module) and decoder is not base
    if apart and base.device.type != "meta":
        was, tokens = base.training, _few_tokens(base)
        base.eval()
        with torch.no_grad():
            try:
                whole = base(input_ids=tokens).logits[:, [-1, 0]]
                pieces = end_of(base)(cast(nn.Module, decoder)(input_ids=tokens).last_hidden_state[:, [-1, 0]])
                most = float((whole.float() - pieces.float()).abs().max())
                apart = most <= _ALIKE.get(whole.dtype, 0.0) * float(whole.float().abs().max())
            except Exception:  # of architectures that no one here knows
                apart = False
        base.train(was)
    setattr(base, _MARK, apart)
    return base


def _few_tokens(base: PreTrainedModel) -> torch.Tensor:
    """(1, ≤ 4) of the vocabulary."""
    words = len(cast(torch.Tensor, input_embeddings(base).weight))
    count = min(4, positions(base) or 4, words)
    return torch.arange(words - count, words, device=base.device)[None]


def ends_apart(base: nn.Module) -> bool:
    """Whether `note_end` found the model's end to stand by itself."""
    return bool(getattr(base, _MARK, False))


def decoded(base: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T, h): what the end of a model reads."""
    return getattr(base, cast(str, base.base_model_prefix))(**inputs).last_hidden_state


def guessed(base: nn.Module, hidden: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_losses_at` of a model whose end stands by itself."""
    behind = [child for name, child in base.named_children() if name != base.base_model_prefix]
    made_of = [*base.parameters(recurse=False), *(p for child in behind for p in child.parameters())]
    vocabulary = len(cast(torch.Tensor, input_embeddings(base).weight))
    return token_losses_at(hidden, wanted, end_of(base), made_of, vocabulary)


def compared(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits (B, T, V): cross-entropy of each position (B, T), 0 where none is wanted, and which were guessed."""
    logits = logits.float()
    losses = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none", ignore_index=IGNORED)
    return losses, (logits.argmax(-1) == wanted) & (wanted != IGNORED)


def token_losses_at(
    hidden: torch.Tensor, wanted: torch.Tensor, end: End, made_of: list[nn.Parameter], vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each position (B, T), 0 where none is wanted, and which were guessed (B, T); these are all false
    while gradients are taken in pieces.

    hidden: (B, T, h). wanted: (B, T), `IGNORED` where nothing is. made_of: the weights of `end`; where one of them is
    trained, all positions are computed at once, one row a record. vocabulary: V.
    """
    if any(p.requires_grad for p in made_of):
        return compared(end(hidden), wanted)
    places = _places(wanted)
    size = positions_of(wanted.numel(), vocabulary)
    padding = -len(places) % size
    given = F.pad(hidden.flatten(0, 1).index_select(0, places), (0, 0, 0, padding))
    names = F.pad(wanted.flatten().index_select(0, places), (0, padding), value=IGNORED)
    losses, hits = _Pieces.apply(given, names, end, size)  # pyright: ignore[reportGeneralTypeIssues]
    count, zeros = len(places), hidden.new_zeros(wanted.numel(), dtype=torch.float32)
    return (
        zeros.index_copy(0, places, losses[:count]).view_as(wanted),
        zeros.bool().index_copy(0, places, hits[:count]).view_as(wanted),
    )


def _places(wanted: torch.Tensor) -> torch.Tensor:
    """(n,): where something is wanted; of a model without numbers, everywhere."""
    if wanted.device.type == "meta":
        return torch.arange(wanted.numel(), device="meta")
    return torch.from_numpy((wanted != IGNORED).flatten().cpu().numpy().nonzero()[0]).to(wanted.device)


def positions_of(all_of_them: int, vocabulary: int) -> int:
    """Positions of a piece: a power of two, a quarter of the batch's where that is not too many."""
    most = max(_FEWEST, min(_MOST, _NUMBERS // vocabulary))
    wanted = min(most, max(_FEWEST, all_of_them // 4))
    return 2 ** (wanted.bit_length() - 1)


class _Pieces(torch.autograd.Function):
    """Losses of positions, whose gradients are taken piece by piece on the way."""

    @staticmethod
    def forward(
        ctx: Any, given: torch.Tensor, names: torch.Tensor, end: End, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        learns = ctx.needs_input_grad[0]
        losses, hits, gradients = [], [], []
        for part, wanted in zip(given.split(size), names.split(size), strict=True):
            with torch.set_grad_enabled(learns):
                own = part.detach().requires_grad_(learns)
                logits = end(own[None])[0].float()
                loss = F.cross_entropy(logits, wanted, reduction="none", ignore_index=IGNORED)
            if learns:
                gradients.append(torch.autograd.grad(loss, own, torch.ones_like(loss))[0])
            losses.append(loss.detach())
            hits.append(torch.zeros_like(wanted, dtype=torch.bool) if learns else logits.argmax(-1) == wanted)
        ctx.save_for_backward(torch.cat(gradients) if learns and gradients else torch.zeros_like(given))
        found = torch.cat(losses) if losses else given.new_zeros(0, dtype=torch.float32)
        right = torch.cat(hits) if hits else names.bool()
        ctx.mark_non_differentiable(right)
        return found, right

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        return (gradients[0][:, None] * saved).to(saved.dtype), None, None, None
