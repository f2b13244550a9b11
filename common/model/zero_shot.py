"""A classifier without training: each class is the embedding of its name or of a sentence about it."""

from collections.abc import Sequence

import numpy as np

from ..errors import ModelError
from ..types import Records, Rows
from .loading import FineTuneModel


def zero_shot(model: FineTuneModel, records: Records, which: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(n,) the class whose embedding is nearest by cosine, of the backbone as it was published.

    which: (n,) numbers of records. classes: a text for each class, in the order of the run's labels; `as_text` makes
    one of a name. Raises ModelError for a model that gives no one vector a record.
    """
    return (directions(model, records, which) @ embeddings(model, list(classes)).T).argmax(1)


def nearest_centroid(
    model: FineTuneModel, records: Records, which: np.ndarray, known: Records, classes: int
) -> np.ndarray:
    """(n,) the class whose mean embedding is nearest by cosine. known: public records whose classes are `targets`.
    Raises ModelError as `zero_shot`."""
    vectors = directions(model, known, np.arange(len(known)))
    members = [vectors[known.targets == label] for label in range(classes)]
    centroids = _unit(np.stack([own.sum(0) for own in members]))
    near = directions(model, records, which) @ centroids.T  # (n, K)
    return np.where([len(own) > 0 for own in members], near, -np.inf).argmax(1)  # a class that nobody knows is nobody's


def as_text(name: str) -> str:
    """A class' name as somebody would say it: `card_arrival` → `card arrival`."""
    return name.replace("_", " ").replace("-", " ").strip()


def embeddings(model: FineTuneModel, texts: list[str]) -> np.ndarray:
    """(N, h) of unit length."""
    records = model.encode(Rows("texts", texts, labels=np.zeros(len(texts), dtype=np.int64)))
    return directions(model, records, np.arange(len(records)))


def directions(model: FineTuneModel, records: Records, which: np.ndarray) -> np.ndarray:
    """(n, F) of unit length; LoRA starts as nothing, so the initial adapter leaves the backbone as it was."""
    if not model.pools:
        raise ModelError("the head reads whole texts, not one vector each; set model.pooling to mean, first or last")
    if records.features is not None:
        return _unit(records.features[which])
    model.set(model.initial)
    return _unit(model.features(records, which))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
