"""Aggregates that tolerates f Byzantine sites among n, in float64 on whole updates as vectors.

Legend: X (n, d), one row a site; f the number of rows that may be anything. Every function is invariant under the order
of rows and equivariant under translation and scaling of X (but for `centred_clipping`, whose centre is given).

| aggregate | tolerates | source |
|---|---|---|
| `trimmed_mean`, `median` | f < n/2 | Yin et al. 2018 |
| `geometric_median` | f < n/2 | Weiszfeld 1937; Pillutla et al. 2022 |
| `krum`, `multi_krum` | n ≥ 2f + 3 | Blanchard et al. 2017 |
| `bulyan` | n ≥ 4f + 3 | El Mhamdi et al. 2018 |
| `centred_clipping` | f < n/2 | Karimireddy et al. 2021 |
| `mixed`, before any of them | f < n/2 | nearest-neighbour mixing, Allouah et al. 2023 |

Over rounds, honest noise averages out and a repeated attack does not (Karimireddy et al. 2021). `Momentum` keeps the
running mean of each site's updates; `trusted` leaves out sites whose means lie farthest from the others'.

Nothing here knows who lies, or how.
"""

from collections.abc import Callable

import numpy as np

from ...common.config.byzantine import most_byzantine
from ...common.errors import RoundError

_WEISZFELD_STEPS, _CLIPPING_STEPS = 100, 5
_TOLERANCE = 1e-9
_SHORT = 0.1
"""of the median length, below which an update is as good as none"""
_OUTLYING = 3.5
"""modified z-score above which a row is called an outlier (Iglewicz and Hoaglin 1993)"""


def trimmed_mean(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """(d,) mean of each coordinate without its f largest and f smallest values."""
    n = len(rows)
    if byzantine == 0:
        return rows.mean(0)
    inner = np.partition(rows, (byzantine, n - byzantine - 1), axis=0)[byzantine : n - byzantine]
    return inner.mean(0)


def median(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """(d,) coordinate-wise median; the same for every f < n/2."""
    return np.median(rows, axis=0)


def geometric_median(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """(d,) the point with the least sum of distances to all rows; the same for every f < n/2.

    Weiszfeld's iteration on the weights of the rows: distances come from their Gram matrix, so a step costs n².
    """
    gram = _gram(rows)
    distances = np.sqrt(np.diag(gram))  # to the coordinate-wise median, where the iteration starts
    weights = np.zeros(len(rows))
    for _ in range(_WEISZFELD_STEPS):
        middle = float(np.median(distances))
        if middle == 0:  # most rows coincide: there it is
            return rows[int(distances.argmin())]
        inverse = 1 / np.maximum(distances, _TOLERANCE * middle)
        moved = np.abs(inverse / inverse.sum() - weights).max()
        weights = inverse / inverse.sum()
        if moved < _TOLERANCE:
            break
        squares = np.diag(gram) - 2 * gram @ weights + weights @ gram @ weights
        distances = np.sqrt(np.maximum(squares, 0))
    return weights @ rows


def krum(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """(d,) the row that is nearest to its n − f − 2 nearest rows."""
    return rows[int(_krum_scores(_squared_distances(rows), byzantine).argmin())]


def multi_krum(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """(d,) mean of the n − f rows with the best Krum scores."""
    scores = _krum_scores(_squared_distances(rows), byzantine)
    return rows[np.argsort(scores, kind="stable")[: len(rows) - byzantine]].mean(0)


def bulyan(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """(d,) of n − 2f rows that Krum chose one after the other, for each coordinate the mean of the n − 4f values
    nearest to their median."""
    distances = _squared_distances(rows)
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * byzantine:
        scores = _krum_scores(distances[np.ix_(left, left)], byzantine)
        chosen.append(left.pop(int(scores.argmin())))
    kept = np.sort(rows[chosen], axis=0)  # (θ, d)
    count = len(chosen) - 2 * byzantine
    # the values nearest to the median are neighbours in sorted order: the best of the 2f + 1 windows
    middle = np.median(kept, axis=0)
    starts = np.arange(len(chosen) - count + 1)
    worst = np.stack([np.maximum(middle - kept[s], kept[s + count - 1] - middle) for s in starts])  # (2f + 1, d)
    best = worst.argmin(0)
    result = np.empty(kept.shape[1])
    for start in starts:
        here = best == start
        result[here] = kept[start : start + count, here].mean(0)
    return result


def centred_clipping(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(d,) from a centre (the aggregate of the round before) towards the mean, each row's pull clipped to the median
    distance."""
    for _ in range(_CLIPPING_STEPS):
        offsets = rows - centre
        lengths = np.linalg.norm(offsets, axis=1)
        radius = float(np.median(lengths))
        if radius == 0:
            break
        factors = np.minimum(1, radius / np.maximum(lengths, np.finfo(float).tiny))
        centre = centre + factors @ offsets / len(rows)
    return centre


def mixed(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """(n, d) each row replaced by the mean of the n − f rows nearest to it, itself included."""
    nearest = np.argsort(_squared_distances(rows), axis=1, kind="stable")[:, : len(rows) - byzantine]
    pick = np.zeros((len(rows), len(rows)))
    np.put_along_axis(pick, nearest, 1 / nearest.shape[1], axis=1)
    return pick @ rows


def bounded(rows: np.ndarray, norm: float) -> np.ndarray:
    """(n, d) rows longer than `norm` shortened to it."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1, norm / np.maximum(lengths, np.finfo(float).tiny))


def outliers(rows: np.ndarray, aggregate: np.ndarray) -> np.ndarray:
    """(n,) bool: rows far further from the aggregate than the middle ones.

    It may name an honest site with unusual data, and a Byzantine site that keeps close is not named.
    """
    distances = np.linalg.norm(rows - aggregate, axis=1)
    middle = np.median(distances)
    spread = 1.4826 * float(np.median(np.abs(distances - middle)))
    if spread == 0:
        return distances > middle * (1 + 1e-6)
    return (distances - middle) / spread > _OUTLYING


class Momentum:
    """The running mean of each site's updates, without the bias of its first rounds (as Kingma and Ba 2015 do)."""

    def __init__(self, decay: float) -> None:
        """decay: weight of the past, in [0, 1)."""
        self._decay = decay
        self._sums: dict[str, np.ndarray] = {}
        """(1 + d,) sum of the weights, and the weighted sum of the updates"""

    def take(self, sites: list[str], rows: np.ndarray) -> np.ndarray:
        """(n, d) means with this round's rows in them."""
        means = np.empty(rows.shape)
        for i, (site, row) in enumerate(zip(sites, rows, strict=True)):
            now = (1 - self._decay) * np.concatenate([[1.0], row])
            self._sums[site] = self._decay * self._sums[site] + now if site in self._sums else now
            means[i] = self._sums[site][1:] / self._sums[site][0]
        return means

    def state(self) -> dict[str, np.ndarray]:
        """For a checkpoint, by site."""
        return dict(self._sums)

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._sums = dict(state)


def trusted(means: np.ndarray, byzantine: int, count: int) -> np.ndarray:
    """(n,) bool: the `count` rows with the best Krum scores. Those that hardly move come last: nothing is near
    everything, so sites that send nothing would look trustworthy, and hold the others back."""
    scores = _krum_scores(_squared_distances(means), byzantine)
    lengths = np.linalg.norm(means, axis=1)
    scores[lengths < _SHORT * np.median(lengths)] = np.inf
    kept = np.zeros(len(means), dtype=bool)
    kept[np.argsort(scores, kind="stable")[:count]] = True
    return kept


Rule = Callable[[np.ndarray, int], np.ndarray]
RULES: dict[str, Rule] = {
    "trimmedmean": trimmed_mean,
    "median": median,
    "geometricmedian": geometric_median,
    "krum": krum,
    "multikrum": multi_krum,
    "bulyan": bulyan,
}


def aggregate(name: str, rows: np.ndarray, byzantine: int, *, mixing: bool, centre: np.ndarray) -> np.ndarray:
    """(d,) by the named rule. centre: (d,) the last aggregate, for `centredclipping`.

    Raises RoundError for rows that are not finite, or too few for f Byzantine sites.
    """
    rows = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise RoundError("an update that is not finite reached the aggregate")
    if (most := most_byzantine(name, len(rows))) < byzantine:
        raise RoundError(
            f"'{name}' tolerates {max(most, 0)} Byzantine sites among {len(rows)}, server.byzantine is {byzantine}"
        )
    if mixing:
        rows = mixed(rows, byzantine)
    return centred_clipping(rows, centre) if name == "centredclipping" else RULES[name](rows, byzantine)


def _gram(rows: np.ndarray) -> np.ndarray:
    """(n, n) scalar products around the coordinate-wise median, so that no long row costs the others their digits."""
    centred = rows - np.median(rows, axis=0)
    return centred @ centred.T


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    gram = _gram(rows)
    squares = np.diag(gram)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0)
    np.fill_diagonal(distances, 0)
    return distances


def _krum_scores(distances: np.ndarray, byzantine: int) -> np.ndarray:
    """(n,) sum of the n − f − 2 smallest squared distances to other rows (at least one)."""
    others = np.sort(distances, axis=1)[:, 1:]  # without itself
    return others[:, : max(1, len(distances) - byzantine - 2)].sum(1)
