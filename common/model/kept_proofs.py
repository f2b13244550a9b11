"""Proofs that took long, kept for the next process: a language model's takes minutes, and nothing in it changes.

A proof is taken over only where all that it depends on is the same to the bit: weights, layers and their settings,
the shapes, this code, the libraries, processor, threads, and what the environment tells the kernels. One length, drawn
anew, is proved again even then. A refusal is never kept. The files are this user's own, as the code is.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from .apart import state_of
from .loading import FineTuneModel

DEAR = 20.0
"""seconds from which on a proof is kept"""
_LIBRARIES = ("torch", "transformers", "peft", "opacus", "numpy", "bitsandbytes")
_VARIABLES = (
    *("ATEN_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "GLIBC_", "GOMP_", "KMP_", "LD_", "MKL_"),
    *("NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH_"),
)
_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "Features")


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confide" / "proofs"


def place_of(model: FineTuneModel, asked: object) -> Path:
    """Where a proof of this model on this machine is kept. To be asked before the model is used for it: passes through
    some layers leave traces in them.

    model: with the numbers in its trained arrays that it is proved with. asked: shapes and what else was asked for.
    """
    key = repr((content_of(model, model.module), asked, _machine(), _code()))
    return folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def kept(place: Path) -> dict[int, int] | None:
    """Length → rows, as the proof found them; None: there is none that counts."""
    try:
        with place.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_uid != os.getuid() or state.st_mode & 0o022:  # others could have written it
                return None
            found = json.load(file)
        return {int(length): int(rows) for length, rows in found}
    except (OSError, ValueError, TypeError):
        return None


def keep(place: Path, found: dict[int, int]) -> None:
    """For later processes; where the folder cannot be written each proves for itself."""
    with suppress(OSError):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, written = tempfile.mkstemp(dir=place.parent)  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(list(found.items()), file)
        Path(written).replace(place)


def content_of(model: FineTuneModel, module: PeftModel) -> str:
    """A digest of the weights, of every layer's kind and settings, and of what is trained and read. module: the model's
    own, or the template that it was copied from."""
    made = hashlib.sha256()
    facts = [state_of(module), str(module), _configs(module), _sources(module), repr(model.task), list(model.trained)]
    facts += [model.max_length, model.head_only, model.classes, model.pad, str(model.device)]
    facts += [model.recomputes, model.two_texts, model.segments, model.beta]
    text = repr(facts)
    for place in {str(getattr(part, "name_or_path", "")) for part in module.modules()} - {""}:
        text = text.replace(place, "")  # the same files in another place
    made.update(text.encode())
    for name, array in [*module.named_parameters(), *module.named_buffers()]:
        made.update(repr((name, array.dtype, tuple(array.shape))).encode())
        made.update(array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return made.hexdigest()


def _configs(module: PeftModel) -> list[str]:
    """Of each backbone in it, and how it attends, which a configuration does not print."""
    found = {id(config): config for part in module.modules() if (config := getattr(part, "config", None)) is not None}
    return sorted({f"{config} {getattr(config, '_attn_implementation', None)}" for config in found.values()})


def _sources(module: PeftModel) -> list[tuple[str, str]]:
    """The modules of its layers' classes, with a digest of each file: a library may be edited in place."""
    names = {type(part).__module__ for part in module.modules()}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return [(name, _digest(Path(file)) if file else "") for name, file in sorted(files.items())]


@lru_cache
def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _machine() -> str:
    """What decides which kernels run, and how they round."""
    facts: list[Any] = [platform.machine(), _processor(), torch.__config__.show(), torch.get_num_threads()]
    facts += [(name, _version(name)) for name in _LIBRARIES]
    facts += sorted((key, value) for key, value in os.environ.items() if key.startswith(_VARIABLES))
    facts += [torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()]
    facts += [torch.backends.mkldnn.enabled, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
    if torch.cuda.is_available():
        facts += [torch.cuda.get_device_properties(torch.cuda.current_device()), torch.backends.cudnn.version()]
    return repr(facts)


@lru_cache
def _processor() -> str:
    """Of the first one, from /proc; elsewhere what Python knows."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in _PROCESSOR)
    return platform.processor()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@lru_cache
def _code() -> str:
    """A digest of what makes a record's gradient, and of what proves it."""
    made = hashlib.sha256()
    common = Path(__file__).parent.parent
    for path in sorted(common.rglob("*.py")):
        made.update(str(path.relative_to(common)).encode() + b"\0" + path.read_bytes() + b"\0")
    return made.hexdigest()
