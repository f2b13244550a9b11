"""Federated distillation at a site: teachers on disjoint parts of its records answer public queries.

PATE (Papernot et al. 2017, 2018) with teachers spread over sites, of any architecture. One record is with one teacher;
added or removed, it can turn all M answers of that teacher, each by a vector of length √2: the answers of all teachers
together move by at most √(2M). They are scaled so that this is the clip norm C, and released like a clipped sum.
"""

import logging
from dataclasses import replace

import numpy as np

from ..common.data.record_keys import Keys, choices
from ..common.errors import PrivacyError, contain
from ..common.modes.distillation import answer_scale, answers_shape
from ..common.types import RoundTask, Rows
from .train import Work, train_plain

log = logging.getLogger("confide.worker")
_DEAL = 0xDEA1


def dealt(indices: np.ndarray, keys: Keys, teachers: int) -> list[np.ndarray]:
    """The records of each teacher. A record's own key decides, so one more moves none of the others (equal parts of a
    shuffle would). keys: (n,) of the records, keyed with a secret of the site."""
    chosen = choices(keys, _DEAL, teachers)
    return [indices[chosen == teacher] for teacher in range(teachers)]


def answers(work: Work) -> np.ndarray:
    """(M·K,) float64: how many of the site's teachers give each answer, scaled; not private by itself.

    work: with the teachers' model, the records as it reads them, and the queries in its task. A teacher without
    records says nothing, and so does one whose training fails: that is what its own records did.
    """
    queries, classes = answers_shape(work.config)
    model, task = work.model, work.task
    asked = model.encode(Rows("the queries", list(task.queries), labels=np.zeros(queries, dtype=np.int64)))
    asked = model.with_features(asked)
    counts = np.zeros((queries, classes))
    if work.records.keys is None:
        raise PrivacyError("records without keys cannot be dealt to teachers")
    for number, part in enumerate(dealt(work.indices, work.records.keys[work.indices], work.config.distill.teachers)):
        if not len(part):
            continue
        # what a teacher learns depends on its own records and on nobody else's
        rng = np.random.default_rng([work.config.run.seed, 0x7EAC, number])
        try:
            train_plain(replace(work, indices=part, task=RoundTask(task.round, model.initial)), rng)
            said = model.scores(asked, np.arange(queries))["predicted"]  # (M,) the class that each question gets
        except BaseException as error:
            contain(error)
            log.error("teacher %d says nothing: %s in its training", number + 1, type(error).__name__)
            continue
        counts[np.arange(queries), said] += 1
    return counts.ravel() * answer_scale(work.config)
