"""Whether labels can be judged at all: some are replaced by others, and the ranking has to put those first.

Which labels are wrong already is not known, so nothing can be counted in them; which are replaced here is known.
"""

from dataclasses import dataclass

import numpy as np

from .labels import Features, ranked

_SHARE, _TIMES, _LEAST = 0.1, 2, 50
"""labels that are replaced at a time; how many times at least, and labels over all times"""
_ENOUGH = 0.3
"""recall from which a quotient of shares is taken: of fewer rows it is mostly chance"""
_MOST = 0.5
"""share of wrong labels above which nothing is believed: what learns from labels expects most of them to be right"""
NEEDED = 0.6
"""share found below which labels count as not to be judged: benchmarks/RESULTS.md, "Data check", has what it parts"""


@dataclass(frozen=True)
class Trial:
    replaced: int
    """labels that were replaced, each by any other class with the same probability"""
    found: float
    """share of them among as many first places: precision, recall and F1 at once"""

    @property
    def passed(self) -> bool:
        return self.found >= NEEDED


def tried(features: Features, labels: np.ndarray, groups: np.ndarray, seed: int) -> Trial:
    """As `labels.ranked`."""
    classes, count = int(labels.max()) + 1, max(1, round(_SHARE * len(labels)))
    replaced, others = [], []
    for time in range(max(_TIMES, -(-_LEAST // count))):
        rng = np.random.default_rng([seed, 0x7E57, time])
        rows = rng.permutation(len(labels))[:count]
        wrong = labels.copy()
        wrong[rows] = (labels[rows] + rng.integers(1, classes, count)) % classes
        ranking = ranked(features, wrong, groups, seed + time)
        ours = np.isin(ranking.order, rows)
        replaced.append(ranking.score[ours])
        others.append(ranking.score[~ours])
    return Trial(count * len(replaced), found_first(np.concatenate(replaced), np.concatenate(others)))


def found_first(replaced: np.ndarray, others: np.ndarray) -> float:
    """Share of the replaced labels among as many first places, without those that were wrong before.

    replaced: (n,) scores; others: (m,). At a score, R of the replaced and Q of the others are ranked before it. Of the
    others a share e is wrong and ranked as the replaced are, F is of the right ones: Q = e R + (1 − e) F. F is not
    negative, so that e is at most the least Q / R, which is taken for it (Blanchard et al. 2010). Above a half: 0.
    """
    replaced, n, m = np.sort(replaced), len(replaced), len(others)
    of_replaced = np.arange(1, n + 1) / n
    of_others = np.searchsorted(np.sort(others), replaced, side="right") / m
    wrong = (of_others / of_replaced)[of_replaced >= _ENOUGH].min()
    if wrong > _MOST:
        return 0.0
    of_right = np.maximum.accumulate(np.maximum(0, of_others - wrong * of_replaced) / (1 - wrong))
    places = n * of_replaced + m * of_right
    return float((places <= n).sum() / n)
