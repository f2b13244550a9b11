"""What a model is judged by: the task's main metric on the public test set, its interval, and differences of two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..common.tasks import Main

_RESAMPLES, _CONFIDENCE = 2000, 0.95
_Z = 1.959963984540054
"""of a normal distribution, within which 95 % lie on both sides"""
_AT_ONCE = 4_000_000
"""numbers of resamples that are drawn at a time"""


@dataclass(frozen=True)
class Figure:
    """One metric of one model over N test records, with a 95 % interval for the records that were drawn for the set.

    Of shares of right answers it is Wilson's (1927), of other metrics the percentiles of 2,000 resamples of the records
    (Efron 1979). It knows nothing of the noise and the draws of training: other seeds may leave it.
    """

    measure: Main
    parts: np.ndarray
    """(N, S): what `combine` adds up, a row a record"""
    combine: Callable[[np.ndarray], np.ndarray]
    """(…, S) sums → (…)"""

    @property
    def value(self) -> float:
        return float(self.combine(self.parts.sum(0)))

    @cached_property
    def interval(self) -> tuple[float, float]:
        if self._is_share:
            from scipy.stats import binomtest

            found = binomtest(int(self.parts[:, 0].sum()), len(self.parts)).proportion_ci(_CONFIDENCE, "wilson")
            return float(found.low), float(found.high)
        return _percentiles(self._resampled)

    def over(self, others: Sequence["Figure"]) -> dict[str, float]:
        """How much this is above the mean of others on the same records, with the interval of the difference: of shares
        of right answers that of Bonett and Price (2012), of other metrics by the same resamples on both sides."""
        value = self.value - float(np.mean([other.value for other in others]))
        if all(one._is_share for one in (self, *others)):
            low, high = _paired(self.parts[:, 0] - np.mean([other.parts[:, 0] for other in others], axis=0))
        else:
            low, high = _percentiles(self._resampled - np.mean([other._resampled for other in others], axis=0))
        return {"value": value, "low": low, "high": high}

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {**self.measure._asdict(), "value": self.value, "low": low, "high": high, "records": len(self.parts)}

    @property
    def _is_share(self) -> bool:
        """Of records that are right or not."""
        count = self.parts.shape[1] == 2 and bool((self.parts[:, 1] == 1).all())
        return count and bool(np.isin(self.parts[:, 0], (0, 1)).all())

    @cached_property
    def _resampled(self) -> np.ndarray:
        """(2,000,) values of resamples; which records these are depends on their number alone."""
        records = len(self.parts)
        rng = np.random.default_rng([0xB007, records])
        size, left, found = max(1, _AT_ONCE // records), _RESAMPLES, []
        while left:
            times = rng.multinomial(records, np.full(records, 1 / records), size=min(size, left))
            found.append(self.combine(times @ self.parts))
            left -= len(times)
        return np.concatenate(found)


def _paired(differences: np.ndarray) -> tuple[float, float]:
    """Of the mean of (N,) differences, each of one record and no larger than 1: Wald's interval with two records more,
    one for each side. Without these, answers that differ in four records, or in none, would be a sure difference, or
    surely none."""
    records = len(differences) + 2
    mean = differences.sum() / records
    half = _Z * np.sqrt(((differences**2).sum() + 2) / records - mean**2) / np.sqrt(records)
    return float(max(-1.0, mean - half)), float(min(1.0, mean + half))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(N, K): what the model would say with its logits divided by the temperature."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def fitted_temperature(probabilities: np.ndarray, true: np.ndarray) -> float:
    """The temperature in 0.05 … 20 at which the classes that are true are the likeliest. probabilities: (N, K)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        shares = at_temperature(probabilities, float(np.exp(log_temperature)))
        return -float(np.log(np.maximum(shares[np.arange(len(true)), true], 1e-30)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))
