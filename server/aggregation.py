"""From updates to the next adapter. Aggregates stream: memory does not grow with the number of sites.

`Mean` is FedAvg (McMahan et al. 2017) and, with the A factors frozen, FFA-LoRA (Sun et al. 2024). `ProductMean`
averages the products B·A, which the mean of the factors is not (FLoRA, Wang et al. 2024; FedEx-LoRA,
Singhal et al. 2024). Sums are kept in float64, so the order of replies does not show in float32.
"""

from typing import Protocol

import numpy as np
import torch

from ..common.config import RunConfig
from ..common.errors import RoundError
from ..common.models import lora_pairs
from ..common.optimizer import make_optimizer
from ..common.types import Adapter


class Aggregate(Protocol):
    """One round's accumulator."""

    def add(self, delta: Adapter, weight: float) -> None:
        """Takes one site's update in."""
        ...

    def finish(self) -> Adapter:
        """The change of the global adapter, float64. Raises RoundError when nothing was added."""
        ...


class Mean:
    """Weighted mean of the deltas."""

    def __init__(self) -> None:
        self._sum: Adapter = {}
        self._weight = 0.0

    def add(self, delta: Adapter, weight: float) -> None:
        for name, array in delta.items():
            if name not in self._sum:
                self._sum[name] = np.zeros(array.shape)
            self._sum[name] += weight * array.astype(np.float64)
        self._weight += weight

    def finish(self) -> Adapter:
        if not self._weight:
            raise RoundError("no update to aggregate")
        return {name: array / self._weight for name, array in self._sum.items()}


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
        self.residual = 0.0

    def add(self, delta: Adapter, weight: float) -> None:
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


def make_aggregate(config: RunConfig, adapter: Adapter) -> Aggregate:
    """A fresh accumulator for one round of `fedavg`, `ffa` or `exact`."""
    return ProductMean(adapter) if config.server.aggregation == "exact" else Mean()


class ServerStep:
    """Applies a round's change: adds it, or hands it as a gradient to the server's optimizer.

    With `local_steps` = 1 the sites send −(mean gradient) and the optimizer lives here, where noise has been averaged;
    what it does is post-processing.
    """

    def __init__(self, config: RunConfig, trained: Adapter) -> None:
        self._parameters = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in trained.items()}
        self._optimizer = None
        if config.server_steps:
            self._optimizer = make_optimizer(
                config.training.optimizer, self._parameters.values(), config.training.learning_rate
            )

    def apply(self, adapter: Adapter, change: Adapter) -> Adapter:
        """The next adapter; arrays that `change` does not name stay."""
        if self._optimizer is None:
            moved = {name: (adapter[name] + array).astype(np.float32) for name, array in change.items()}
            return {**adapter, **moved}
        for name, p in self._parameters.items():
            p.data = torch.from_numpy(adapter[name].copy())
            p.grad = torch.from_numpy(-change[name].astype(np.float32))
        self._optimizer.step()
        moved = {name: p.detach().numpy().copy() for name, p in self._parameters.items()}
        if all(np.array_equal(array, adapter[name]) for name, array in moved.items()):
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
