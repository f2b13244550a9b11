"""Rules of the evaluation: what is written needs something that should follow, and sites count single records."""

from .rule import Rule, private


def _needs_responses(key: str, example: str) -> Rule:
    return Rule(
        key=f"evaluation.{key}",
        when="records that are no prompts with responses",
        refused=lambda c: bool(getattr(c.evaluation, key)) and not c.responds,
        reason="what is written is compared with responses, or with turns of the assistant",
        remedy="remove it, or choose task causal-lm with data.prompt and data.response, or data.messages",
        example=(example,),
    )


EVALUATION = (
    _needs_responses("generate", "evaluation.generate=8"),
    _needs_responses("answers", 'evaluation.answers=["yes", "no"]'),
    Rule(
        key="evaluation.sites",
        when="mode 'client'",
        refused=lambda c: c.evaluation.sites and c.privacy.mode == "client",
        reason="its unit is a site with all that it holds, so what a site counts would be protected by nothing less",
        remedy="remove it, or choose mode local or distributed",
        example=(*private("client"), "evaluation.sites=true"),
    ),
    Rule(
        key="evaluation.sites",
        when="distill.public",
        refused=lambda c: c.evaluation.sites and c.distill.public is not None,
        reason="the model that sites would evaluate is a student of the server's, which they never see",
        remedy="remove it, or train without distillation",
        example=("distill.public=demo:public", "run.rounds=1", "evaluation.sites=true"),
    ),
    Rule(
        key="evaluation.sites",
        when="server.groups",
        refused=lambda c: c.evaluation.sites and c.server.groups is not None,
        reason="each group's sum has counts and noise of its own",
        remedy="remove it, or sum over all sites",
        example=(
            *private("distributed"),
            "server.groups=3",
            "server.aggregation=median",
            "evaluation.sites=true",
        ),
    ),
    Rule(
        key="evaluation.sites",
        when="[audit]",
        refused=lambda c: c.evaluation.sites and (c.audit.planted > 0 or c.audit.control),
        reason="canaries are among the records that are trained on, and an audit's control releases without noise",
        remedy="audit a run without it: the mechanism of trained records is the same",
        example=(*private("local"), "audit.canaries=9", "evaluation.sites=true"),
    ),
    Rule(
        key="evaluation.sites",
        when="[attack]",
        refused=lambda c: c.evaluation.sites and c.attack.kind is not None,
        reason="a Byzantine site's counts are whatever it likes, and nothing tells them from others",
        remedy="remove it; the public test set shows what an attack achieves",
        example=("attack.kind=signflip", "server.aggregation=median", "evaluation.sites=true"),
    ),
    Rule(
        key="evaluation.per_class",
        when="a task without one class a record",
        refused=lambda c: (
            c.evaluation.sites
            and c.evaluation.per_class
            and c.model.task not in ("sequence-classification", "image-classification", "image-text-classification")
        ),
        reason="there is no one class to count a record by",
        remedy="remove it",
        example=("model.task=regression", "evaluation.sites=true", "evaluation.per_class=true"),
    ),
)
