"""Rules of the model: what a task needs of it, and what is trained of it."""

from .rule import Rule, private

TASK = (
    Rule(
        key="model.image_backbone",
        when="task 'image-text-classification'",
        refused=lambda c: c.model.task == "image-text-classification" and c.model.image_backbone is None,
        reason="the task needs a tower that reads images",
        remedy="set it, e.g. demo:vit",
        example=("model.task=image-text-classification",),
    ),
    Rule(
        key="model.image_backbone",
        when="a task other than image-text-classification",
        refused=lambda c: c.model.task != "image-text-classification" and c.model.image_backbone is not None,
        reason="task {c.model.task} has one backbone, model.backbone",
        remedy="remove it",
        example=("model.image_backbone=demo:vit",),
    ),
    Rule(
        key="model.pooling",
        when="a task with images",
        refused=lambda c: c.model.task.startswith("image-") and c.model.pooling not in ("mean", "first"),
        reason="the parts of an image have no last one, and the head is confide's own",
        remedy="allowed: mean, first",
        example=("model.task=image-classification", "model.pooling=last"),
    ),
    Rule(
        key="training.adversarial",
        when="task 'image-classification'",
        refused=lambda c: c.training.adversarial is not None and c.model.task == "image-classification",
        reason="it moves the embeddings of words",
        remedy="remove it",
        example=("model.task=image-classification", "training.adversarial=0.1"),
    ),
    Rule(
        key="server.aggregation",
        when="a model.train other than 'lora'",
        refused=lambda c: c.model.train != "lora" and c.server.aggregation in ("ffa", "exact"),
        reason="ffa and exact are about factors of LoRA",
        remedy="choose fedavg, or train LoRA",
        example=("model.train=full", "server.aggregation=exact"),
    ),
    Rule(
        key="audit.canaries",
        when="a model.train other than 'lora'",
        refused=lambda c: c.model.train != "lora" and bool(c.audit.canaries),
        reason="gradient canaries are written into LoRA's arrays",
        remedy="use audit.records, or train LoRA",
        example=(*private("local"), "model.train=full", "audit.canaries=90"),
    ),
    Rule(
        key="model.lora.modules_to_save",
        when="a model.train other than 'lora'",
        refused=lambda c: c.model.train != "lora" and c.model.lora.modules_to_save is not None,
        reason="without LoRA, model.train alone says what is trained",
        remedy="remove it",
        example=("model.train=full", 'model.lora.modules_to_save=["image_encoder"]'),
    ),
    Rule(
        key="training.adversarial",
        when="model.train 'head'",
        refused=lambda c: c.model.train == "head" and c.training.adversarial is not None,
        reason="nothing below the head learns",
        remedy="remove it, or train LoRA",
        example=("model.train=head", "training.adversarial=0.1"),
    ),
    Rule(
        key="model.train",
        when="task 'causal-lm' or 'preference'",
        refused=lambda c: c.model.train == "head" and c.model.task in ("causal-lm", "preference"),
        reason="the task has no head of its own that could be trained alone",
        remedy="allowed: lora, full",
        example=("model.task=causal-lm", "model.train=head"),
    ),
)
