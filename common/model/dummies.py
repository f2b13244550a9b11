"""Records of nobody, and the first look at a model: does it answer two of them?"""

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ModelError, first_line
from ..tasks import ragged
from ..types import IGNORED, Records

if TYPE_CHECKING:
    from .loading import FineTuneModel

_ALIKE = 1e-3
"""difference of two losses of one record that kernels may make"""
SHORT = 7
"""tokens of a short record; no multiple of what a model may cut its texts into"""


def dummy_records(model: "FineTuneModel", lengths: list[int], seed: int = 0) -> Records:
    """Random tokens and pixels, random answers; no record of anybody. lengths: tokens of each."""
    rng, count, reads = np.random.default_rng([seed, 0xD077]), len(lengths), model.task.READS
    lists: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * count
    wanted = None
    if reads.text:
        tokens = usual_tokens(model)
        lists = [rng.choice(tokens, length).astype(np.int32) for length in lengths]
    if reads.label == "tags":
        wanted = [rng.integers(0, model.classes, length).astype(np.int32) for length in lengths]
    elif reads.pairs:
        wanted = _other_answers(lists)
    elif reads.label is None:  # the token itself; of the first one nothing is before it
        wanted = [np.where(np.arange(len(ids)) > 0, ids, IGNORED).astype(np.int32) for ids in lists]
    targets = np.ones(count, dtype=np.int64)
    if reads.label == "class":
        targets = rng.integers(0, max(1, model.classes), count)
    elif reads.label == "classes":
        targets = rng.integers(0, 2, (count, model.classes), dtype=np.uint8)
    elif reads.label == "number":
        targets = rng.normal(size=count)
    records = ragged(lists, targets, wanted)
    if model.segments:
        halves = [np.arange(len(ids)) >= len(ids) // 2 for ids in lists]
        records = replace(records, segments=np.concatenate([np.empty(0), *halves]).astype(np.int8))
    if reads.images and (form := model.image) is not None:
        pixels = rng.integers(0, 256, (count, form.channels, form.height, form.width), dtype=np.uint8)
        records = replace(records, images=pixels)
    return model.with_features(records)


def usual_tokens(model: "FineTuneModel") -> np.ndarray:
    """The tokens that a dummy may hold: all but padding."""
    return np.setdiff1d(np.arange(model.vocabulary), [model.pad])


def _other_answers(lists: list[np.ndarray]) -> list[np.ndarray]:
    """To one answer each from the second token on another, of the same tokens in another order; now the one, now the
    other ends a token earlier."""
    others = [np.r_[IGNORED, ids[:0:-1]].astype(np.int32) for ids in lists]
    for number, pair in enumerate(zip(lists, others, strict=True)):
        pair[number % 2][max(2, len(lists[number]) - 1) :] = IGNORED
    return others


@torch.no_grad()
def check_answers(model: "FineTuneModel") -> None:
    """Raises ModelError for a model that gives no loss for each of two short records of the task, or another each time.

    model: a copy that nobody else uses: some change with what they read. No generator of the caller's moves.
    """
    lengths = [min(SHORT, model.max_length), min(SHORT // 2 + 1, model.max_length)]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            records = replace(dummy_records(model, lengths), features=None)  # which are read once
            losses, again = (model.losses(records, np.arange(2)) for _ in range(2))
    except ModelError:
        raise
    except Exception as error:  # of an architecture that reads or answers otherwise than the task expects
        raise ModelError(_unanswered(model, error)) from None
    if losses.shape != (2,):
        raise ModelError(
            f"model.backbone: for 2 records this model gives losses of shape {tuple(losses.shape)}, not one each; "
            "choose another model.pooling ('model' for the backbone's own head), or another backbone"
        )
    if not torch.allclose(losses, again, rtol=_ALIKE, atol=_ALIKE, equal_nan=True):
        raise ModelError(
            f"model.backbone: {_kind_of(model)} draws random numbers while it reads, so the same record gets another "
            "answer each time; choose another backbone"
        )


def _unanswered(model: "FineTuneModel", error: Exception) -> str:
    """Why a model does not answer, and what to do."""
    text, kind, own = str(error), _kind_of(model), "choose another model.pooling ('model': the backbone's own head)"
    if "padding token" in text or "pad_token" in text:
        pad = model.pad
        return (
            f"model.backbone: the config.json of {kind} names no pad_token_id, by which its own head finds the end of "
            f'a text; add "pad_token_id": {pad} to it (the tokenizer\'s), or set model.pooling to last or mean'
        )
    if getattr(getattr(_inner(model), "config", None), "is_encoder_decoder", False):
        return (
            f"model.backbone: {kind} is an encoder with a decoder, and does not answer to one text alone "
            f"({first_line(error)}); give an encoder, such as BERT, or a decoder, such as GPT-2 or Llama"
        )
    if isinstance(error, TypeError) and "argument" in text:
        given = "pixel_values" if model.image is not None and not model.task.READS.text else "input_ids, attention_mask"
        return (
            f"model.backbone: {kind} reads {', '.join(_reads(model))}; received: {given} ({first_line(error)}); give a "
            "model that reads texts as BERT, GPT-2 or Llama do, and images as a ViT"
        )
    why = f"{type(error).__name__}: {first_line(error)}"
    if "shapes cannot be multiplied" in text or "normalized_shape" in text:
        why = f"its vectors have another width than its config.json says: {first_line(error)}"
    return f"model.backbone: {kind} does not answer a short record of the task ({why}); {own}, or give another backbone"


def _inner(model: "FineTuneModel") -> torch.nn.Module:
    """The model of transformers."""
    base = model.module.get_base_model()
    tower = getattr(getattr(base, "image_encoder", None), "tower", base)
    return getattr(base, "backbone", tower)


def _kind_of(model: "FineTuneModel") -> str:
    return type(_inner(model)).__name__


def _reads(model: "FineTuneModel") -> list[str]:
    """The names of what a model's forward pass takes."""
    return [name for name in inspect.signature(_inner(model).forward).parameters if name not in ("self", "kwargs")][:6]
