"""The global model on public data, at the server."""

import logging
import math
from collections.abc import Callable, Sized
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..common.config.run import RunConfig
from ..common.data.sql import shown
from ..common.errors import DataError, RoundError
from ..common.model.loading import FineTuneModel
from ..common.model.reading import unknown_share
from ..common.types import Adapter, Metrics, Records
from .measured import Figure

log = logging.getLogger("confide.data")


@dataclass(frozen=True)
class Evaluation:
    metrics: Metrics
    confusion: np.ndarray | None
    """(K, K), row: true"""
    scores: dict[str, np.ndarray]
    """what the task scored, one entry a record"""
    model: FineTuneModel

    @cached_property
    def figure(self) -> Figure:
        return figure_of(self.model, self.scores)


def read_public(config: RunConfig, model: FineTuneModel, source: str) -> Records:
    """Tokenised rows of a public set. Raises DataError, also where the tokenizer knows none of their words."""
    records = model.encode(model.rows(source, config.data))
    if model.task.READS.text and unknown_share(model.tokenizer, records) == 1:
        raise DataError(
            f"{shown(source)}: 100% of the first tokens are unknown to the tokenizer of model.backbone; choose a "
            "backbone for texts of this kind, or check its tokenizer files"
        )
    return model.with_features(records)


def say_unknown(model: FineTuneModel, records: Records, source: str) -> None:
    """Logs that most tokens of a public set are unknown."""
    if model.task.READS.text and (share := unknown_share(model.tokenizer, records)) > 0.5:
        told = f"{100 * share:.0f}% of the first tokens are unknown to the tokenizer of model.backbone"
        log.warning("%s: %s; check that it is for texts of this kind", shown(source), told)


def say_cut(records: Records, source: str, max_length: int, rows: int | None = None) -> None:
    """Logs how many records are shorter than their rows. For public sets, and for a simulation's: of private rows the
    number would be a release.

    rows: of them, where copies stand behind the records.
    """
    count = len(records) if rows is None else rows
    if records.cut is not None and (cut := int(records.cut[:count].sum())):
        told = shown(source), f"{cut:,}", f"{count:,}", max_length
        log.warning("%s: %s of %s records were cut to %d tokens (model.max_length)", *told)


def subset(records: Sized, limit: int, seed: int) -> np.ndarray:
    """At most `limit` record indices, the same ones in every round."""
    return np.sort(np.random.default_rng([seed, 0xE7A]).permutation(len(records))[:limit])


def asked_of(records: Sized, config: RunConfig) -> np.ndarray:
    """Of the test set, what before and after are measured on."""
    limit = config.evaluation.limit
    return np.arange(len(records)) if limit is None else subset(records, limit, config.run.seed)


def evaluate(
    model: FineTuneModel,
    adapter: Adapter,
    records: Records,
    indices: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Metrics of `adapter` on the named records, which are batched by length. progress: told done, of how much. Raises
    RoundError for a model that has diverged."""
    scores = _scores(model, adapter, records, indices, progress)
    loss = float(scores["loss"].mean())
    if not math.isfinite(loss):
        raise RoundError(
            f"the model's mean loss on {len(indices):,} public records is {loss}, so it has diverged and has no "
            "figure; lower training.learning_rate, or, where no round has been played, choose another model.dtype"
        )
    metrics, confusion = model.task.metrics(scores, model.classes)
    return Evaluation(metrics, confusion, scores, model)


def figure_of(model: FineTuneModel, scores: dict[str, np.ndarray]) -> Figure:
    """What a model with these scores is judged by."""
    task = model.task
    return Figure(task.MAIN, task.parts(scores, model.classes), task.main)


def record_losses(
    model: FineTuneModel,
    adapter: Adapter,
    records: Records,
    indices: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """(len(indices),) losses under `adapter`. progress: as of `evaluate`."""
    return _scores(model, adapter, records, indices, progress)["loss"]


def predictions(model: FineTuneModel, adapter: Adapter, records: Records) -> np.ndarray:
    """(N,) predicted classes."""
    return _scores(model, adapter, records, np.arange(len(records)))["predicted"]


def probabilities(model: FineTuneModel, adapter: Adapter, records: Records) -> np.ndarray:
    """(N, K) of the classes."""
    return _scores(model, adapter, records, np.arange(len(records)))["probabilities"]


def _scores(
    model: FineTuneModel,
    adapter: Adapter,
    records: Records,
    indices: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """What the task scores, one entry a record in the order of `indices`."""
    model.set(adapter)
    return model.scores(records, indices, progress=progress)
