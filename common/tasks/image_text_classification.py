"""One class for an image and a text: two towers, one vector each, and a head of two layers over both.

`model.backbone` reads the text, `model.image_backbone` the image.
"""

from dataclasses import replace

from torch import nn

from ..config.tables import ModelSection
from ..data.images import ImageForm
from ..errors import ConfigError
from ..model.pooling import ImageTextClassifier
from ..types import Reads, Records, Rows
from . import ACCURACY, load_backbone
from . import sequence_classification as text
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
CLASSES, VARIANTS, READS = True, 1, Reads(images=True)
EXPORT, PIPELINE, MAIN = "logits", None, ACCURACY


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    if model.image_backbone is None:
        raise ConfigError("model.image_backbone: nothing received; name the tower that reads images")
    images = load_backbone(model.image_backbone, model)
    form = ImageForm.of(images, model.image_backbone)
    return ImageTextClassifier(load_backbone(path, model), images, form, model.pooling, classes)


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    if rows.images is None:
        raise ValueError("rows without images are not for this task")
    return replace(text.encode(rows, tokenizer, max_length), images=rows.images)
