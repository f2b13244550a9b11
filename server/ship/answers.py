"""Answers of two models of texts side by side: what a student learns, and what cutting should not change."""

import numpy as np
import torch
import torch.nn.functional as F

from ...common.model.cuts import cheapest_cuts
from ...common.types import Reads, Rows
from .finished import TorchModel
from .runtime import by_word


def answer_rows(model: TorchModel, texts: list[str]) -> list[np.ndarray]:
    """Of each text (R, K) logits: of its class, of each word's tag (NaN: a word that is not read), or the number."""
    return [np.atleast_2d(row) for row in model.outputs(Rows("texts", texts))]


def stacked(rows: list[np.ndarray]) -> torch.Tensor:
    """(N, K): all rows of all texts, but words that are not read."""
    joined = np.concatenate(rows)
    return torch.from_numpy(joined[~np.isnan(joined[:, 0])])


def apart(wanted: torch.Tensor, found: torch.Tensor, reads: Reads, temperature: float = 1.0) -> torch.Tensor:
    """T²·KL(wanted ‖ found) at temperature T, mean over rows (N, K); of numbers half the mean squared difference."""
    if reads.label == "number":
        return 0.5 * F.mse_loss(found, wanted)
    wanted, found = (wanted / temperature).log_softmax(1), (found / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(found, wanted, log_target=True, reduction="batchmean")


class Compared:
    """Where a student's answers to texts are, and what another model says there."""

    def __init__(self, teacher: TorchModel, student: TorchModel, texts: list[str]) -> None:
        self.reads = teacher.reads
        goals = answer_rows(teacher, texts)
        self.ids, words = student.pieces(texts)
        self._places: list[np.ndarray] = []
        """of tags, (R,) of each text: the tokens that answer"""
        if self.reads.label == "tags":
            for i, row in enumerate(goals):
                order = np.arange(len(words[i]), dtype=np.float32)[:, None]
                firsts = by_word(order, words[i], len(row))[:, 0]  # (W,) the first token of each word
                both = ~np.isnan(firsts) & ~np.isnan(row[:, 0])
                self._places.append(firsts[both].astype(int))
                goals[i] = row[both]
        self._goals = goals
        self.texts = np.flatnonzero([len(row) > 0 for row in goals])
        """those with something to compare"""

    def rows(self, chosen: np.ndarray) -> int:
        """N of the chosen texts."""
        return sum(len(self._goals[i]) for i in chosen)

    def by_length(self, chosen: np.ndarray) -> list[np.ndarray]:
        """The chosen texts in batches of like length, by what the student reads."""
        lengths = np.array([len(self.ids[i]) for i in chosen])
        order = np.argsort(lengths, kind="stable")
        return np.split(chosen[order], cheapest_cuts(lengths[order], len(chosen))[1:])

    def wanted(self, chosen: np.ndarray) -> torch.Tensor:
        """(N, K) of the chosen texts."""
        return torch.from_numpy(np.concatenate([self._goals[i] for i in chosen]))

    def found(self, outputs: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
        """(N, K) of the student's outputs for them."""
        if self.reads.label != "tags":
            return outputs
        return torch.cat([outputs[row, self._places[i]] for row, i in enumerate(chosen)])
