"""Any number of classes for one text: a logistic loss a class on a linear head over the pooled tokens.

A run asks for it by name, or by lists in the label column of its public sets.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSequenceClassification

from ..config.tables import ModelSection
from ..model.pooling import PooledClassifier
from ..model.weights import read_weights
from ..types import Metrics, Reads, Records, Rows
from . import Batch, Counted, Main, f1_of, inputs_of, load_backbone, texts

HEAD = ["head", "classifier", "score"]  # ours, then the names transformers gives its own
CLASSES, VARIANTS, READS = True, 1, Reads(label="classes")
EXPORT, PIPELINE, MAIN = "logits", "text-classification", Main("macro F1", "macro_f1")
COUNTED = (Counted(Main("right decisions", "decisions")),)


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    if model.pooling == "model":
        kind = "multi_label_classification"
        return read_weights(AutoModelForSequenceClassification, path, model, num_labels=classes, problem_type=kind)
    return PooledClassifier(load_backbone(path, model), model.pooling, classes)


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    if rows.labels is None:
        raise ValueError("rows without labels cannot be classified")
    return texts(rows, tokenizer, max_length, rows.labels)


def targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    """(B, K) float32, 1 for the classes of a record."""
    return torch.from_numpy(records.targets[indices].astype(np.float32))


def _losses(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B,): the mean over the classes of each record alone. logits: (B, K)."""
    return F.binary_cross_entropy_with_logits(logits.float(), batch["targets"], reduction="none").mean(1)


def record_losses(module: nn.Module, batch: Batch) -> torch.Tensor:
    return _losses(module(**inputs_of(batch)).logits, batch)


def score(module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    logits = module(**inputs_of(batch)).logits.float()
    return {
        "loss": _losses(logits, batch).cpu().numpy(),
        "predicted": (logits > 0).cpu().numpy(),
        "true": (batch["targets"] > 0).cpu().numpy(),
    }


def metrics(scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
    """F1 of a class = 2·hits / (true + predicted). macro_f1: its mean over the classes that occur in either; micro_f1:
    of all decisions together; accuracy: records whose classes are all right."""
    predicted, true = scores["predicted"].astype(bool), scores["true"].astype(bool)  # (N, K)
    hits, occurrences = (predicted & true).sum(0), predicted.sum(0) + true.sum(0)
    return {
        "accuracy": float((predicted == true).all(1).mean()),
        "macro_f1": float(f1_of(hits, occurrences)),
        "micro_f1": float(2 * hits.sum() / occurrences.sum()) if occurrences.any() else 1.0,
        "loss": float(scores["loss"].mean()),
    }, None


def parts(scores: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """(N, 2·K): hits of each class, and how often it is true or predicted."""
    predicted, true = scores["predicted"].astype(bool), scores["true"].astype(bool)
    return np.concatenate([predicted & true, predicted.astype(int) + true], axis=1).astype(np.float64)


def main(sums: np.ndarray) -> np.ndarray:
    hits, occurrences = np.split(sums, 2, axis=-1)
    return f1_of(hits, occurrences)


def counted(scores: dict[str, np.ndarray]) -> np.ndarray:
    """The share of the classes that a record was rightly given or not given."""
    return (scores["predicted"].astype(bool) == scores["true"].astype(bool)).mean(1)[:, None]


def constant(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All classes for every record, which no other constant answer beats in macro F1."""
    return {**scores, "predicted": np.ones_like(scores["true"])}
