"""Rules of runs that distil: teachers at the sites answer public queries once, and nothing else leaves a site."""

from typing import TYPE_CHECKING

from ..probes import ON_RECORDS
from ..tables import DistillSection
from .rule import Rule

if TYPE_CHECKING:
    from ..run import RunConfig

_DISTIL = ("distill.public=demo:public", "run.rounds=1")
_PRIVATE = ("privacy.mode=local", "privacy.epsilon=8", *_DISTIL)


def _distils(config: "RunConfig") -> bool:
    return config.distill.public is not None


def _changed(config: "RunConfig") -> bool:
    return config.distill.model_copy(update={"public": None}) != DistillSection()


def _counted(key: str, value: str) -> Rule:
    """A number of a private run that follows from the number of teachers here."""
    return Rule(
        key=f"privacy.{key}",
        when="distill.public",
        refused=lambda c: _distils(c) and getattr(c.privacy, key) is not None,
        reason="every record is with one teacher, and the teachers are counted",
        remedy="remove it",
        example=(*_PRIVATE, f"privacy.{key}={value}"),
    )


DISTILLATION = (
    Rule(
        key="distill",
        when="no distill.public",
        refused=lambda c: not _distils(c) and _changed(c),
        reason="without public texts, teachers have nothing to answer",
        remedy="set distill.public, or remove the table",
        example=("distill.teachers=20",),
    ),
    Rule(
        key="run.rounds",
        when="distill.public",
        refused=lambda c: _distils(c) and c.run.rounds != 1,
        reason="teachers answer once",
        remedy="allowed: 1",
        example=("distill.public=demo:public", "run.rounds=2"),
    ),
    Rule(
        key="model.task",
        when="distill.public",
        refused=lambda c: _distils(c) and c.model.task != "sequence-classification",
        reason="teachers give a text one class",
        remedy="allowed: sequence-classification",
        example=(*_DISTIL, "model.task=causal-lm"),
    ),
    Rule(
        key="data.text_pair",
        when="distill.public",
        refused=lambda c: _distils(c) and c.data.text_pair is not None,
        reason="teachers are asked about one public text at a time",
        remedy="remove it",
        example=(*_DISTIL, "data.text_pair=hypothesis"),
    ),
    _counted("sampling_rate", "0.05"),
    _counted("declared_examples", "1000"),
    Rule(
        key="server.aggregation",
        when="distill.public",
        refused=lambda c: _distils(c) and c.server.aggregation != "fedavg",
        reason="answers are added up",
        remedy="allowed: fedavg",
        example=(*_DISTIL, "server.aggregation=trimmedmean"),
    ),
    Rule(
        key="server.patience",
        when="distill.public",
        refused=lambda c: _distils(c) and c.server.patience is not None,
        reason="there is one round",
        remedy="remove it",
        example=(*_DISTIL, "server.patience=2", "data.validation=validation.csv"),
    ),
    Rule(
        key="server.max_norm",
        when="distill.public",
        refused=lambda c: _distils(c) and c.server.max_norm is not None,
        reason="answers are votes of a known length",
        remedy="remove it",
        example=(*_DISTIL, "server.max_norm=1.0"),
    ),
    Rule(
        key="audit",
        when="distill.public",
        refused=lambda c: _distils(c) and bool(c.audit.planted or c.audit.control),
        reason="canaries are scored on updates, and none are sent",
        remedy="remove the audit",
        example=(*_PRIVATE, "audit.canaries=90"),
    ),
    Rule(
        key="training.schedule",
        when="distill.public",
        refused=lambda c: _distils(c) and c.training.schedule != "constant",
        reason="there is one round, and the student's rate has a course of its own",
        remedy="remove it",
        example=(*_DISTIL, "training.schedule=cosine"),
    ),
    Rule(
        key="training.adversarial",
        when="distill.public",
        refused=lambda c: _distils(c) and c.training.adversarial is not None,
        reason="teachers are trained on their records as they are",
        remedy="remove it",
        example=(*_DISTIL, "training.adversarial=0.1"),
    ),
    Rule(
        key="attack.kind",
        when="distill.public",
        refused=lambda c: _distils(c) and c.attack.kind is not None and c.attack.kind not in ON_RECORDS,
        reason="an attack on updates has nothing to forge, since none are sent",
        remedy=f"allowed: {', '.join(ON_RECORDS)}",
        example=(*_DISTIL, "attack.kind=signflip"),
    ),
)
