"""Layers whose activations are computed again backward in place of being kept (Chen et al. 2016).

The first pass through such a layer has no gradients, so that Opacus' hooks note nothing there; in the second, backward,
they see the layer's inputs and at once what comes back to them. Kernels are the same, and so are the numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import ModelError


def recomputable(module: nn.Module) -> list[nn.Module]:
    """The layers of a model that may be computed again, outermost ones alone."""
    found: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, GradientCheckpointingLayer) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = layer
    return list(found.values())


@contextmanager
def recomputing(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Within, where it is wanted, `.backward()` computes the layers again. Raises ModelError where there are none."""
    layers = recomputable(module) if wanted else []
    if wanted and not layers:
        raise ModelError(
            "model.checkpointing: true received; transformers names no layers of this backbone that could be computed "
            "again; set it to false"
        )
    for layer in layers:
        layer.forward = _twice(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _twice(forward: Callable) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        values, form = tree_flatten((args, kwargs), is_leaf=lambda value: isinstance(value, Cache))
        values = [None if isinstance(value, Cache) else value for value in values]  # the second pass would add to it
        places = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
        inputs = [values[i] for i in places]
        if not any(value.requires_grad for value in inputs):  # of embeddings that are frozen
            first = next(i for i, value in enumerate(inputs) if value.is_floating_point())
            inputs[first] = inputs[first].detach().requires_grad_()

        def again(*tensors: torch.Tensor) -> Any:
            whole = list(values)
            for place, tensor in zip(places, tensors, strict=True):
                whole[place] = tensor
            args, kwargs = tree_unflatten(whole, form)
            return forward(*args, **kwargs)

        return checkpoint(again, *inputs, use_reentrant=True, preserve_rng_state=False)

    return run
