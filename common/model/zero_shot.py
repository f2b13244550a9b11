"""A classifier without training: each class is the embedding of its name or of a sentence about it."""

from collections.abc import Sequence

import numpy as np
import torch

from ..types import Rows
from .loading import FineTuneModel

_BATCH = 64


def zero_shot(model: FineTuneModel, rows: Rows, classes: Sequence[str]) -> np.ndarray:
    """(N,) the class whose embedding is nearest by cosine, of the backbone as it was published.

    classes: a text for each class, in the order of the run's labels; `as_text` makes one of a name. Raises ModelError
    for a model that gives no one vector a record.
    """
    texts = embeddings(model, rows.text)
    names = embeddings(model, list(classes))
    return (texts @ names.T).argmax(1)


def as_text(name: str) -> str:
    """A class' name as somebody would say it: `card_arrival` → `card arrival`."""
    return name.replace("_", " ").replace("-", " ").strip()


@torch.no_grad()
def embeddings(model: FineTuneModel, texts: list[str]) -> np.ndarray:
    """(N, h) of unit length; LoRA starts as nothing, so the initial adapter leaves the backbone as it was."""
    model.set(model.initial)
    records = model.encode(Rows("texts", texts, labels=np.zeros(len(texts), dtype=np.int64)))
    parts, back = records.by_length(np.arange(len(records)), _BATCH)
    vectors = np.concatenate([model.represent(model.batch(records, part)).cpu().numpy() for part in parts])[back]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
