"""Distillation: a site's teachers answer public queries, and a student at the server learns their noised votes.

PATE (Papernot et al. 2017, 2018) with teachers spread over sites, of any architecture. One record is with one teacher;
added or removed, it can turn all M answers of that teacher, each by a vector of length √2: the answers of all teachers
together move by at most √(2M). They are scaled so that this is the clip norm C, and released like a clipped sum: by the
site with full noise (privacy.mode `local`), in shares of a secure sum (`distributed`), or as they are (`none`).
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from ..privacy.noise import from_grid
from ..types import Adapter
from . import Computation, Mode, Release, as_share, named
from .by_record import ledger_unit, protected, unit  # noqa: F401  # members of the mode

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..privacy.mechanism import PoissonMechanism, PrivacyPlan

BY_RECORD, BY_STEP, TEACHERS = False, False, True
ANSWERS = "answers"
"""what stands in the adapter's place"""


def answer_scale(config: "RunConfig") -> float:
    """What one teacher's answer counts, so that all its M answers together differ from others by at most C."""
    return config.privacy.clip / math.sqrt(2 * config.distill.queries)


def answers_shape(config: "RunConfig") -> tuple[int, int]:
    """(M, K): what a site releases."""
    return config.distill.queries, len(config.data.labels or [])


def at_sites(config: "RunConfig") -> "RunConfig":
    """Teachers are the student's model, where a site names no other."""
    return config.for_teachers(None)


def exchanged(config: "RunConfig", trained: Adapter) -> dict[str, tuple[int, ...]]:
    return {ANSWERS: answers_shape(config)}


def sampling_rate(config: "RunConfig") -> float | None:
    """1: every record is with a teacher."""
    return 1.0


def coordinates(config: "RunConfig", trained: int) -> int:
    return math.prod(answers_shape(config))


def units(config: "RunConfig") -> float:
    """Teachers: of one site, or of all behind a sum."""
    return config.distill.teachers * (config.clients if summed(config) else 1)


def _noised(config: "RunConfig") -> Mode:
    """The mode that adds the noise, and whose words hold for what leaves a site."""
    return named(config.privacy.mode)


def summed(config: "RunConfig") -> bool:
    return _noised(config).summed(config)


def adversary(config: "RunConfig") -> str:
    return _noised(config).adversary(config)


def sampling(config: "RunConfig") -> str:
    return "none: each record is read by one teacher of its site, drawn in secret"


def noise(config: "RunConfig") -> str:
    return _noised(config).noise(config)


def bounded(config: "RunConfig", plan: "PrivacyPlan") -> str:
    return (
        f"each record is read by one of its site's {config.distill.teachers} teachers; what changes with it are "
        f"that teacher's {config.distill.queries} answers, measured so that this is at most C = {plan.clip:g}"
    )


def release(site: Computation, mechanism: "PoissonMechanism | None") -> Release:
    config = site.config
    if mechanism is None:
        return Release(as_answers(site.votes() / config.distill.teachers, config), weight=float(site.records()))
    mechanism.draw(0)  # nobody is drawn: every record is with a teacher
    votes = site.votes()
    if config.secure:
        return as_share(mechanism, votes, mechanism.plan.clip)
    return Release(as_answers(mechanism.release(votes), config))


def as_answers(votes: np.ndarray, config: "RunConfig") -> Adapter:
    return {ANSWERS: votes.reshape(answers_shape(config)).astype(np.float32)}


def change(config: "RunConfig", plan: "PrivacyPlan", total: np.ndarray, clip: float) -> tuple[np.ndarray, float]:
    """The mean of the answers, which take the adapter's place."""
    return from_grid(total, clip, plan.grid) / plan.denominator, clip
