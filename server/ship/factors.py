"""Low-rank factors: each linear layer of the backbone becomes two smaller ones, chosen by what it is given.

Of all pairs of rank r, B·A is the one whose outputs on public text are nearest to W's: with the second moment of the
inputs M = L·Lᵀ, the leading r singular parts of W·L, times L⁻¹ (Eckart and Young 1936; Hsu et al. 2022 weigh likewise).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from ...common.errors import ConfigError, ModelError
from .finished import TorchModel
from .prune import layers_of

_BATCH, _RIDGE = 32, 1e-6


def factorise(model: TorchModel, texts: list[str], share: float) -> None:
    """Puts factors with at most `share` of the numbers in the place of each matrix of the backbone's layers, in place.

    Raises ConfigError for a share outside (0, 1), ModelError for a backbone without linear layers.
    """
    if not 0 < share < 1:
        raise ConfigError(f"--factors: received {share:g}; allowed: a share above 0 and below 1")
    stack = layers_of(model.module)
    places = [
        (parent, name, layer)
        for parent in stack.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    if not places:
        raise ModelError("--factors: this backbone's layers hold no linear layers; cut layers instead")
    moments = _moments(model, [layer for _, _, layer in places], texts)
    for (parent, name, layer), moment in zip(places, moments, strict=True):
        setattr(parent, name, factored(layer, moment, share))


def factored(layer: nn.Linear, moment: torch.Tensor, share: float) -> nn.Sequential:
    """Two linear layers in the place of one. moment: (in, in) float64, the mean of x·xᵀ."""
    wide, high = layer.in_features, layer.out_features
    rank = max(1, int(share * wide * high / (wide + high)))
    ridge = _RIDGE * moment.diagonal().mean() * torch.eye(wide, dtype=torch.float64)
    root = torch.linalg.cholesky(moment + ridge)  # L
    left, values, right = torch.linalg.svd(layer.weight.detach().double() @ root, full_matrices=False)
    first, second = nn.Linear(wide, rank, bias=False), nn.Linear(rank, high, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(torch.linalg.solve_triangular(root, right[:rank], upper=False, left=False))
        second.weight.copy_(left[:, :rank] * values[:rank])
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second)


@torch.no_grad()
def _moments(model: TorchModel, layers: list[nn.Linear], texts: list[str]) -> list[torch.Tensor]:
    """(in, in) mean of x·xᵀ over the tokens of texts, of what each layer is given."""
    sums = [torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64) for layer in layers]
    count, ids = 0, model.ids(texts)
    for start in range(0, len(ids), _BATCH):
        tokens, mask = model.batch(ids[start : start + _BATCH])
        with _given(layers) as seen:
            model.module(tokens, mask)
        for total, inputs in zip(sums, seen, strict=True):
            rows = inputs[mask.bool()].double()  # (tokens, in)
            total += rows.T @ rows
        count += int(mask.sum())
    return [total / count for total in sums]


@contextmanager
def _given(layers: list[nn.Linear]) -> Iterator[list[torch.Tensor]]:
    """Within, one pass notes what each layer is given, in the layers' order."""
    seen: list[torch.Tensor] = [torch.empty(0)] * len(layers)

    def note(number: int):
        def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[number] = inputs[0].detach()

        return keep

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(note(number)).remove)
        yield seen
