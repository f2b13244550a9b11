"""White-box perturbation of token embeddings: projected gradient ascent within a norm-relative radius.

Token t may be moved by δ_t with ‖δ_t‖ ≤ ρ·‖e_t‖ (e_t: its embedding): PGD of Madry et al. 2018 on embeddings, as in
Miyato et al. 2017 and FreeLB (Zhu et al. 2020). Each record is attacked by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..tasks import Batch
from .limits import input_embeddings
from .loading import FineTuneModel

_STEP = 2.5
"""the ascent's steps cover this many radii together"""


def embedding_layer(model: FineTuneModel) -> nn.Module:
    """The layer that turns tokens into vectors. Raises ModelError for a model without one."""
    return input_embeddings(model.module)


@contextmanager
def moved(layer: nn.Module, delta: torch.Tensor) -> Iterator[None]:
    """Within, the layer's output is shifted. delta: (B, T, h)."""

    def shift(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + delta

    handle = layer.register_forward_hook(shift)
    try:
        yield
    finally:
        handle.remove()


def ascended(model: FineTuneModel, batch: Batch, radius: float, steps: int) -> list[torch.Tensor]:
    """`steps` perturbations (B, T, h), each further up its own record's loss than the one before.

    radius: ρ. The model's parameters get no gradient.
    """
    layer = embedding_layer(model)
    with torch.no_grad():
        embedded = layer(batch["input_ids"])
    bound = radius * embedded.norm(dim=2, keepdim=True)  # (B, T, 1)
    bound = bound * batch["attention_mask"].unsqueeze(2)
    delta = torch.zeros_like(embedded)
    found = []
    for _ in range(steps):
        delta.requires_grad_(True)
        with moved(layer, delta):
            loss = model.task.record_losses(model.module, batch).sum()
        (gradient,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            direction = gradient / gradient.norm(dim=2, keepdim=True).clamp(min=1e-12)
            delta = delta.detach() + (_STEP / steps) * bound * direction
            delta = delta * (bound / delta.norm(dim=2, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
        found.append(delta.detach())
    return found
