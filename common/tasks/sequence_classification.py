"""One class for one text: cross-entropy on a linear head over the pooled tokens."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSequenceClassification

from ..config.tables import ModelSection
from ..model.pooling import PooledClassifier
from ..model.weights import read_weights
from ..types import Metrics, Reads, Records, Rows
from . import ACCURACY, Batch, Counted, class_losses, hits_counted, inputs_of, load_backbone, mean_of, texts

HEAD = ["head", "classifier", "score"]  # ours, then the names transformers gives its own
CLASSES, VARIANTS, READS = True, 1, Reads()
EXPORT, PIPELINE, MAIN = "logits", "text-classification", ACCURACY
SEVERAL = "multi-label-classification"
"""the task in place of this one where rows have lists of classes"""
_BINS = 15
COUNTED = (Counted(ACCURACY),)
main, counted = mean_of, hits_counted


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    if model.pooling == "model":
        return read_weights(AutoModelForSequenceClassification, path, model, num_labels=classes)
    return PooledClassifier(load_backbone(path, model), model.pooling, classes)


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    if rows.labels is None:
        raise ValueError("rows without labels cannot be classified")
    return texts(rows, tokenizer, max_length, rows.labels)


def targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    return torch.from_numpy(records.targets[indices])


def record_losses(module: nn.Module, batch: Batch) -> torch.Tensor:
    logits = module(**inputs_of(batch)).logits  # (B, K)
    return class_losses(logits.float(), batch)


def score(module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    logits = module(**inputs_of(batch)).logits.float()
    return {
        "loss": F.cross_entropy(logits, batch["targets"], reduction="none").cpu().numpy(),
        "predicted": logits.argmax(1).cpu().numpy(),
        "probabilities": logits.softmax(1).cpu().numpy(),
        "true": batch["targets"].cpu().numpy(),
    }


def metrics(scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
    confusion = np.zeros((classes, classes), dtype=np.int64)  # row: true, column: predicted
    np.add.at(confusion, (scores["true"], scores["predicted"]), 1)
    hits = np.diag(confusion)
    # F1 of a class = 2·hits / (true + predicted); classes that occur in neither do not count
    occurrences = confusion.sum(0) + confusion.sum(1)
    f1 = 2 * hits[occurrences > 0] / occurrences[occurrences > 0]
    there = confusion.sum(1) > 0
    return {
        "accuracy": float(hits.sum() / confusion.sum()),
        "macro_f1": float(f1.mean()),
        "loss": float(scores["loss"].mean()),
        "worst_class": float((hits[there] / confusion.sum(1)[there]).min()),
        "calibration_error": calibration_error(scores["probabilities"], scores["true"]),
    }, confusion


def parts(scores: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """(N, 2): right or not, and 1."""
    return np.stack([scores["predicted"] == scores["true"], np.ones(len(scores["true"]))], axis=1).astype(np.float64)


def constant(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The class that most records have."""
    return {**scores, "predicted": np.full_like(scores["true"], np.bincount(scores["true"]).argmax())}


def calibration_error(probabilities: np.ndarray, true: np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015): |accuracy − confidence| over bins of confidence, weighted.

    probabilities: (N, K). true: (N,).
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == true
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    apart = np.abs(np.bincount(bins, right, _BINS) - np.bincount(bins, confidence, _BINS))
    return float(apart[counts > 0].sum() / len(true))
