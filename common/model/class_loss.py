"""Class weights and label smoothing: what the log-probability of each class counts in a record's loss.

A record of class y has the loss −Σ_k t_k·log p_k with t_k = (1 − ε)·w_y·[k = y] + ε/K·w_k, which is torch's
cross-entropy with these weights w and this smoothing ε (Szegedy et al. 2016, section 7), as its own sum: it is not
divided by the weights of a batch. w and ε are constants of the run and of public values, so the loss stays a function
of its own record, and what bounds a record's gradient under privacy is the clip norm, as without them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config.run import RunConfig
from ..types import IGNORED


@dataclass(frozen=True)
class ClassLoss:
    """What a run's loss is where it is not the plain cross-entropy."""

    weights: tuple[float, ...]
    """w: of each class"""
    smoothing: float
    """ε"""

    def shares(self, targets: torch.Tensor) -> torch.Tensor:
        """(…) classes, or `IGNORED` → (…, K): t of each, 0 where nothing is learned."""
        count = len(self.weights)
        weights = torch.tensor(self.weights, device=targets.device)
        own = F.one_hot(targets.clamp(min=0), count) * ((1 - self.smoothing) * weights)
        found = own + self.smoothing / count * weights
        return found * (targets != IGNORED)[..., None]


def class_loss_of(config: RunConfig) -> ClassLoss | None:
    """None for the plain cross-entropy. config: resolved."""
    training, shares = config.training, config.data.class_shares
    if training.class_weights == "none" and not training.label_smoothing:
        return None
    count = len(config.data.labels or [])
    weights = (1.0,) * count
    if training.class_weights == "balanced" and shares is not None:
        weights = tuple(sum(shares) / (count * share) for share in shares)
    return ClassLoss(weights, training.label_smoothing)
