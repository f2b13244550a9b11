"""How the frozen weights are held: their type, their bits, and by which attention they are read.

LoRA and heads are float32 always. bfloat16 is faster where the hardware multiplies it (a CPU with AMX: some 7 times
float32's rate), and takes half of the memory.
"""

import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..config.tables import ModelSection
from ..errors import ModelError

LARGE = 100_000_000
"""weights from which on bfloat16 pays: in a small model a step is mostly made of what surrounds the products"""
_FASTER = 1.5
_SIDE, _TRIES = 1024, 3
"""of the square matrices that are multiplied to see"""
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


_outlined: ContextVar[bool] = ContextVar("outlined", default=False)


@contextmanager
def outlined() -> Iterator[None]:
    """Within, models are made of their configurations alone, on torch's meta device: shapes without numbers."""
    token = _outlined.set(True)
    try:
        yield
    finally:
        _outlined.reset(token)


def is_outlined() -> bool:
    return _outlined.get()


def read_weights(kind: Any, path: str, model: ModelSection, **more: Any) -> Any:
    """A model by one of transformers' auto classes. more: for its configuration."""
    options = _loading_options(with_type(model, path))
    if not _outlined.get():
        return kind.from_pretrained(path, **options, **more)
    with torch.device("meta"):
        return kind.from_config(AutoConfig.from_pretrained(path, **more), **options)


def _loading_options(model: ModelSection) -> dict[str, Any]:
    kind = TYPES[model.dtype]
    options: dict[str, Any] = {"dtype": kind}
    if kind == torch.bfloat16 and not torch.cuda.is_available():
        # on a CPU the backward pass of torch's fused attention takes most of a step in this type
        options["attn_implementation"] = "eager"
    return options


def with_type(model: ModelSection, path: str) -> ModelSection:
    """`model.dtype` stated: bfloat16 for a large backbone where this machine multiplies it faster, float32 otherwise.
    path: of the backbone."""
    if model.dtype != "auto":
        return model
    pays = model.train == "lora" and number_of_weights(path) >= LARGE and bfloat16_is_faster()
    return model.model_copy(update={"dtype": "bfloat16" if pays else "float32"})


@lru_cache
def number_of_weights(path: str) -> int:
    """Of a folder's safetensors files, by their headers; 0 where there are none. Raises ModelError for a file that is
    none."""
    total = 0
    for file in sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []:
        try:
            with file.open("rb") as opened:
                (size,) = struct.unpack("<Q", opened.read(8))
                header = json.loads(opened.read(min(size, 100_000_000)))
        except (OSError, ValueError, struct.error):
            raise ModelError(f"{file}: not a safetensors file; download it again") from None
        header.pop("__metadata__", None)
        for array in header.values():
            count = 1
            for side in array["shape"]:
                count *= side
            total += count
    return total


@lru_cache
def bfloat16_is_faster() -> bool:
    """Whether products of matrices take less time in bfloat16, by enough, on this machine; measured once a process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = []
    for kind in (torch.float32, torch.bfloat16):
        matrix = torch.ones((_SIDE, _SIDE), dtype=kind, device=device)
        (matrix @ matrix)[0, 0].item()  # the first one prepares
        best = float("inf")
        for _ in range(_TRIES):
            started = time.perf_counter()
            (matrix @ matrix)[0, 0].item()
            best = min(best, time.perf_counter() - started)
        seconds.append(best)
    return seconds[0] > _FASTER * seconds[1]
