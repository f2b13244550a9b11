"""Membership inference on a final model: was this record among the training records?

Loss threshold: Yeom et al., CSF 2018. Likelihood ratio (LiRA): Carlini et al., "Membership Inference Attacks From First
Principles", S&P 2022, section V, with reference models trained on known halves of one pool. What counts is the true
positive rate at a low false positive rate, not an average.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, norm

FALSE_POSITIVE_RATES = (0.01, 0.001)
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Roc:
    """An attack's operating points, from (0, 0) to (1, 1)."""

    false_positive: np.ndarray
    true_positive: np.ndarray

    def at(self, rate: float) -> float:
        """The largest true positive rate whose false positive rate is at most `rate`."""
        return float(self.true_positive[self.false_positive <= rate].max())

    @property
    def area(self) -> float:
        return float(np.trapezoid(self.true_positive, self.false_positive))


def confidence(losses: np.ndarray) -> np.ndarray:
    """log p/(1−p) of p = e^−loss: nearly normal over models, where the loss is not (ibid., section V.B)."""
    losses = np.clip(losses, 1e-7, 60.0)
    return -losses - np.log(-np.expm1(-losses))


def likelihood_ratio(target: np.ndarray, references: np.ndarray, was_in: np.ndarray) -> np.ndarray:
    """(N,) log-likelihood ratios: in ÷ out.

    target: (N,) confidences under the attacked model. references: (K, N) under the reference models. was_in: (K, N)
    bool, which reference was trained on which record. The spread is estimated over all records together, since each has
    only a few references (ibid., section V.C). Raises ValueError where a record was in all references, or in none.
    """
    if not (was_in.any(0) & ~was_in.all(0)).all():
        raise ValueError("every record must be in some reference models and out of some")
    means, spreads = [], []
    for chosen in (was_in, ~was_in):
        count = chosen.sum(0)
        mean = np.where(chosen, references, 0.0).sum(0) / count  # (N,)
        residual = np.where(chosen, references - mean, 0.0)
        # one degree of freedom a record went into its mean
        freedom = max(1, int(count.sum()) - len(mean))
        means.append(mean)
        spreads.append(max(_LEAST_SPREAD, float(np.sqrt((residual**2).sum() / freedom))))
    return norm.logpdf(target, means[0], spreads[0]) - norm.logpdf(target, means[1], spreads[1])


def roc(scores: np.ndarray, members: np.ndarray) -> Roc:
    """Operating points of "score ≥ threshold means member"; equal scores move together.

    scores: (N,). members: (N,) bool.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(members[order])
    false = np.cumsum(~members[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return Roc(
        np.concatenate([[0.0], false[last] / max(1, false[-1])]),
        np.concatenate([[0.0], hits[last] / max(1, hits[-1])]),
    )


def upper_limit(rate: float, members: int, level: float = 0.975) -> float:
    """Clopper and Pearson's upper confidence limit of a rate observed on `members` records."""
    hits = round(rate * members)
    return 1.0 if hits >= members else float(beta.ppf(level, hits + 1, members - hits))


def summary(scores: np.ndarray, members: np.ndarray) -> dict:
    """What a report says of one attack; `curve` is thinned to what a plot shows."""
    found = roc(scores, members)
    keep = np.unique(np.concatenate([[0], np.geomspace(1, len(found.false_positive), 200).astype(int) - 1]))
    return {
        "auc": found.area,
        "tpr": {str(rate): found.at(rate) for rate in FALSE_POSITIVE_RATES},
        "tpr_upper": {str(rate): upper_limit(found.at(rate), int(members.sum())) for rate in FALSE_POSITIVE_RATES},
        "curve": [found.false_positive[keep].tolist(), found.true_positive[keep].tolist()],
    }
