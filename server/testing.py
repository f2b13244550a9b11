"""The public test set of a run: what is measured before and after, and what no training at all would reach."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.config.run import RunConfig
from ..common.model.loading import FineTuneModel
from ..common.model.zero_shot import as_text, nearest_centroid, zero_shot
from ..common.tasks.sequence_classification import calibration_error
from ..common.types import Adapter, Reads, Records
from .evaluation import Evaluation, asked_of, evaluate, figure_of, read_public, say_cut, say_unknown, subset
from .measured import Figure, at_temperature, fitted_temperature
from .written import read_questions

log = logging.getLogger("confide.data")

Progress = Callable[[int, int], None]
BASELINES = ("majority", "zero_shot", "alone", "pooled", "pooled_private")
"""of a report, from the cheapest on"""


@dataclass(frozen=True)
class Baseline:
    """What something else than the run's own training reaches on the same records."""

    how: str
    figures: list[Figure]
    """one model's, or each site's"""


_FITTED = 2000
"""validation records that a temperature is fitted to"""


@dataclass(frozen=True)
class Measured:
    facts: dict[str, Any]
    """a part of report.json: metrics, `main`, `confusion`, and what was asked of a language model"""
    evaluation: Evaluation


class PublicTest:
    """Read and encoded once."""

    def __init__(self, config: RunConfig, model: FineTuneModel) -> None:
        """Raises DataError."""
        self._config, self._model = config, model
        self.records = read_public(config, model, config.data.test)
        self.validation: Records | None = None
        if config.data.validation is not None:
            self.validation = read_public(config, model, config.data.validation)
        for source, records in ((config.data.test, self.records), (config.data.validation, self.validation)):
            if source is not None and records is not None:
                say_unknown(model, records, source)
                say_cut(records, source, model.max_length)
        self.which = asked_of(self.records, config)
        self.questions = read_questions(config, model)

    @property
    def watched(self) -> Records:
        """What rounds are looked at on: the validation set, or without one the test set."""
        return self.records if self.validation is None else self.validation

    def measured(
        self, adapter: Adapter, evaluating: Progress | None = None, writing: Progress | None = None
    ) -> "Measured":
        found = evaluate(self._model, adapter, self.records, self.which, evaluating)
        confusion = None if found.confusion is None else found.confusion.tolist()
        facts: dict[str, Any] = {**found.metrics, "main": found.figure.to_json(), "confusion": confusion}
        if self.questions is not None:
            facts |= self.questions.asked(adapter, writing)
        return Measured(facts, found)

    def calibration(self, evaluation: Evaluation, adapter: Adapter) -> dict[str, float] | None:
        """The temperature that fits the model's probabilities to the public validation set, and the calibration error
        on the test set with it (Guo et al. 2017); None without such a set, or without probabilities of one class."""
        if self.validation is None or "probabilities" not in evaluation.scores:
            return None
        which = subset(self.validation, _FITTED, self._config.run.seed)
        found = evaluate(self._model, adapter, self.validation, which).scores
        temperature = fitted_temperature(found["probabilities"], found["true"])
        probabilities = at_temperature(evaluation.scores["probabilities"], temperature)
        return {"temperature": temperature, "error": calibration_error(probabilities, evaluation.scores["true"])}

    def figure(self, adapter: Adapter) -> Figure:
        return evaluate(self._model, adapter, self.records, self.which).figure

    def untrained(self, evaluation: Evaluation, start: Callable[[], Figure]) -> dict[str, Baseline | str]:
        """The baselines that need no training, or why they are not there. evaluation: of any adapter. start: of the
        one before the first round."""
        return {"majority": self._constant(evaluation), "zero_shot": self._zero_shot(start)}

    def _constant(self, evaluation: Evaluation) -> Baseline | str:
        scores = self._model.task.constant(evaluation.scores)
        if scores is None:
            return "no one answer suits all records"
        return Baseline("the best answer that is the same for every record", [figure_of(self._model, scores)])

    def _zero_shot(self, start: Callable[[], Figure]) -> Baseline | str:
        model, task = self._model, self._model.task
        if not task.CLASSES and task.READS.label is None:  # it writes, as it did before
            return Baseline("the backbone as it was published", [start()])
        if task.READS.label != "class" or model.two_texts:
            return "only one class for a text or an image can be told without training"
        if not model.pools:
            return "the model gives no one vector a record (model.pooling)"
        names = [as_text(name) for name in self._config.data.labels or ()]
        if Reads() == task.READS and not all(name.isdigit() for name in names):
            how = "the class whose name is nearest to the text"
            predicted = zero_shot(model, self.records, self.which, names)
        elif self.validation is not None:
            how = "the class whose public validation records are nearest"
            predicted = nearest_centroid(model, self.records, self.which, self.validation, model.classes)
        else:
            return "classes without names that say something, and no data.validation to compare with"
        true = self.records.targets[self.which]
        scores = {"predicted": predicted, "true": true}
        return Baseline(f"{how}, by the backbone as it was published", [figure_of(model, scores)])


def baseline_facts(found: dict[str, Baseline | str], figure: Figure) -> dict[str, Any]:
    """`baselines` of report.json. found: what was measured, or why it was not. figure: of the run's own model."""
    measured: dict[str, Any] = {}
    for name in BASELINES:
        one = found.get(name, "")
        if isinstance(one, str):
            measured[name] = None
            continue
        values = [own.value for own in one.figures]
        single = one.figures[0].to_json() if len(values) == 1 else {"sites": values}
        interval = {key: single[key] for key in ("low", "high", "sites") if key in single}
        measured[name] = {"value": float(np.mean(values)), **interval, "how": one.how, "gain": figure.over(one.figures)}
    return {**measured, "not_measured": {name: one for name, one in found.items() if isinstance(one, str)}}
