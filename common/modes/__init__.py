"""One file a mode of privacy: its unit, plan and claim in words, what a site computes, what the server makes of it.

A mode is a module here that offers the members of `Mode`; `none`, `local`, `distributed` and `client` are values of
`privacy.mode`, and `distillation` is that of a run with `distill.public`, whichever of the first three adds the noise.
Client and server call these; a mode imports neither.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from ..types import Adapter, Metrics

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism, PrivacyPlan

GradientStep = Callable[[], tuple[np.ndarray, float]]
"""one step's mean gradient (d,) and, without privacy, its mean loss"""


@dataclass(frozen=True)
class Release:
    """What one round of a site gives away: an update of its own, or a share of a secure sum."""

    delta: Adapter = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    share: np.ndarray | None = None
    """(d,) int64, for a secure sum"""
    excess: bytes = b""
    """the seed of what of the share's noise may come off once the survivors are known"""
    weight: float = 1.0
    counts: np.ndarray | None = None
    """(k,) float64: what the site's held-out records count, under privacy with noise; in a sum they are in the share"""


def as_share(mechanism: "PoissonMechanism", vector: np.ndarray, clip: float) -> Release:
    """A clipped sum (d,) float64 as a share of a secure sum, noise included."""
    share = mechanism.share(vector, clip)
    return Release(share=share, excess=mechanism.excess)


class Computation(Protocol):
    """What a site offers to a mode, for one round."""

    @property
    def config(self) -> "RunConfig": ...

    def records(self) -> int:
        """How many records the site holds."""
        ...

    @property
    def trains(self) -> bool:
        """Whether the round trains; otherwise it evaluates alone."""
        ...

    @property
    def evaluates(self) -> bool:
        """Whether the round counts held-out records."""
        ...

    def counts(self) -> np.ndarray:
        """(k,) float64: what the site's held-out records count at the weights that came. Not private."""
        ...

    def clip(self, plan: "PrivacyPlan") -> float:
        """The round's clip norm: the plan's, or the one that the task carries."""
        ...

    def clipped_sum(self, mechanism: "PoissonMechanism") -> np.ndarray:
        """(d,) float64: the sum of the clipped gradients of the next Poisson draw, at the current weights."""
        ...

    def private_steps(self, step: GradientStep) -> Adapter:
        """The change that local steps by these gradients make, or the one gradient that the server steps by."""
        ...

    def plain_steps(self) -> tuple[Adapter, float]:
        """The same by ordinary training, with the mean loss. Not private."""
        ...

    def plain_change(self) -> np.ndarray:
        """(d,) float64: the change of ordinary training, with coins of its own. Not private."""
        ...

    def votes(self) -> np.ndarray:
        """(M·K,) float64: scaled answers of the site's teachers; zero without records. Not private."""
        ...

    def as_adapter(self, vector: np.ndarray) -> Adapter:
        """A vector of the trained arrays as those arrays."""
        ...


class Mode(Protocol):
    """What a module of this package offers."""

    BY_RECORD: bool
    """whether single records are clipped, so that per-record gradients are proved before data is read"""
    BY_STEP: bool
    """whether each local step is a release of its own; otherwise a round is one"""
    TEACHERS: bool
    """whether sites train teachers, which answer public queries, and a student at the server learns the answers"""

    def ledger_unit(self, config: "RunConfig") -> str:
        """`example`, `person` or `client`: what the ledger charges for."""
        ...

    def at_sites(self, config: "RunConfig") -> "RunConfig":
        """The run with the model that sites train."""
        ...

    def exchanged(self, config: "RunConfig", trained: Adapter) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the arrays that a task carries. trained: arrays of the model that are trained."""
        ...

    def summed(self, config: "RunConfig") -> bool:
        """Whether one noise covers the sum over sites, so that the sites' ledgers do not compose."""
        ...

    def sampling_rate(self, config: "RunConfig") -> float | None:
        """q: the probability that a unit is drawn in a step."""
        ...

    def coordinates(self, config: "RunConfig", trained: int) -> int:
        """d: numbers that a step releases. trained: numbers of the model that are trained."""
        ...

    def units(self, config: "RunConfig") -> float:
        """Units behind one noisy sum, a public constant. Raises PrivacyError where none is declared."""
        ...

    def unit(self, config: "RunConfig") -> str:
        """The unit of ε, in words."""
        ...

    def protected(self, config: "RunConfig") -> str:
        """Subject of the sentence "… is protected"."""
        ...

    def adversary(self, config: "RunConfig") -> str:
        """Against whom ε holds, in words."""
        ...

    def sampling(self, config: "RunConfig") -> str:
        """How units are drawn, in words."""
        ...

    def noise(self, config: "RunConfig") -> str:
        """Who adds the noise, in words."""
        ...

    def bounded(self, config: "RunConfig", plan: "PrivacyPlan") -> str:
        """How what one unit adds is bounded, in words."""
        ...

    def release(self, site: Computation, mechanism: "PoissonMechanism | None") -> Release:
        """What a site computes in one round. mechanism: draws and adds noise; None in mode `none`."""
        ...

    def change(
        self, config: "RunConfig", plan: "PrivacyPlan", total: np.ndarray, clip: float
    ) -> tuple[np.ndarray, float]:
        """What the server makes of a sum: the change of the trained arrays (d,) float64, and the next clip norm.

        total: (d,) int64, noise included. Raises PrivacyError in a mode that sums nothing.
        """
        ...


def mode_of(config: "RunConfig") -> Mode:
    """The mode of a run."""
    return named(config.privacy.mode if config.distill.public is None else "distillation")


def named(name: str) -> Mode:
    return cast(Mode, importlib.import_module(f".{name}", __package__))
