"""From updates to the next adapter. Aggregates stream: memory does not grow with the number of sites.

`Mean` is FedAvg (McMahan et al. 2017) and, with the A factors frozen, FFA-LoRA (Sun et al. 2024). `ProductMean`
averages the products B·A, which the mean of the factors is not (FLoRA, Wang et al. 2024; FedEx-LoRA,
Singhal et al. 2024). Sums are kept in float64, so the order of replies does not show in float32. `Robust` keeps all
updates of a round: what tolerates Byzantine sites compares them.

A site's weight is its own claim: none counts for more than about ten sites of the median weight (`weight_cap`).
"""

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch

from ...common.config.byzantine import most_left_out
from ...common.config.run import RunConfig
from ...common.errors import RoundError
from ...common.model.lora import lora_pairs
from ...common.model.optimizer import make_optimizer, rate_of_round, shrink
from ...common.types import Adapter, joined, split
from . import robust


class Aggregate(Protocol):
    """One round's accumulator."""

    def add(self, delta: Adapter, weight: float, site: str = "") -> None:
        """Takes one site's update in."""
        ...

    def finish(self) -> Adapter:
        """The change of the global adapter, float64. Raises RoundError when nothing was added."""
        ...


_CAP = 8.0


def weight_cap(weights: Iterable[float]) -> float:
    """What the weight of one site may be at most: the power of two from eight times the median weight on."""
    middle = float(np.median(list(weights)))
    return 2.0 ** math.ceil(math.log2(_CAP * middle)) if middle > 0 else 0.0


class Mean:
    """Mean of the deltas, weighted by what the sites claim, up to `weight_cap`.

    The cap is known when all weights are. So sums are kept apart by the power of two of their weight: those above the
    cap count as plain sums times the cap.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Adapter, Adapter]] = {}
        """power of two that the weights are just below → weighted sum, plain sum"""
        self._weights: list[float] = []

    def add(self, delta: Adapter, weight: float, site: str = "") -> None:
        power = math.frexp(weight)[1]
        if power not in self._sums:
            self._sums[power] = ({}, {})
        for name, array in delta.items():
            for sums, factor in zip(self._sums[power], (weight, 1.0), strict=True):
                if name not in sums:
                    sums[name] = np.zeros(array.shape)
                sums[name] += factor * array.astype(np.float64)
        self._weights.append(weight)

    def finish(self) -> Adapter:
        if not self._weights:
            raise RoundError("no update to aggregate")
        cap = weight_cap(self._weights)
        total = sum(min(weight, cap) for weight in self._weights)
        if not total:
            raise RoundError("no update has a weight")
        change: Adapter = {}
        for power, (weighted, plain) in self._sums.items():
            above = 2.0**power > cap
            for name in weighted:
                part = cap * plain[name] if above else weighted[name]
                change[name] = change.get(name, 0.0) + part / total
        return change


class ProductMean:
    """Weighted mean of the products B_i·A_i, brought back to rank r by SVD in factor space; the head is a plain mean.

    The mean is exact: Σ w_i B_i A_i = [w_1 B_1 … w_n B_n]·[A_1; …; A_n]. The truncation to rank r is the best one in
    Frobenius norm (Eckart and Young 1936); `residual` says what it lost, relative to the mean.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._pairs = lora_pairs(list(adapter))
        self._in_pairs = {name for pair in self._pairs for name in pair}
        self._rest = Mean()
        self._factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._weight = 0.0
        self._kept: list[tuple[Adapter, float]] = []
        self.residual = 0.0

    def add(self, delta: Adapter, weight: float, site: str = "") -> None:
        """Kept until the cap on weights is known: a product cannot be taken apart again."""
        self._kept.append((delta, weight))

    def _take(self, delta: Adapter, weight: float) -> None:
        self._rest.add({name: array for name, array in delta.items() if name not in self._in_pairs}, weight)
        for name_a, name_b in self._pairs:
            a = (self._adapter[name_a] + delta[name_a]).astype(np.float64)  # (r, d_in)
            b = (self._adapter[name_b] + delta[name_b]).astype(np.float64) * weight  # (d_out, r)
            if name_a in self._factors:
                left, right = self._factors[name_a]
                b, a = np.hstack([left, b]), np.vstack([right, a])
                if a.shape[0] > min(b.shape[0], a.shape[1]):  # wider than the product itself: keep the product
                    b, a = _full_rank(b, a)
            self._factors[name_a] = (b, a)
        self._weight += weight

    def finish(self) -> Adapter:
        cap = weight_cap(weight for _, weight in self._kept) if self._kept else 0.0
        for delta, weight in self._kept:
            self._take(delta, min(weight, cap))
        if not self._weight:
            raise RoundError("no update to aggregate")
        change = self._rest.finish() if len(self._in_pairs) < len(self._adapter) else {}
        lost = total = 0.0
        for name_a, name_b in self._pairs:
            b, a = self._factors[name_a]
            rank = self._adapter[name_a].shape[0]
            new_b, new_a, singular = _truncate(b / self._weight, a, rank)
            lost += float((singular[rank:] ** 2).sum())
            total += float((singular**2).sum())
            change[name_a] = new_a - self._adapter[name_a]
            change[name_b] = new_b - self._adapter[name_b]
        self.residual = (lost / total) ** 0.5 if total else 0.0
        return change


def _full_rank(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same product with inner width min(d_out, d_in)."""
    if b.shape[0] <= a.shape[1]:
        return np.eye(b.shape[0]), b @ a
    return b @ a, np.eye(a.shape[1])


def _truncate(b: np.ndarray, a: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B (d_out, w), A (w, d_in) → the best rank-r factors of B·A and all singular values, without forming B·A."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, singular, v = np.linalg.svd(r_b @ r_a.T)
    root = np.sqrt(singular[:rank])
    new_b, new_a = q_b @ u[:, :rank] * root, (q_a @ v[:rank].T * root).T
    missing = rank - new_a.shape[0]
    if missing > 0:  # a product narrower than the rank
        new_b = np.pad(new_b, ((0, 0), (0, missing)))
        new_a = np.pad(new_a, ((0, missing), (0, 0)))
    return new_b, new_a, singular


class RobustState:
    """What a robust aggregation keeps from round to round."""

    def __init__(self, config: RunConfig, coordinates: int) -> None:
        self.centre = np.zeros(coordinates)
        """(d,) the last aggregate"""
        self.momentum = robust.Momentum(config.momentum) if config.momentum else None

    def arrays(self) -> Adapter:
        """For a checkpoint."""
        past = {} if self.momentum is None else self.momentum.state()
        return {_CENTRE: self.centre, **{_PAST + site: array for site, array in past.items()}}

    def restore(self, arrays: Adapter) -> None:
        self.centre = arrays.get(_CENTRE, self.centre)
        if self.momentum is not None:
            past = {name.removeprefix(_PAST): array for name, array in arrays.items() if name.startswith(_PAST)}
            self.momentum.restore(past)


_CENTRE, _PAST = "centre", "past/"


class Robust:
    """An aggregate that tolerates `server.byzantine` sites; every site counts the same, whatever weight it claims."""

    def __init__(self, config: RunConfig, trained: Adapter, state: RobustState) -> None:
        self._name, self._mixing, self._byzantine = config.server.aggregation, config.server.mixes, config.byzantine
        self._trained, self._state = trained, state
        self._rows: list[np.ndarray] = []
        self._sites: list[str] = []
        self.outliers: list[str] = []
        """sites whose updates lie far from the aggregate"""
        self.left_out: list[str] | None = None
        """sites that the momentum of their updates told apart; None: without momentum"""

    def add(self, delta: Adapter, weight: float, site: str = "") -> None:
        self._rows.append(joined(delta))
        self._sites.append(site)

    def finish(self) -> Adapter:
        if not self._rows:
            raise RoundError("no update to aggregate")
        rows, state = np.stack(self._rows).astype(np.float64), self._state
        kept = np.ones(len(rows), dtype=bool)
        if state.momentum is not None and self._byzantine:
            means = state.momentum.take(self._sites, rows)
            kept = robust.trusted(
                means, self._byzantine, len(rows) - most_left_out(self._name, len(rows), self._byzantine)
            )
            self.left_out = self._named(~kept)
        state.centre = robust.aggregate(
            self._name, rows[kept], self._byzantine, mixing=self._mixing, centre=state.centre
        )
        self.outliers = self._named(robust.outliers(rows, state.centre))
        return split(state.centre, self._trained)

    def _named(self, chosen: np.ndarray) -> list[str]:
        return sorted(site for site, one in zip(self._sites, chosen, strict=True) if one)


def make_aggregate(config: RunConfig, adapter: Adapter, trained: Adapter, state: RobustState | None) -> Aggregate:
    """A fresh accumulator for one round of `fedavg`, `ffa`, `exact` or a robust aggregation, which needs its state."""
    if state is not None:
        return Robust(config, trained, state)
    return ProductMean(adapter) if config.server.aggregation == "exact" else Mean()


class ServerStep:
    """Applies a round's change: adds it, or hands it as a gradient to the server's optimizer.

    With `local_steps` = 1 the sites send −(mean gradient) and the optimizer lives here, where noise has been averaged;
    what it does is post-processing. The rate follows from the round's number, so nothing of it is kept.
    """

    def __init__(self, config: RunConfig, trained: Adapter) -> None:
        self._config = config
        self._parameters = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in trained.items()}
        self._optimizer = None
        if config.server_steps:
            self._optimizer = make_optimizer(
                config.training.optimizer, self._parameters.values(), config.training.learning_rate
            )

    def apply(self, adapter: Adapter, change: Adapter, number: int) -> Adapter:
        """The next adapter; arrays that `change` does not name stay. number: of the round."""
        if self._optimizer is None:
            moved = {name: (adapter[name] + array).astype(np.float32) for name, array in change.items()}
            return {**adapter, **moved}
        for name, p in self._parameters.items():
            p.data = torch.from_numpy(adapter[name].copy())
            p.grad = torch.from_numpy(-change[name].astype(np.float32))
        for group in self._optimizer.param_groups:
            group["lr"] = rate_of_round(self._config, number)
        shrink(self._optimizer, self._config.training.weight_decay)
        shrunk = {name: p.detach().numpy().copy() for name, p in self._parameters.items()}
        self._optimizer.step()
        moved = {name: p.detach().numpy().copy() for name, p in self._parameters.items()}
        if all(np.array_equal(array, shrunk[name]) for name, array in moved.items()):
            raise RoundError("the server's step moved no trained array: the updates are all zero")
        return {**adapter, **moved}

    def state(self) -> Adapter:
        """The optimizer's moments as arrays, for a checkpoint."""
        if self._optimizer is None:
            return {}
        return {
            f"{name}/{key}": np.asarray(value)
            for name, p in self._parameters.items()
            for key, value in self._optimizer.state[p].items()
            if value is not None
        }

    def restore(self, state: Adapter) -> None:
        for path, value in state.items():
            name, key = path.rsplit("/", 1)
            if self._optimizer is None:
                raise RoundError("the checkpoint holds an optimizer's state, but this run has none at the server")
            self._optimizer.state[self._parameters[name]][key] = torch.from_numpy(np.asarray(value).copy())
