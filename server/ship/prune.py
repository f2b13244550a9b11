"""Structured pruning: whole layers, attention heads and feed-forward neurons, by what they matter on public text.

What is cut is gone from the matrices, so a pruned model is smaller and faster everywhere. Single weights set to zero
would give neither, so that is not offered.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...common.errors import ConfigError, ModelError
from .answers import answer_rows, apart, stacked
from .finished import TorchModel

_BATCH = 32


def layers_of(module: nn.Module) -> nn.ModuleList:
    """The backbone's stack of layers. Raises ModelError where there is none."""
    found = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not found:
        raise ModelError("the backbone has no stack of layers that could be cut")
    return max(found, key=len)


def keep_layers(model: TorchModel, numbers: list[int]) -> None:
    """Leaves these layers (from 0) in place, in their order."""
    stack = layers_of(model.module)
    kept = [stack[i] for i in numbers]
    del stack[:]
    stack.extend(kept)
    for part in model.module.modules():
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = len(kept)


def spread(layers: int, count: int) -> list[int]:
    """`count` of `layers` layers, evenly spread, the last one among them. Raises ConfigError."""
    if not 1 <= count <= layers:
        raise ConfigError(f"--layers: received {count}; allowed: 1 to {layers}, the layers that the model has")
    return [round((i + 1) * layers / count) - 1 for i in range(count)]


def least_needed_layers(model: TorchModel, texts: list[str], count: int) -> list[int]:
    """The `count` layers to keep: one by one, the layer without which answers change least is left out.

    Change: `answers.apart` from the whole model's.
    """
    whole = stacked(answer_rows(model, texts))
    kept = list(range(len(layers_of(model.module))))
    spread(len(kept), count)
    while len(kept) > count:
        changes = []
        for left_out in kept:
            trial = model.copy()
            keep_layers(trial, [i for i in kept if i != left_out])
            changes.append(float(apart(whole, stacked(answer_rows(trial, texts)), model.reads)))
        kept.remove(kept[int(np.argmin(changes))])
    return kept


class _Block:
    """The parts of a layer that are cut, by BERT's names."""

    def __init__(self, layer: nn.Module) -> None:
        """Raises ModelError for layers of another make."""
        try:
            attention = layer.get_submodule("attention")
            self.reading = [attention.get_submodule(f"self.{name}") for name in ("query", "key", "value")]
            self.joining = attention.get_submodule("output.dense")
            self.widening = layer.get_submodule("intermediate.dense")
            self.narrowing = layer.get_submodule("output.dense")
            self.head_size = int(attention.get_submodule("self").attention_head_size)  # pyright: ignore[reportArgumentType]
        except AttributeError:
            raise ModelError(
                "--heads, --ffn: this backbone's layers are not built as BERT's; cut layers instead"
            ) from None

    @property
    def heads(self) -> int:
        return self.joining.in_features // self.head_size  # pyright: ignore[reportReturnType,reportOperatorIssue]


def prune(model: TorchModel, texts: list[str], *, heads: float = 0.0, neurons: float = 0.0) -> None:
    """Cuts a share of all attention heads and of all feed-forward neurons, the least important of each layer.

    Importance: |∂L/∂a · a| summed over public text, of what a head or a neuron gives (Michel et al. 2019; Molchanov et
    al. 2017). L: cross-entropy with the model's own answer, or the number. Raises ModelError for a backbone not built
    as BERT's.
    """
    blocks = [_Block(layer) for layer in layers_of(model.module)]
    of_heads, of_neurons = importance(model, texts)
    for block, head_scores, neuron_scores in zip(blocks, of_heads, of_neurons, strict=True):
        kept = _best(head_scores, heads)
        columns = (kept[:, None] * block.head_size + torch.arange(block.head_size)).flatten()
        for layer in block.reading:
            _cut(layer, columns, rows=True)
        _cut(block.joining, columns, rows=False)
        kept = _best(neuron_scores, neurons)
        _cut(block.widening, kept, rows=True)
        _cut(block.narrowing, kept, rows=False)


def importance(model: TorchModel, texts: list[str]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each layer's heads (H,) and neurons (F,)."""
    blocks = [_Block(layer) for layer in layers_of(model.module)]
    of_heads = [torch.zeros(block.heads) for block in blocks]
    of_neurons = [torch.zeros(block.narrowing.in_features) for block in blocks]  # pyright: ignore[reportArgumentType,reportCallIssue]
    ids = model.ids(texts)
    for start in range(0, len(ids), _BATCH):
        tokens, mask = model.batch(ids[start : start + _BATCH])
        with _inputs_of([part for block in blocks for part in (block.joining, block.narrowing)]) as seen:
            logits = model.module(tokens, mask)
            logits = logits[mask.bool()] if logits.ndim == 3 else logits  # (tokens, K) or (B, K)
            own = logits.detach().argmax(1)
            number = model.reads.label == "number"
            loss = logits.sum() if number else F.cross_entropy(logits, own, reduction="sum")
            gradients = torch.autograd.grad(loss, seen)
        products = [(g * a.detach()) * mask[..., None] for g, a in zip(gradients, seen, strict=True)]  # (B, T, width)
        for number, block in enumerate(blocks):
            by_head = products[2 * number].unflatten(-1, (-1, block.head_size)).sum((1, 3))  # (B, H)
            of_heads[number] += by_head.abs().sum(0)
            of_neurons[number] += products[2 * number + 1].sum(1).abs().sum(0)
    return of_heads, of_neurons


@contextmanager
def _inputs_of(layers: list[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Within, one pass through the model notes what each layer is given, as something to differentiate by."""
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        value = inputs[0] if inputs[0].requires_grad else inputs[0].requires_grad_()
        seen.append(value)
        return (value, *inputs[1:])

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(note).remove)
        yield seen


def _best(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Positions of what is kept, in order; at least one."""
    count = max(1, len(scores) - round(share * len(scores)))
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _cut(layer: nn.Module, kept: torch.Tensor, *, rows: bool) -> None:
    """Keeps these outputs (rows) or inputs of a linear layer."""
    assert isinstance(layer, nn.Linear)  # noqa: S101  # a block's parts are
    weight = layer.weight.detach()
    layer.weight = nn.Parameter(copy.deepcopy(weight[kept] if rows else weight[:, kept]))
    if rows:
        layer.out_features = len(kept)
        layer.bias = nn.Parameter(layer.bias.detach()[kept].clone())
    else:
        layer.in_features = len(kept)
