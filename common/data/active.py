"""Which unlabelled rows are worth a person's time: strategies over a site's own pool, with the current global model.

All of it happens at the site and stays there. What leaves is a later run on the rows that were labelled, and that run
is charged like any other. Its ε counts labelled records; a record of the *pool* also decides who else is chosen. Where
each record has a score of its own (`SCORED`) and the best are taken, one record more in the pool brings itself in and
pushes at most one other out, in this round and in all later ones together: the pool's record is protected like a group
of two, (2ε, (1 + e^ε)·δ). Strategies that look at the chosen rows together (`coreset`, `badge`) have no such bound, and
are refused under privacy.
"""

import math
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ModelError
from ..model.loading import FineTuneModel
from ..model.personal_head import head_inputs
from ..types import Adapter, Records
from .record_keys import mixed

Strategy = Literal["random", "entropy", "margin", "bald", "coreset", "badge"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
SCORED: tuple[Strategy, ...] = ("random", "entropy", "margin", "bald")
"""strategies that give each record a score of its own"""

_PASSES, _DROPOUT = 20, 0.1
_BLOCK = 256
"""rows that a head reads at once"""


def choose(
    strategy: Strategy,
    count: int,
    model: FineTuneModel,
    adapter: Adapter,
    pool: Records,
    unlabelled: np.ndarray,
    labelled: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """At most `count` of the unlabelled rows, the most wanted first.

    pool: all rows of the site, with keys; unlabelled, labelled: numbers among them. rng: what it draws is the same for
    every record, and with each record's own key decides what is random about it. Raises ModelError for a task without
    classes, or a head that reads more than one vector a record.
    """
    count, salt = min(count, len(unlabelled)), int(rng.integers(2**63))
    if pool.keys is None:
        raise ModelError("a pool without keys of its records: one record more would change the choice among the others")
    lots = mixed(pool.keys[unlabelled], salt)
    if strategy == "random":
        return unlabelled[np.argsort(lots, kind="stable")[:count]]
    read, head = head_inputs(model, adapter, pool, np.concatenate([unlabelled, labelled]))
    vectors, known = read[: len(unlabelled)], read[len(unlabelled) :]
    if strategy == "coreset":
        return unlabelled[farthest(vectors.numpy(), known.numpy(), count)]
    guessed = _probabilities(head, vectors)
    if strategy == "badge":
        return unlabelled[gradients_apart(guessed, vectors.numpy(), count, rng)]
    if strategy == "bald":
        scores = disagreement(_with_dropout(head, vectors, rng))
    else:
        scores = entropy(guessed) if strategy == "entropy" else -margin(guessed)
    return unlabelled[np.lexsort((lots, -scores))[:count]]  # equal scores in an order that is each record's own


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """(…, K) → (…,) in nats."""
    return -(probabilities * np.log(np.clip(probabilities, 1e-12, None))).sum(-1)


def margin(probabilities: np.ndarray) -> np.ndarray:
    """(N, K) → (N,): how far the likeliest class is above the next (Scheffer et al. 2001)."""
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities))
    best = np.partition(probabilities, -2, axis=1)[:, -2:]
    return best[:, 1] - best[:, 0]


def disagreement(passes: np.ndarray) -> np.ndarray:
    """BALD (Houlsby et al. 2011): mutual information of the answer and the model. (P, N, K) → (N,)."""
    return entropy(passes.mean(0)) - entropy(passes).mean(0)


def farthest(vectors: np.ndarray, known: np.ndarray, count: int) -> np.ndarray:
    """Core-set by the greedy k-centre rule (Sener and Savarese 2018): each time the row farthest from all that are
    labelled or chosen. vectors: (N, h). known: (L, h). Returns row numbers in order."""
    squares = (vectors**2).sum(1)

    def distance(to: np.ndarray) -> np.ndarray:
        return np.maximum(squares + (to**2).sum() - 2 * vectors @ to, 0)

    nearest = np.full(len(vectors), np.inf)
    for one in known:
        nearest = np.minimum(nearest, distance(one))
    if not len(known):
        nearest = distance(vectors.mean(0))
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance(vectors[chosen[-1]]))
        nearest[chosen] = -1
    return np.array(chosen, dtype=np.int64)


def gradients_apart(probabilities: np.ndarray, vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """BADGE (Ash et al. 2020): k-means++ over the last layer's gradients for the likeliest class, so that rows are both
    uncertain and unlike one another.

    A gradient is (p − e_ŷ) ⊗ h: lengths and products of (N, K·h) rows follow from the factors, which alone are kept.
    """
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(errors)), errors.argmax(1)] -= 1
    lengths = (errors**2).sum(1) * (vectors.astype(np.float64) ** 2).sum(1)
    chosen = [int(lengths.argmax())] if count else []
    nearest = np.full(len(errors), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        products = (errors @ errors[last]) * (vectors @ vectors[last])
        nearest = np.minimum(nearest, np.maximum(lengths + lengths[last] - 2 * products, 0))
        nearest[chosen] = 0
        left = np.setdiff1d(np.arange(len(errors)), chosen)
        total = nearest.sum()
        chosen.append(int(rng.choice(len(errors), p=nearest / total) if total > 0 else rng.choice(left)))
    return np.array(chosen, dtype=np.int64)


@torch.no_grad()
def _probabilities(head: nn.Module, vectors: torch.Tensor) -> np.ndarray:
    """(N, h) → (N, K), in blocks of one size: a row has the same bits whoever else is there."""
    blocks = []
    for block in vectors.split(_BLOCK):
        logits = head(F.pad(block, (0, 0, 0, _BLOCK - len(block))))
        if logits.dim() != 2:
            raise ModelError("labels are asked for whole records; this head answers for each token")
        blocks.append(logits.softmax(1)[: len(block)].numpy())
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32)


def _with_dropout(head: nn.Module, vectors: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
    """(P, N, K): answers with dropout on what the head reads (Gal et al. 2017, on the last layer alone).

    One mask a pass for all records: masks of each record, drawn in file order, would change with one record more.
    """
    found = []
    for _ in range(_PASSES):
        kept = torch.from_numpy(rng.random((1, vectors.shape[1]), dtype=np.float32) >= _DROPOUT)
        found.append(_probabilities(head, vectors * kept / (1 - _DROPOUT)))
    return np.stack(found)


def pool_epsilon(epsilon: float, delta: float) -> tuple[float, float]:
    """(ε, δ) of a pool's record under a strategy of `SCORED`, from that of a labelled record: a group of two
    (Dwork and Roth 2014, Theorem 2.2, with its δ: Vadhan 2017, Lemma 2.2)."""
    return 2 * epsilon, (1 + math.exp(epsilon)) * delta
