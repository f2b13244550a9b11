"""A variant of a finished model that runs on onnxruntime: a folder with model.onnx, tokenizer.json and variant.json.

No torch, no transformers: what a small machine needs to answer is numpy, tokenizers and onnxruntime.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import ConfigError

VARIANTS = "variants"
"""folder of a run that holds a folder for each"""
MODEL, TOKENIZER, FACTS = "model.onnx", "tokenizer.json", "variant.json"
_BATCH = 64


@dataclass(frozen=True)
class Variant:
    """variant.json: what a model.onnx is."""

    name: str
    what: str
    """in words: how it came about"""
    labels: list[str]
    max_length: int
    """tokens a text is cut to"""
    pad: int
    sha256: str
    """of model.onnx"""
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        (folder / FACTS).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def load_variant(folder: Path) -> Variant:
    """Raises ConfigError: no variant, or a model.onnx that is not the one that was made."""
    try:
        variant = Variant(**json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"{folder}: no {FACTS} there; make variants with confide compress RUN") from None
    if not (folder / MODEL).is_file() or file_sha256(folder / MODEL) != variant.sha256:
        raise ConfigError(f"{folder / MODEL}: is missing or was changed since it was made; make it again")
    return variant


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OnnxModel:
    """Texts → logits, on a number of threads."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Raises ConfigError."""
        self.variant = load_variant(folder)
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise ConfigError(f"{folder}: needs {error.name}; pip install 'confide[ship]'") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.variant.max_length)

    @property
    def labels(self) -> list[str]:
        return self.variant.labels

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """(N, K) float32, batched by length."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        return by_length(ids, self._run, len(self.labels))

    def _run(self, ids: list[list[int]]) -> np.ndarray:
        tokens, mask = padded(ids, self.variant.pad)
        return np.asarray(self._session.run(None, {"input_ids": tokens, "attention_mask": mask})[0])


def by_length(ids: list[list[int]], run, classes: int) -> np.ndarray:
    """(N, K): `run` on batches of similar length, its answers in the order of `ids`."""
    result = np.zeros((len(ids), classes), dtype=np.float32)
    order = np.argsort([len(one) for one in ids], kind="stable")
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        result[part] = run([ids[i] for i in part])
    return result


def padded(ids: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, T) int64 tokens and mask, padded on the right to the longest."""
    longest = max(len(one) for one in ids)
    tokens = np.full((len(ids), longest), pad, dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, one in enumerate(ids):
        tokens[row, : len(one)], mask[row, : len(one)] = one, 1
    return tokens, mask


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) → (N, K)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
