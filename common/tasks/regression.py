"""One number for one text: squared error on a linear head over the pooled tokens.

Numbers are in standard deviations of the labels of the public validation set (without one, of the test set), from
their mean (`data.scale`): a site's own would be a release.
"""

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from ..config.tables import ModelSection
from ..model.pooling import PooledClassifier
from ..model.weights import read_weights
from ..types import Metrics, Reads, Records, Rows
from . import Batch, Counted, Main, inputs_of, load_backbone, texts

HEAD = ["head", "classifier", "score"]  # ours, then the names transformers gives its own
CLASSES, VARIANTS, READS = False, 1, Reads(label="number")
EXPORT, PIPELINE, MAIN = "logits", "text-classification", Main("R²", "r2")
COUNTED = (Counted(Main("mean absolute error", "mae", higher=False), 3.0),)
CLOSE = 0.5
"""standard deviations within which a guess counts as right, for `accuracy`"""


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    if model.pooling == "model":
        return read_weights(AutoModelForSequenceClassification, path, model, num_labels=1)
    return PooledClassifier(load_backbone(path, model), model.pooling, 1)


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    if rows.labels is None:
        raise ValueError("rows without numbers cannot be learned")
    return texts(rows, tokenizer, max_length, rows.labels)


def targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    """(B,) float32."""
    return torch.from_numpy(records.targets[indices].astype(np.float32))


def _guesses(module: nn.Module, batch: Batch) -> torch.Tensor:
    """(B,)."""
    return module(**inputs_of(batch)).logits.float()[:, 0]


def _losses(guesses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B,)."""
    return 0.5 * (guesses - batch["targets"]) ** 2


def record_losses(module: nn.Module, batch: Batch) -> torch.Tensor:
    return _losses(_guesses(module, batch), batch)


def score(module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    guesses = _guesses(module, batch)
    return {
        "loss": _losses(guesses, batch).cpu().numpy(),
        "predicted": guesses.cpu().numpy(),
        "true": batch["targets"].cpu().numpy(),
    }


def metrics(scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
    """r2: share of the variance explained; rmse, mae in standard deviations; accuracy: share of guesses within half a
    standard deviation."""
    predicted, true = scores["predicted"].astype(np.float64), scores["true"].astype(np.float64)
    wrong = predicted - true
    spread = float(((true - true.mean()) ** 2).sum())
    return {
        "accuracy": float((np.abs(wrong) <= CLOSE).mean()),
        "r2": 1 - float((wrong**2).sum()) / spread if spread else 0.0,
        "rmse": float(np.sqrt((wrong**2).mean())),
        "mae": float(np.abs(wrong).mean()),
        "loss": float(scores["loss"].mean()),
    }, None


def parts(scores: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """(N, 4): squared error, the number, its square, and 1."""
    predicted, true = scores["predicted"].astype(np.float64), scores["true"].astype(np.float64)
    return np.stack([(predicted - true) ** 2, true, true**2, np.ones(len(true))], axis=1)


def main(sums: np.ndarray) -> np.ndarray:
    wrong, total, squares, count = np.moveaxis(sums, -1, 0)
    spread = squares - total**2 / np.maximum(count, 1)
    return np.where(spread > 0, 1 - wrong / np.where(spread > 0, spread, 1.0), 0.0)


def counted(scores: dict[str, np.ndarray]) -> np.ndarray:
    """The absolute error, in standard deviations; R² is no mean of bounded values."""
    return np.abs(scores["predicted"].astype(np.float64) - scores["true"])[:, None]


def constant(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mean."""
    return {**scores, "predicted": np.full_like(scores["true"], scores["true"].mean())}
