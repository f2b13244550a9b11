"""torch → model.onnx → int8, each compared with the torch model before it counts."""

import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ...common.errors import ConfigError, ModelError
from ...common.types import Rows
from .finished import TorchModel
from .runtime import FACTS, MODEL, TOKENIZER, OnnxModel, Variant, file_sha256, input_names

_INT8 = ["MatMul", "Gemm", "Gather"]
"""what is kept in int8: matrices and tables; onnxruntime has no quick convolution in int8"""
PARITY = 1e-3
"""largest difference of a logit, relative to the largest logit, between torch and the float32 export"""


def export(model: TorchModel, folder: Path, name: str, what: str, rows: Rows, **facts: Any) -> OnnxModel:
    """Writes a variant in float32 and compares its logits with the torch model's on `rows`.

    Raises ModelError when they differ by more than `PARITY`, ConfigError without the packages; nothing is left then.
    """
    try:
        import onnxscript  # noqa: F401  # what torch.onnx exports with
    except ModuleNotFoundError as error:
        raise ConfigError(f"the export needs {error.name}; pip install 'confide[ship]'") from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        place = Path(scratch) / name
        place.mkdir()
        _to_onnx(model, place / MODEL)
        if model.reads.text:
            model.tokenizer.save_pretrained(str(place))
            if not (place / TOKENIZER).is_file():
                raise ModelError("the backbone's tokenizer has no tokenizer.json, which the export reads")
        for other in place.iterdir():
            if other.name not in (MODEL, TOKENIZER):
                other.unlink()
        Variant(
            name,
            what,
            model.labels,
            model.max_length,
            model.pad,
            file_sha256(place / MODEL),
            model.task,
            model.size,
            model.scale,
            "none" if model.spelling is None else model.spelling.words,
            () if model.spelling is None else model.spelling.known_words,
            facts,
            model.two_texts,
            model.reads.label == "classes",
        ).save(place)
        wanted, found = (_flat(asked.outputs(rows)) for asked in (model, OnnxModel(place)))
        apart = float(np.abs(wanted - found).max() / max(1e-6, float(np.abs(wanted).max())))
        if not apart <= PARITY:
            raise ModelError(
                f"{name}: the exported model's logits differ by {apart:.2g} of the largest; allowed: {PARITY}"
            )
        _move(place, folder)
    return OnnxModel(folder)


def _flat(outputs: list[np.ndarray]) -> np.ndarray:
    """All logits; words that are not read count as 0."""
    return np.nan_to_num(np.concatenate([row.ravel() for row in outputs]))


def quantized(source: Path, folder: Path, name: str, what: str, **facts: Any) -> OnnxModel:
    """A variant with int8 weights, activations quantised on the way (dynamic): no calibration data needed."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ModuleNotFoundError as error:
        raise ConfigError(f"int8 needs {error.name}; pip install 'confide[ship]'") from None
    parent = OnnxModel(source).variant
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        place = Path(scratch) / name
        place.mkdir()
        with _quiet():
            quantize_dynamic(source / MODEL, place / MODEL, op_types_to_quantize=_INT8, weight_type=QuantType.QInt8)
        if (source / TOKENIZER).is_file():
            shutil.copyfile(source / TOKENIZER, place / TOKENIZER)
        digest = file_sha256(place / MODEL)
        replace(parent, name=name, what=what, sha256=digest, facts={**parent.facts, **facts}).save(place)
        _move(place, folder)
    return OnnxModel(folder)


def _to_onnx(model: TorchModel, path: Path) -> None:
    example, free = [], []
    if model.reads.text:
        example += model.batch([[model.pad + 1] * 7, [model.pad + 1] * 5])
        if model.segments:
            example.append(torch.zeros_like(example[0]))
        free += [{0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}] * len(example)
    if model.reads.images and model.size is not None:
        example.append(torch.zeros(2, *model.size))
        free.append({0: torch.export.Dim.DYNAMIC})
    with _quiet(), _plain_attention(model.module):
        try:
            program = torch.onnx.export(
                model.module,
                tuple(example),
                dynamo=True,
                dynamic_shapes=tuple(free),
                input_names=input_names(model.reads, model.segments),
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever its stages raise
            raise ModelError(f"this backbone does not export to ONNX: {type(error).__name__}") from None
        if program is None:
            raise ModelError("this backbone does not export to ONNX")
        program.save(str(path))


@contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """Within, attention is written out in products and a softmax: its graph has a tenth less to do on onnxruntime."""
    parts = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    before = [part.config._attn_implementation or "eager" for part in parts]
    for part in parts:
        part.set_attn_implementation("eager")
    try:
        yield
    finally:
        for part, name in zip(parts, before, strict=True):
            part.set_attn_implementation(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print and log how far they are."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _move(place: Path, folder: Path) -> None:
    """The finished variant into its place, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)  # without it the folder is no variant
    for name in (MODEL, TOKENIZER, FACTS):
        if (place / name).is_file():
            (place / name).replace(folder / name)
