"""What held-out records count, as coordinates of a release: one vector of L2 norm at most 1 for each record, or person.

Of each measure a record has a value x between 0 and its bound; it adds x and 1 − x to two coordinates (over the
bound, and over √m where there are m measures), which has norm at most 1. The mean is then one sum over both, and no
count of records needs noise of its own: with (right, total) a record would have norm √2, and a share four times the
variance.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .config.run import RunConfig
    from .tasks import Counted


def measures_of(config: "RunConfig") -> "tuple[Counted, ...]":
    """What is counted, with the run's own bounds."""
    from .tasks import load_task  # loads torch: only where it is needed

    own = config.evaluation.bound
    return tuple(
        one if own is None or one.most == 1 else one._replace(most=own) for one in load_task(config.model.task).COUNTED
    )


def classes_of(config: "RunConfig") -> int:
    """Classes that are counted apart; 1: all together."""
    return len(config.data.labels or []) if config.evaluation.per_class else 1


def numbers_of(config: "RunConfig") -> int:
    """k: coordinates of a release that count."""
    return 2 * len(measures_of(config)) * max(1, classes_of(config))


def vectors(config: "RunConfig", values: np.ndarray, true: np.ndarray | None) -> np.ndarray:
    """(N, k) float64, each row of norm at most 1, and zero for a record without values.

    values: (N, m), as `Task.counted` gives them. true: (N,) classes, where these are counted apart.
    """
    measures, classes = measures_of(config), classes_of(config)
    shares = np.clip(values / np.array([one.most for one in measures]), 0.0, 1.0)  # NaN stays
    pairs = np.stack([shares, 1 - shares], axis=2) / np.sqrt(len(measures))  # (N, m, 2)
    said = np.asarray(np.isfinite(values).all(axis=1))
    pairs = np.where(said[:, np.newaxis, np.newaxis], pairs, 0.0)
    found = np.zeros((len(values), classes, *pairs.shape[1:]))
    place = np.zeros(len(values), dtype=np.int64) if classes == 1 or true is None else true
    found[np.arange(len(values)), place] = pairs
    return found.reshape(len(values), -1)


def by_measure(config: "RunConfig", counts: np.ndarray) -> np.ndarray:
    """(K or 1, m, 2) of sums (k,): of each class and measure what `vectors` added up, in records."""
    measures = measures_of(config)
    return counts.reshape(-1, len(measures), 2) * np.sqrt(len(measures))
