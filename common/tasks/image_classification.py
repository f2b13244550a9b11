"""One class for one image: a vision transformer, its patches' mean, and a linear head."""

import numpy as np
from torch import nn

from ..config.tables import ModelSection
from ..data.images import ImageForm
from ..model.pooling import ImageClassifier
from ..types import Reads, Records, Rows
from . import ACCURACY, load_backbone
from .sequence_classification import (
    COUNTED,
    constant,
    counted,
    main,
    metrics,
    parts,
    record_losses,
    score,
    targets,
)

__all__ = [
    "COUNTED",
    "build",
    "constant",
    "counted",
    "encode",
    "main",
    "metrics",
    "parts",
    "record_losses",
    "score",
    "targets",
]

HEAD = ["head"]
CLASSES, VARIANTS, READS = True, 1, Reads(text=False, images=True)
EXPORT, PIPELINE, MAIN = "logits", "image-classification", ACCURACY


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    backbone = load_backbone(path, model)
    return ImageClassifier(backbone, ImageForm.of(backbone, path), model.pooling, classes)


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    if rows.labels is None or rows.images is None:
        raise ValueError("rows without labels or images cannot be classified")
    nothing = np.empty(0, dtype=np.int32), np.zeros(len(rows) + 1, dtype=np.int64)
    return Records(*nothing, rows.labels, images=rows.images)
