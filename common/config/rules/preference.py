"""Rules of the task `preference`: pairs of answers, and what a loss over pairs does not go with."""

from ..tables import TrainingSection
from .rule import Rule

_ANSWERS = {"prompt": "data.prompt=question", "chosen": "data.chosen=better", "rejected": "data.rejected=worse"}
_PAIRS = ("model.task=preference", *_ANSWERS.values())
"""a run that every rule allows"""


def _needed(key: str) -> Rule:
    return Rule(
        key=f"data.{key}",
        when="task 'preference'",
        refused=lambda c: c.model.task == "preference" and getattr(c.data, key) is None,
        reason="a record is a prompt with a chosen and a rejected answer, each in a column",
        remedy="name the column",
        example=("model.task=preference", *(value for name, value in _ANSWERS.items() if name != key)),
    )


def _for_pairs(key: str) -> Rule:
    return Rule(
        key=f"data.{key}",
        when="a task other than preference",
        refused=lambda c: c.model.task != "preference" and getattr(c.data, key) is not None,
        reason="task {c.model.task} compares no answers",
        remedy="remove it, or choose task preference",
        example=(_ANSWERS[key],),
    )


PREFERENCE = (
    *map(_needed, _ANSWERS),
    _for_pairs("chosen"),
    _for_pairs("rejected"),
    Rule(
        key="data.response",
        when="task 'preference'",
        refused=lambda c: c.model.task == "preference" and c.data.response is not None,
        reason="the answers are those of data.chosen and data.rejected",
        remedy="remove it",
        example=(*_PAIRS, "data.response=answer"),
    ),
    Rule(
        key="training.beta",
        when="a task other than preference",
        refused=lambda c: (
            c.model.task != "preference" and c.training.beta != TrainingSection.model_fields["beta"].default
        ),
        reason="it is of the loss over pairs of answers, which task {c.model.task} does not have",
        remedy="remove it",
        example=("training.beta=0.5",),
    ),
    Rule(
        key="training.adversarial",
        when="task 'preference'",
        refused=lambda c: c.model.task == "preference" and c.training.adversarial is not None,
        reason="it moves the embeddings of one text, and a record has two",
        remedy="remove it",
        example=(*_PAIRS, "training.adversarial=0.1"),
    ),
)
