"""Elementwise operations: a number has the same bits wherever it stands in a batch.

torch computes them in vectors, a range for each thread, and what is left over at a range's end one number at a time,
by code that rounds otherwise for some functions (SiLU, sigmoid, softplus, GELU by tanh: 2 to 20 of 100 numbers). So
where such a function is used, no range may leave a rest.
"""

from collections.abc import Hashable
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_GRAIN = 32_768
"""numbers from which on torch divides an elementwise operation among threads"""
_VECTORS = 128
"""bytes that are computed at once, at most: two vectors of AVX-512"""
_PIECE, _PIECES = 31, 1024
"""numbers that fill no vector; so many pieces together are fewer than a grain"""


class Elementwise(TorchDispatchMode):
    """Notes which elementwise operations are computed, and of how many floating-point numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[Any, Hashable, torch.dtype], set[int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # a GPU computes every number by the same code
        here = isinstance(result, torch.Tensor) and result.device.type == "cpu" and result.dim() > 0  # one has no place
        if here and result.is_floating_point() and torch.Tag.pointwise in func.tags:
            form = _form(args), _form(kwargs or {})
            self._seen.setdefault((func, form, result.dtype), set()).add(result.numel())
        return result

    def alike(self) -> bool:
        """Whether none of them leaves a rest that is computed otherwise, with this number of threads."""
        threads = torch.get_num_threads()
        return not any(
            any(leaves_rest(count, dtype.itemsize, threads) for count in counts) and place_matters(func, form)
            for (func, form, dtype), counts in self._seen.items()
        )


def leaves_rest(numbers: int, itemsize: int, threads: int) -> bool:
    """Whether a thread's range of so many numbers does not end with a vector. itemsize: bytes of a number."""
    parts = 1 if numbers < _GRAIN else min(threads, -(-numbers // _GRAIN))
    width = _VECTORS // itemsize
    return numbers % width != 0 or -(-numbers // parts) % width != 0


@cache
def place_matters(func: Any, form: Hashable) -> bool:
    """Whether the operation gives other bits to some number that stands in no full vector. form: its arguments'."""
    generator = torch.Generator().manual_seed(0xE1E)
    args, kwargs = _filled_in(form, generator)
    try:
        together = _called(func, args, kwargs, slice(None))
        pieces = range(0, _PIECE * _PIECES, _PIECE)
        apart = torch.cat([_called(func, args, kwargs, slice(start, start + _PIECE)) for start in pieces])
    except Exception:  # arguments that take no random numbers: not shown to be alike
        return True
    return not bool(((together == apart) | (together.isnan() & apart.isnan())).all())


def _called(func: Any, args: Any, kwargs: Any, part: slice) -> torch.Tensor:
    """The operation on a part of the numbers; they may be changed in place."""
    return func(*_parts(args, part), **_parts(kwargs, part))


def _parts(value: Any, part: slice) -> Any:
    if isinstance(value, torch.Tensor):
        return value[part].clone() if value.dim() else value
    if isinstance(value, dict):
        return {name: _parts(one, part) for name, one in value.items()}
    return [_parts(one, part) for one in value] if isinstance(value, list) else value


def _form(value: Any) -> Hashable:
    """What can be compared: of tensors the type, of those of one number also the number."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, None if value.dim() else value.item())
    if isinstance(value, dict):
        return ("dict", tuple((name, _form(one)) for name, one in value.items()))
    return ("list", tuple(map(_form, value))) if isinstance(value, list | tuple) else value


def _filled_in(form: Any, generator: torch.Generator) -> Any:
    """Arguments of that form: random numbers for tensors."""
    match form:
        case ("tensor", dtype, None):
            numbers = torch.randn(_PIECE * _PIECES, generator=generator) * 3
            return numbers > 0 if dtype == torch.bool else numbers.to(dtype)
        case ("tensor", dtype, number):
            return torch.tensor(number, dtype=dtype)
        case ("dict", items):
            return {name: _filled_in(one, generator) for name, one in items}
        case ("list", items):
            return [_filled_in(one, generator) for one in items]
        case (args, kwargs):
            return _filled_in(args, generator), _filled_in(kwargs, generator)
    return form
