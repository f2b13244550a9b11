"""Gradient inversion: what an honest-but-curious server can read from one update.

Span check (Petrov et al., "DAGER: Exact Gradient Inversion for Large Language Models", NeurIPS 2024): the gradient
of a linear layer's weight lies in the span of the layer's inputs. At the first layer an input depends on one token and
its position alone, so every (token, position) can be tested. LoRA's A receives r directions a module, so it betrays all
tokens as long as there are no more of them than directions.

Embedding gradient: only rows of tokens that occurred differ from zero. LoRA freezes embeddings and does not release it;
it is here for what training them would give away.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ...common.errors import ModelError
from ...common.model.loading import FineTuneModel

_RANK_TOLERANCE = 1e-6
"""singular values below this share of the largest are rounding"""
_CHUNK = 1024


class _Reached(Exception):  # noqa: N818  # a way out of a forward pass, not an error
    """The first layer has been reached."""


def word_embedding(model: FineTuneModel) -> nn.Parameter:
    """(V, d)"""
    backbone = next(module for module in model.module.modules() if isinstance(module, PreTrainedModel))
    weight = backbone.get_input_embeddings().weight
    if not isinstance(weight, nn.Parameter):
        raise ModelError("the backbone's word embedding is not an array of its own")
    return weight


def first_layer(model: FineTuneModel, length: int) -> dict[str, nn.Module]:
    """LoRA's A layers whose input at a position depends on that position's token alone, by the name of their weight.

    length: positions to look at. It is tried, not assumed: two texts that share one token are compared.
    """
    found: dict[str, nn.Module] = {}
    vocabulary = len(word_embedding(model))
    rng = np.random.default_rng(0)
    texts = torch.from_numpy(rng.integers(0, vocabulary, (2, length)))
    texts[1, length // 2] = texts[0, length // 2]
    inputs: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in model.module.named_modules() if name.endswith("lora_A.default")}
    hooks = [layer.register_forward_pre_hook(_keep(inputs, name)) for name, layer in layers.items()]
    try:
        _forward(model, texts)
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in layers.items():
        one, other = inputs[name][:, length // 2]
        if torch.allclose(one, other, atol=1e-6):
            found[name.replace(".default", "") + ".weight"] = layer
    return found


def _keep(inputs: dict[str, torch.Tensor], name: str):
    def hook(_: nn.Module, received: tuple[torch.Tensor, ...]) -> None:
        inputs[name] = received[0].detach()

    return hook


@torch.no_grad()
def _forward(model: FineTuneModel, tokens: torch.Tensor, segment: int = 0) -> None:
    """segment: of two texts the one that all tokens are taken for."""
    tokens = tokens.to(model.device)
    more = {"token_type_ids": torch.full_like(tokens, segment)} if model.segments else {}
    model.module(input_ids=tokens, attention_mask=torch.ones_like(tokens), **more)


def candidates(model: FineTuneModel, layer: nn.Module, length: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Inputs of `layer` for every token at every position, and, where two texts are told apart, in either: (first
    token, (c, length, d)) chunk by chunk."""
    vocabulary = len(word_embedding(model))
    kept: dict[str, torch.Tensor] = {}

    def stop(_: nn.Module, received: tuple[torch.Tensor, ...]) -> None:
        kept["input"] = received[0].detach()
        raise _Reached

    hook = layer.register_forward_pre_hook(stop)
    try:
        for first in range(0, vocabulary, _CHUNK):
            tokens = torch.arange(first, min(first + _CHUNK, vocabulary))
            for segment in range(1 + model.segments):
                try:
                    _forward(model, tokens[:, None].expand(-1, length).contiguous(), segment)
                except _Reached:
                    yield first, kept["input"]
    finally:
        hook.remove()


def span(gradients: list[np.ndarray]) -> np.ndarray:
    """Orthonormal basis (k, d) of the rows of all gradients together, each (r, d).

    Each is scaled to norm 1 first: a query's gradient is thousands of times smaller than a value's, and says more.
    """
    norms = [float(np.linalg.norm(gradient)) for gradient in gradients]
    scaled = [gradient / norm for gradient, norm in zip(gradients, norms, strict=True) if norm > 0]
    if not scaled:
        return np.empty((0, gradients[0].shape[1]))
    _, values, rows = np.linalg.svd(np.concatenate(scaled).astype(np.float64), full_matrices=False)
    return rows[values > _RANK_TOLERANCE * values[0]]


def span_check(
    model: FineTuneModel,
    layer: nn.Module,
    bases: list[np.ndarray],
    wanted: list[int],
    length: int,
    known: list[int],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[list[tuple[int, int, float]]]:
    """For each basis the `wanted` candidates that lie closest to its span: (token, position, distance), closest first.

    distance: ‖x − QQᵀx‖ ÷ ‖x‖, 0 for an input that is in the span. known: tokens that need no guessing.
    progress: told how many tokens have been tried, of how many.
    """
    best: list[list[tuple[int, int, float]]] = [[] for _ in bases]
    width = max((len(basis) for basis in bases), default=0)
    stacked = np.zeros((len(bases), width, bases[0].shape[1]), dtype=np.float32)  # zeros add nothing to a projection
    for number, basis in enumerate(bases):
        stacked[number, : len(basis)] = basis
    directions = torch.from_numpy(stacked.reshape(-1, stacked.shape[2])).to(model.device)
    vocabulary = len(word_embedding(model))
    for first, inputs in candidates(model, layer, length):
        progress(first, vocabulary)
        flat = inputs.reshape(-1, inputs.shape[-1])  # (c·length, d)
        inside = ((flat @ directions.T) ** 2).view(len(flat), len(bases), width).sum(2)
        distances = (1 - inside / (flat**2).sum(1, keepdim=True)).clamp(min=0).sqrt()
        for token in known:
            if first <= token < first + len(inputs):
                distances[(token - first) * length : (token - first + 1) * length] = 2.0
        near = distances.T.contiguous().topk(min(max(wanted), len(flat)), largest=False, sorted=False)
        for number, count in enumerate(wanted):
            found = zip(near.indices[number].tolist(), near.values[number].tolist(), strict=True)
            best[number] += [(first + place // length, place % length, value) for place, value in found]
            best[number] = sorted(best[number], key=lambda item: item[2])[:count]
    return best


def tokens_of_embedding(gradient: np.ndarray, wanted: int) -> list[int]:
    """The tokens whose rows of an embedding's gradient (V, d) are longest, at most `wanted`, and none that are zero."""
    lengths = np.linalg.norm(gradient, axis=1)
    order = np.argsort(-lengths, kind="stable")[:wanted]
    return [int(token) for token in order if lengths[token] > 0]


def label_of_bias(gradient: np.ndarray) -> int:
    """The class of a single record: its entry of softmax − one-hot is the negative one (Zhao et al. 2020, iDLG)."""
    return int(np.argmin(gradient))
