"""Rules of what a record is read as: copies, mixtures, adversarial views, and misspelled words as known ones."""

from .rule import Rule

_OF_TEXTS = ("sequence-classification", "multi-label-classification", "regression", "image-text-classification")
"""tasks that give a text one answer"""
_SPELLED = (*_OF_TEXTS, "token-classification")
_MIXED = (*_OF_TEXTS, "image-classification")


VIEWS = (
    Rule(
        key="training.adversarial",
        when="training.augmentation",
        refused=lambda c: c.training.augmentation is not None and c.training.adversarial is not None,
        reason="both make views of a record",
        remedy="choose one",
        example=("training.augmentation=0.1", "training.adversarial=0.1"),
    ),
    Rule(
        key="training.augmentation",
        when="a task that does not give a text one answer",
        refused=lambda c: c.training.augmentation is not None and c.model.task not in _OF_TEXTS,
        reason="perturbed text would be learned as text, or would lose its tags",
        remedy=f"allowed: {', '.join(_OF_TEXTS)}",
        example=("model.task=causal-lm", "training.augmentation=0.1"),
    ),
    Rule(
        key="model.spelling",
        when="a task that learns the text itself, or reads none",
        refused=lambda c: c.model.spelling != "none" and c.model.task not in _SPELLED,
        reason="task {c.model.task} has no use for corrected words",
        remedy=f"allowed: {', '.join(_SPELLED)}",
        example=("model.task=causal-lm", "model.spelling=english"),
    ),
    Rule(
        key="model.known_words",
        when="model.spelling 'none'",
        refused=lambda c: c.model.spelling == "none" and bool(c.model.known_words),
        reason="every word stays as it is",
        remedy="choose spelling vocabulary or english, or remove it",
        example=('model.known_words=["aspirin"]',),
    ),
    Rule(
        key="data.augmentation",
        when="a task that does not give a text one answer",
        refused=lambda c: c.data.augmentation.of_texts and c.model.task not in _OF_TEXTS,
        reason="with swap, delete, insert or punctuation, perturbed text would be learned as text, or would lose its "
        "tags",
        remedy=f"allowed: {', '.join(_OF_TEXTS)}",
        example=("model.task=causal-lm", "data.augmentation.swap=0.1"),
    ),
    Rule(
        key="data.augmentation",
        when="a task without images",
        refused=lambda c: c.data.augmentation.of_images and not c.model.task.startswith("image-"),
        reason="flip, shift and noise are for images, and task {c.model.task} reads no images",
        remedy="remove them",
        example=("data.augmentation.flip=true",),
    ),
    Rule(
        key="data.augmentation.mix",
        when="a task that gives a record more than one answer",
        refused=lambda c: c.data.augmentation.mix is not None and c.model.task not in _MIXED,
        reason="mixing needs one answer a record, whose loss is mixed as well",
        remedy=f"allowed: {', '.join(_MIXED)}",
        example=("model.task=causal-lm", "data.augmentation.mix=0.2"),
    ),
    Rule(
        key="data.augmentation.mix",
        when="model.pooling 'model'",
        refused=lambda c: c.data.augmentation.mix is not None and c.model.pooling == "model",
        reason="the backbone's own head reads more than one vector a record",
        remedy="choose pooling mean, or remove it",
        example=("model.pooling=model", "data.augmentation.mix=0.2"),
    ),
    Rule(
        key="data.augmentation.mix",
        when="training.adversarial",
        refused=lambda c: c.data.augmentation.mix is not None and c.training.adversarial is not None,
        reason="the adversarial loss is of one record",
        remedy="choose one",
        example=("data.augmentation.mix=0.2", "training.adversarial=0.1"),
    ),
    Rule(
        key="training.adversarial",
        when="data.augmentation",
        refused=lambda c: (
            (c.data.augmentation.of_texts or c.data.augmentation.of_images) and c.training.adversarial is not None
        ),
        reason="both make views of a record",
        remedy="choose one",
        example=("data.augmentation.delete=0.1", "training.adversarial=0.1"),
    ),
)
