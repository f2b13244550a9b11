"""A backbone's folder, looked at before anything of it is loaded: is it a model, and is all of it there?

What transformers makes of a folder that is none depends on what else is there: a PEFT adapter is put on the model that
its adapter_config.json names, a Git LFS pointer is a text in place of weights. Here each gets one line. No library is
loaded that reads weights.
"""

import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ModelError, harmless

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""what transformers reads beside config.json, and names in none of its errors"""
_POINTER = b"version https://git-lfs"
_LARGEST_POINTER = 1024
"""bytes of a Git LFS pointer, at most"""
_READ = (".safetensors", ".bin", ".json", ".txt", ".model")
"""endings of what is read of a folder"""
_OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ckpt", ".npz", ".mlmodel")
_LONGEST_HEADER = 100_000_000


def check_folder(path: str) -> None:
    """Raises ModelError for a folder that is no model's: an adapter, a run, one without a configuration."""
    folder = Path(path)
    if (adapter := folder / "adapter_config.json").is_file():
        base = _text_of(_json(adapter), "base_model_name_or_path")
        raise ModelError(
            f"model.backbone: '{path}' is an adapter of PEFT{f' for {base}' if base else ''}, not a model; give the "
            "model that it belongs to, with model.init_from for a run's folder to go on from its adapter, or merge the "
            "adapter first (PEFT's merge_and_unload, then save_pretrained) and give that folder"
        )
    if (folder / "adapter" / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"model.backbone: '{path}' is the folder of a run, not of a model; give the run's backbone, and the folder "
            "in model.init_from to go on from its adapter, or export it first (confide export --format transformers)"
        )
    check_complete(file for file in sorted(folder.glob("*")) if file.suffix == ".json")
    if not (folder / "config.json").is_file():
        others = sorted({file.suffix for file in folder.glob("*") if file.suffix in _OTHER_WEIGHTS})
        found = f" ({', '.join(others)} files are no model of transformers)" if others else ""
        raise ModelError(
            f"model.backbone: no config.json in '{path}'{found}; give a folder as transformers' save_pretrained writes "
            "it, or a hub id"
        )
    for name in _BESIDE:
        _json(folder / name)
    config = _json(folder / "config.json")
    if not isinstance(config, dict) or not _text_of(config, "model_type"):
        raise ModelError(
            f"model.backbone: the config.json of '{path}' names no model_type; give a folder as transformers' "
            "save_pretrained writes it"
        )


def check_weights(path: str) -> None:
    """Raises ModelError where weights are missing, cut, pointers of Git LFS, or in a format that is not read."""
    folder = Path(path)
    if not folder.is_dir():
        return
    safe, pickled = sorted(folder.glob("*.safetensors")), sorted(folder.glob("pytorch_model*.bin"))
    check_complete(file for file in sorted(folder.glob("*")) if file.suffix in _READ)
    if not safe and not pickled:
        others = sorted(file.name for file in folder.glob("*") if file.suffix in _OTHER_WEIGHTS)
        found = f"; {harmless(others[0])} is not read" if others else ""
        raise ModelError(
            f"model.backbone: no weights in '{path}'{found}; allowed: *.safetensors, or pytorch_model.bin; download "
            "them into the folder, or save the model by transformers' save_pretrained"
        )
    for index in (folder / name for name in INDICES):
        if index.is_file() and not (index.name == INDICES[1] and safe):
            where = _json(index).get("weight_map")
            if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
                raise ModelError(
                    f"model.backbone: {index} has no weight_map, which names the file of each array; download it again"
                )
            names = sorted(set(where.values()))
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise ModelError(
                    f"model.backbone: {len(missing)} of the {len(names)} files of weights that {index.name} names are "
                    f"missing in '{path}', such as {harmless(missing[0])}; download them again"
                )
    for file in safe:
        end = max((array["data_offsets"][1] for array in arrays_of(file).values()), default=0)
        wanted = end + _header(file)[0]
        if file.stat().st_size < wanted:
            raise ModelError(
                f"model.backbone: {file} is cut: it has {file.stat().st_size:,} bytes, and its header names "
                f"{wanted:,}; download it again"
            )


def check_complete(files: Iterable[Path]) -> None:
    """Raises ModelError for a file that is a Git LFS pointer."""
    for file in files:
        if file.is_file() and file.stat().st_size <= _LARGEST_POINTER and file.read_bytes().startswith(_POINTER):
            raise ModelError(
                f"model.backbone: {file} is a pointer of Git LFS, not the file itself; run `git lfs pull` in the "
                "repository, or download the file"
            )


def number_of_weights(path: str) -> int:
    """Of a folder's safetensors files, by their headers; 0 where there are none. Raises ModelError for a file that is
    none."""
    total = 0
    for file in sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []:
        for array in arrays_of(file).values():
            count = 1
            for side in array["shape"]:
                count *= side
            total += count
    return total


def arrays_of(file: Path) -> dict[str, dict[str, Any]]:
    """Type, shape and place of each array of a safetensors file. Raises ModelError."""
    return {name: array for name, array in _header(file)[1].items() if name != "__metadata__"}


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the numbers begin, and what the header says."""
    check_complete([file])
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            return 8 + size, dict(json.loads(opened.read(min(size, _LONGEST_HEADER))))
    except (OSError, ValueError, TypeError, struct.error):
        raise ModelError(f"{file}: not a safetensors file, or cut; download it again") from None


def quantised_by(path: str) -> str | None:
    """The method by which a checkpoint was saved in few bits; None: in none."""
    found = _json(Path(path) / "config.json").get("quantization_config") if Path(path).is_dir() else None
    return (_text_of(found, "quant_method") or "few bits") if isinstance(found, dict) else None


def needs_code(path: str) -> bool:
    """Whether a folder's configuration names Python files of its own."""
    return Path(path).is_dir() and "auto_map" in _json(Path(path) / "config.json")


def _text_of(content: Any, key: str) -> str:
    """A text of a configuration, fit for a message."""
    value = content.get(key) if isinstance(content, dict) else None
    return re.sub(r"\s+", " ", harmless(value))[:100] if isinstance(value, str) else ""


def _json(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none. Raises ModelError for a broken one."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"model.backbone: {file} is not JSON; download it again") from None
    return content if isinstance(content, dict) else {}
