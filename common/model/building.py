"""A task's base model made of a backbone, or one line that says why not."""

import re

from torch import nn
from transformers import AutoConfig

from ..config.tables import ModelSection
from ..errors import ConfideError, ModelError, first_line
from ..tasks import Task
from .backbones import Folders, resolve_backbone
from .checkpoints import needs_code, quantised_by
from .lora import STAND_IN


def build(task: Task, path: str, model: ModelSection, classes: int, folders: Folders = ()) -> nn.Module:
    """Raises ModelError for whatever transformers cannot make of the folder, and for weights that were saved in few
    bits: LoRA merged into them is rounded, so that a model answers otherwise than it was measured, and libraries
    choose some of their numbers by a whole batch."""
    if (method := quantised_by(path)) is not None:
        raise ModelError(
            f"model.backbone: '{model.backbone}' was saved in few bits ({method}), which is not read; give the "
            "checkpoint in full precision, and set model.weights = 'int8' or 'nf4' to hold it in few bits"
        )
    images = None if model.image_backbone is None else resolve_backbone(model.image_backbone, folders)
    try:
        base = task.build(path, model.model_copy(update={"image_backbone": images}), classes)
    except ConfideError:
        raise
    except Exception as error:  # of a library that reads weights, too
        why, advice = _why(error, path, model, classes)
        raise ModelError(
            f"model.backbone: '{model.backbone}' does not load for '{model.task}': {why}; {advice}"
        ) from None
    if model.train != "lora":
        base.add_module(STAND_IN, nn.Linear(1, 1, bias=False))
    return base


def _why(error: Exception, path: str, model: ModelSection, classes: int) -> tuple[str, str]:
    """What is wrong, and what to do."""
    text, line = str(error), first_line(error).rstrip(".:")
    if needs_code(path) and ("trust_remote_code" in text or "does not recognize" in text):
        return (
            "it needs Python files of its own, which confide never runs (trust_remote_code is always false)",
            "give an architecture of transformers itself",
        )
    if "FlashAttention" in text or "flash_attn" in text:
        return line, "take _attn_implementation and attn_implementation out of its config.json"
    if isinstance(error, AttributeError) and "Config' object has no attribute" in text:
        return (
            f"its config.json names no width of its vectors ({line})",
            "give a model of one tower and one width, such as BERT or Llama for texts, or a ViT for images; one tower "
            "of several, saved by itself, is one",
        )
    if "ignore_mismatched_sizes" in text or "size mismatch" in text:
        return _other_sizes(path, model, classes)
    if "for this kind of AutoModel" in text:
        found = re.search(r"(\w+)Config\W", text)
        kind = found.group(1) if found else "its architecture"
        return f"transformers has no model of {kind} for it", "choose another model.task, or another backbone"
    if "weights_only" in text or "Weights only load failed" in text:
        return (
            "pytorch_model.bin holds more than numbers, and only numbers are read (weights_only)",
            "save the model as safetensors, by transformers' save_pretrained",
        )
    if "PytorchStreamReader" in text or "unpickling" in text.lower() or "pickle" in text:
        return "pytorch_model.bin is cut or no checkpoint of torch", "download it again"
    return (
        f"{type(error).__name__}: {line}" if not isinstance(error, ValueError | OSError) else line,
        "check the folder, or give another backbone",
    )


def _other_sizes(path: str, model: ModelSection, classes: int) -> tuple[str, str]:
    """Of a checkpoint whose arrays have other sizes than the model that is to be made."""
    had = getattr(AutoConfig.from_pretrained(path, trust_remote_code=False), "num_labels", None)
    if model.pooling == "model" and had != classes:
        return (
            f"its own head has {had} classes, and the run has {classes or 1}",
            f"give {had} classes in data.labels, or set model.pooling to mean, first or last for a new head",
        )
    return "arrays in its file have other sizes than its config.json says", "download both again, of one model"
