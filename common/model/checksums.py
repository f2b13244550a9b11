"""Exact checksums of what a model's layers make of each row, and of the gradients that reach them."""

from functools import lru_cache

import torch
from torch import nn

from .loading import FineTuneModel

_CHUNK = 2**16
"""times eight bytes of each row that are multiplied at once"""


class Layers:
    """Notes exact checksums of the layers' outputs and of the gradients that reach them: (rows, views) of each call."""

    def __init__(self, model: FineTuneModel, views: int, rows: int) -> None:
        self._parts = [part for part in model.module.modules() if not list(part.children())]
        self._views, self._rows = views, rows
        self.seen: list[torch.Tensor] = []

    def __enter__(self) -> "Layers":
        self._handles = [part.register_forward_hook(self._made) for part in self._parts]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _made(self, module: nn.Module, inputs: object, output: object) -> None:
        for made in output if isinstance(output, tuple | list) else [output]:
            if isinstance(made, torch.Tensor) and made.is_floating_point() and made.dim():
                self._note(made)
                if made.requires_grad:
                    made.register_hook(self._note)

    def _note(self, values: torch.Tensor) -> None:
        if values.shape[0] == self._rows * self._views:
            self.seen.append(checksums(values.detach()).view(self._views, self._rows).T)


def checksums(values: torch.Tensor) -> torch.Tensor:
    """(n, …) floating point → (n,) int64 of the bits of each row: eight bytes at a time, and their upper four once
    more, each times an odd number of its own, modulo 2⁶⁴. No single change is lost, and two cancel with a chance of
    2⁻³² or so, in the upper bits, too (the second product is for these: 2⁶³ times two odd numbers is 0)."""
    flat = values.contiguous().view(len(values), values.shape[1:].numel())
    if not flat.numel():
        return torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    bits = nn.functional.pad(flat, (0, -flat.shape[1] % (8 // flat.element_size()))).view(torch.int64)
    found = bits.new_zeros(len(bits))
    for start in range(0, bits.shape[1], _CHUNK):
        part = bits[:, start : start + _CHUNK]
        odd, other = _odd_numbers(start, part.shape[1], bits.device)
        found += (part * odd).sum(1) + ((part >> 32) * other).sum(1)
    return found


@lru_cache(maxsize=32)
def _odd_numbers(start: int, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (count,) int64 of odd numbers, other ones at each place."""
    place = torch.arange(start + 1, start + 1 + count, device=device) * 0x1E3779B97F4A7C15
    place = place ^ (place >> 29) | 1
    return place, place * place ^ (place >> 31) | 1
