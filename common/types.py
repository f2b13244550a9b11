"""The vocabulary that a server and a site share, on one page.

Shapes: N records, B records of a physical batch, T tokens, K classes, d released coordinates.
"""

from dataclasses import dataclass, field

import numpy as np

Adapter = dict[str, np.ndarray]
"""LoRA and head by PEFT's saved name → float32 array; ordered by name."""

Metrics = dict[str, float]
"""accuracy, macro_f1, loss, … of one evaluation."""


@dataclass(frozen=True)
class Rows:
    """What a source holds, cleaned: one entry a record."""

    source: str
    """the file or address, for error messages"""
    text: list[str]
    """the text, or the prompt of an instruction"""
    response: list[str] | None = None
    """the answer of an instruction (`causal-lm`)"""
    labels: np.ndarray | None = None
    """(N,) int64 class indices"""
    group: np.ndarray | None = None
    """(N,) strings of the column of a `natural` partition"""

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Records:
    """Tokenised records, ragged: record i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: np.ndarray
    """(Σ T_i,) int32"""
    offsets: np.ndarray
    """(N + 1,) int64"""
    targets: np.ndarray
    """(N,) int64: the class index, or the first position that counts in the loss (`causal-lm`)"""

    def __len__(self) -> int:
        return len(self.targets)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """(len(indices),) tokens of each record."""
        return self.offsets[indices + 1] - self.offsets[indices]


@dataclass(frozen=True)
class RoundTask:
    """What the server asks of a site in one round."""

    round: int
    """1 … rounds"""
    adapter: Adapter
    """the global adapter, frozen factors included"""
    proximal_mu: float = 0.0
    """FedProx: μ of the term μ/2·‖θ − θ_global‖²"""


@dataclass(frozen=True)
class Update:
    """What leaves a site after one round: a release."""

    site: str
    delta: Adapter
    """new − old of the trained arrays; −(mean gradient) when the server takes the step"""
    weight: float
    """records in mode `none`; 1 under privacy, where a count would be a release"""
    steps: int
    """optimizer steps charged to this run so far, this round's included"""
    epsilon: float | None
    """ε spent in this run so far; None in mode `none`"""
    metrics: Metrics = field(default_factory=dict)
    """mode `none` only: the mean training loss"""
