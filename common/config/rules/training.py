"""Rules of the learning rate over the rounds, and of weight decay."""

from .rule import Rule


def _with_qfedavg(key: str, constant: str | int, example: str) -> Rule:
    """A setting that lets the rate change, with a strategy that takes it for constant."""
    return Rule(
        key=f"training.{key}",
        when="aggregation 'qfedavg'",
        refused=lambda c: c.server.aggregation == "qfedavg" and getattr(c.training, key) != constant,
        reason="the strategy scales updates by server.options.client_learning_rate, which is the same in all rounds",
        remedy="remove it, or choose another aggregation",
        example=("server.aggregation=qfedavg", "server.options.client_learning_rate=0.1", f"training.{key}={example}"),
    )


_ONE_CLASS = ("sequence-classification", "token-classification", "image-classification", "image-text-classification")
"""tasks with one class a record or word"""


def _one_class(key: str, plain: str | float, example: str) -> Rule:
    """A setting of the cross-entropy over classes, with a task that has none."""
    return Rule(
        key=f"training.{key}",
        when="a task without one class a record or word",
        refused=lambda c: getattr(c.training, key) != plain and c.model.task not in _ONE_CLASS,
        reason="task {c.model.task} has no class that it could say how much counts",
        remedy=f"remove it, or choose one of {', '.join(_ONE_CLASS)}",
        example=("model.task=regression", f"training.{key}={example}"),
    )


TRAINING = (
    _one_class("class_weights", "none", "balanced"),
    _one_class("label_smoothing", 0.0, "0.1"),
    Rule(
        key="data.class_shares",
        when="class_weights 'none'",
        refused=lambda c: c.data.class_shares is not None and c.training.class_weights == "none",
        reason="nothing reads them",
        remedy="remove them, or set training.class_weights = 'balanced'",
        example=("data.class_shares=[0.9, 0.1]",),
    ),
    Rule(
        key="training.warmup",
        when="no more rounds than that",
        refused=lambda c: c.training.warmup >= c.run.rounds,
        reason="in {c.run.rounds} rounds the rate would never reach training.learning_rate",
        remedy="allowed: fewer than run.rounds",
        example=("training.warmup=10",),
    ),
    Rule(
        key="training.weight_decay",
        when="a learning rate by which it comes to 1 or more",
        refused=lambda c: c.training.weight_decay * c.training.learning_rate >= 1,
        reason="each step would shrink the weights by all they are, or turn their signs",
        remedy="lower one of the two",
        example=("training.weight_decay=0.5", "training.learning_rate=2.0"),
    ),
    _with_qfedavg("schedule", "constant", "cosine"),
    _with_qfedavg("warmup", 0, "2"),
)
