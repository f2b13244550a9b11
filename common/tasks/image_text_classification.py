"""One class for a picture and a text: two towers, one vector each, and a head of two layers over both.

`model.backbone` reads the text, `model.image_backbone` the picture.
"""

from dataclasses import replace

from torch import nn

from ..config.tables import ModelSection
from ..data.images import PictureForm
from ..errors import ConfigError
from ..model.backbones import resolve_backbone
from ..model.pooling import PictureTextClassifier
from ..types import Reads, Records, Rows
from . import load_backbone
from . import sequence_classification as text
from .sequence_classification import metrics, record_losses, score, targets

__all__ = ["build", "encode", "metrics", "record_losses", "score", "targets"]

HEAD = ["head"]
CLASSES, VARIANTS, READS = True, 1, Reads(pictures=True)


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    if model.image_backbone is None:
        raise ConfigError("model.image_backbone: nothing received; name the tower that reads pictures")
    pictures_path = resolve_backbone(model.image_backbone)
    pictures = load_backbone(pictures_path)
    form = PictureForm.of(pictures, pictures_path)
    return PictureTextClassifier(load_backbone(path), pictures, form, model.pooling, classes)


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    if rows.pictures is None:
        raise ValueError("rows without pictures are not for this task")
    return replace(text.encode(rows, tokenizer, max_length), pictures=rows.pictures)
