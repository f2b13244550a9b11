"""What a site's held-out records count, at the weights that came: each a function of that record alone.

As in training, batches have the shapes in which the model was proved, and a record, or a person, that cannot be
computed adds nothing by itself. Whatever fails here leaves the gradients as they are: those are of other records.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch

from ..common.counted import numbers_of, vectors
from ..common.data.augmentation import padded_to
from ..common.errors import contain
from ..common.model.shapes import Shapes
from ..common.privacy.noise import secure_generator
from .train import Work

log = logging.getLogger("confide.worker")


def counts_of(work: Work, shapes: Shapes | None) -> np.ndarray:
    """(k,) float64: the sum over held-out records of a vector of norm at most 1 each, or over persons of the mean of
    some of theirs. The model has no hooks. shapes: in which the model was proved; None: nothing is protected."""
    nothing = np.zeros(numbers_of(work.config))
    if not len(work.held_out):
        return nothing
    try:
        work.model.set(work.task.adapter)
        if work.config.data.person is None:
            return _vectors(work, work.held_out, shapes).sum(0)
        return _persons(work, shapes)
    except BaseException as error:
        contain(error)
        log.error("held-out records are not counted: %s", type(error).__name__)
        return nothing


def _persons(work: Work, shapes: Shapes | None) -> np.ndarray:
    """Of each person the mean of the vectors of those of their records that say something, of at most
    `data.person_rows`, drawn now where there are more."""
    rng, most = secure_generator(), work.config.data.person_rows
    persons = work.persons(work.held_out)
    taken = [rows if len(rows) <= most else rng.choice(rows, most, replace=False) for rows in persons]
    found = _vectors(work, np.concatenate(taken), shapes)
    owners = np.repeat(np.arange(len(taken)), [len(rows) for rows in taken])
    sums = np.zeros((len(taken), found.shape[1]))
    np.add.at(sums, owners, found)
    said = np.bincount(owners, weights=found.any(1), minlength=len(taken))
    return (sums / np.maximum(said, 1)[:, None]).sum(0)


def _vectors(work: Work, rows: np.ndarray, shapes: Shapes | None) -> np.ndarray:
    """(len(rows), k)."""
    if shapes is None:
        return np.nan_to_num(_counted(work, work.model.scores(work.records, rows)))
    found = np.zeros((len(rows), numbers_of(work.config)))
    lengths = padded_to(work.config, work.model, work.records)[rows]
    for part, filled, length in shapes.batches(lengths):
        for place, vector in _scored(work, rows[filled], len(part), length):
            found[part[place]] = vector
    return found


def _scored(work: Work, rows: np.ndarray, real: int, length: int) -> Iterator[tuple[int, np.ndarray]]:
    """The place and vector of each of the first `real` of the rows; where one of them is broken, each by itself among
    copies of itself, as in training."""
    found: np.ndarray | None = None
    try:
        found = _batch(work, rows, length)
    except BaseException as error:
        contain(error)
        if real == 1:
            log.error("a held-out record counts as nothing: %s", type(error).__name__)
            return
    if found is not None and (real == 1 or np.isfinite(found).all()):
        for place in range(real):
            if np.isfinite(found[place]).all():
                yield place, found[place]
        return
    for place, row in enumerate(rows[:real]):
        for _, vector in _scored(work, np.full(len(rows), row), 1, length):
            yield place, vector


def _batch(work: Work, rows: np.ndarray, length: int) -> np.ndarray:
    """(R, k) of one batch; NaN where the loss of a record is none."""
    model = work.model
    with torch.no_grad():
        return _counted(work, model.task.score(model.module, model.batch(work.records, rows, length)))


def _counted(work: Work, scores: dict[str, np.ndarray]) -> np.ndarray:
    true = scores["true"] if work.config.evaluation.per_class else None
    found = vectors(work.config, work.model.task.counted(scores), true)
    return np.where(np.isfinite(scores["loss"])[:, None], found, np.nan)
