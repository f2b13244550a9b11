"""How the frozen weights are held: their type, their bits, and by which attention they are read.

LoRA and heads are float32 always. bfloat16 is faster where the hardware multiplies it (a CPU with AMX: some 7 times
float32's rate), and takes half of the memory. Linear layers may be held in 8 or 4 bits (bitsandbytes): int8 rounds each
row of the weights, and each token's vector by itself (Dettmers et al. 2022, without their columns of outliers: these
are picked over a whole batch, and no record may decide how another is computed); nf4 rounds the weights alone, in
blocks of 64 (Dettmers et al. 2023, "QLoRA").
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from ..config.tables import ModelSection
from ..errors import ModelError
from .checkpoints import check_weights, number_of_weights

LARGE = 100_000_000
"""weights from which on bfloat16 pays: in a small model a step is mostly made of what surrounds the products"""
_FASTER = 1.5
_SIDE, _TRIES = 1024, 3
"""of the square matrices that are multiplied to see"""
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MISSING = 0.01
"""share of a backbone's numbers that its file may lack"""
_HELD_BITS = {"int8": 8.1, "nf4": 4.5}
"""of a number: with one of 32 bits for each row of some hundreds, and for each block of 64"""
_HEADS = ["head", "classifier", "score"]
"""names of what transformers puts on a backbone for a task: it is trained"""


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
    """A model by one of transformers' auto classes. more: for its configuration. Raises ModelError where
    `model.weights` needs what is not installed, the files are not whole, or they hold too little of the model.

    transformers draws arrays that the file does not hold, and goes on. A head, and a pooler before it, are drawn by the
    run's seed, noted in `drawn`, and travel with an adapter; layers of the backbone, or the last layer of a language
    model, would be noise that nothing trains.
    """
    if not _outlined.get():
        check_weights(path)
    more["return_dict"] = True  # a configuration may ask for tuples
    model = with_type(model, path)
    options = _loading_options(model)
    if model.weights == "full" and not _outlined.get():
        return _noted(kind.from_pretrained(path, output_loading_info=True, **options, **more), path)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **more)
        shape = kind.from_config(config, **options)
    whole = [*get_keys_to_not_convert(shape), *_HEADS]
    if _outlined.get():
        for name, layer in shape.named_modules():
            if model.weights != "full" and isinstance(layer, nn.Linear | Conv1D) and should_convert_module(name, whole):
                layer.held_bits = _HELD_BITS[model.weights]  # pyright: ignore[reportArgumentType]  # a note on it
        return shape
    options |= {"quantization_config": _bits(model, whole), "output_loading_info": True}
    read = _noted(kind.from_pretrained(path, **options, **more), path)
    for layer in read.modules():
        # of 4 bits: weights would be packed anew by a pass without gradients, for all that share them
        layer.support_avx512bf16_for_cpu = False
        if hasattr(layer, "init_8bit_state"):
            layer.init_8bit_state()  # otherwise the first pass takes them out of the array that all copies share
    return read


def _noted(loaded: tuple[Any, dict[str, Any]], path: str) -> Any:
    """The model. loaded: with what transformers tells of its loading. Raises ModelError."""
    read, found = loaded
    _check_depth(read, found["unexpected_keys"], path)
    sizes = {name: p.numel() for name, p in read.named_parameters()}
    drawn = sorted(name for name in found["missing_keys"] if name in sizes)
    base = f"{read.base_model_prefix}." if hasattr(read, read.base_model_prefix) else ""
    own = [name for name in drawn if name.startswith(base) and "pool" not in name]
    if sum(sizes[name] for name in own) > _MISSING * sum(sizes.values()):
        raise ModelError(
            f"model.backbone: '{path}' holds no numbers for {len(own)} arrays of {type(read).__name__}, such as "
            f"{own[0]}: its files are another model's than its config.json, or cut; give a whole checkpoint"
        )
    if read.can_generate():
        matrices = [name for name in drawn if read.get_parameter(name).dim() > 1]
        if matrices:
            raise ModelError(
                f"model.backbone: '{path}' holds no numbers for {matrices[0]}, so its guesses of words would be noise; "
                "give a checkpoint that was trained to write, with its last layer"
            )
    if broken := [name for name, p in read.named_parameters() if p.is_floating_point() and not _is_finite(p)]:
        raise ModelError(
            f"model.backbone: '{path}' holds NaN or infinite values in {len(broken)} arrays, such as {broken[0]}; "
            "download it again, or give another checkpoint"
        )
    read.drawn = frozenset(drawn)
    return read


def _check_depth(read: Any, unread: Iterable[str], path: str) -> None:
    """Raises ModelError where the file goes on with a list of layers that the model has fewer of: transformers would
    cut the model off without a word. A head or a decoder that is not read is no such list."""
    base = f"{read.base_model_prefix}."
    lists = {name.removeprefix(base): len(m) for name, m in read.named_modules() if isinstance(m, nn.ModuleList)}
    for name in sorted(unread):
        parts = name.removeprefix(base).split(".")
        for place, part in enumerate(parts):
            inside = ".".join(parts[:place])
            if part.isdecimal() and int(part) >= lists.get(inside, math.inf):
                raise ModelError(
                    f"model.backbone: '{path}' holds {name}, and by its config.json '{inside}' has {lists[inside]} "
                    "layers: the model would be cut off; correct the number of layers there, or download both again, "
                    "of one model"
                )


def _is_finite(array: torch.Tensor) -> bool:
    """In one reading, without a second array of that size: a sum hides no such value."""
    return bool(torch.isfinite(array.detach().sum(dtype=torch.float64)))


def drawn_arrays(module: nn.Module) -> dict[str, torch.Tensor]:
    """Of a model with or without PEFT's layers, the frozen arrays that its backbone's file does not hold, by name."""
    wrapped = {"modules_to_save", "original_module"}
    arrays = {
        name.replace(".base_layer.", "."): p
        for name, p in module.named_parameters()
        if not wrapped & set(name.split(".")) and ".lora_" not in name
    }
    names = [
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        for name in sorted(getattr(part, "drawn", ()))
    ]
    return {name: arrays[name].detach() for name in names if name in arrays}


def _bits(model: ModelSection, whole: list[str]) -> BitsAndBytesConfig:
    """whole: layers that keep their type."""
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.weights: '{model.weights}' received, and bitsandbytes is not installed; "
            "pip install 'confide[quantized]', or leave model.weights = 'full'"
        )
    return BitsAndBytesConfig(
        load_in_8bit=model.weights == "int8",
        load_in_4bit=model.weights == "nf4",
        llm_int8_threshold=0.0,
        llm_int8_skip_modules=whole,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=TYPES[model.dtype],
    )


def shared_state(layer: nn.Module) -> list[torch.Tensor]:
    """What a layer of 8 bits holds beside its parameters, and all copies of it may hold together."""
    state = getattr(layer, "state", None)
    return [held for held in (getattr(state, "CB", None), getattr(state, "SCB", None)) if held is not None]


def held_bytes(outlined: nn.Module) -> tuple[int, int]:
    """Bytes of all arrays of an outlined model, held as `model.weights` says; and what autograd keeps of a token beside
    what it shows, since each layer of 8 bits keeps what it has read."""
    total, kept = sum(p.nbytes for p in [*outlined.parameters(), *outlined.buffers()]), 0
    for layer in outlined.modules():
        bits, weight = getattr(layer, "held_bits", None), getattr(layer, "weight", None)
        if bits is not None and isinstance(weight, torch.Tensor):
            total += int(weight.numel() * bits / 8) - weight.nbytes
            kept += weight.shape[1] * weight.element_size() if bits == _HELD_BITS["int8"] else 0
    return total, kept


def _loading_options(model: ModelSection) -> dict[str, Any]:
    kind = TYPES[model.dtype]
    options: dict[str, Any] = {"dtype": kind, "trust_remote_code": False}
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
