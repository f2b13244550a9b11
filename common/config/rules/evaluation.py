"""Rules of the evaluation by text: it needs prompts with something that should follow."""

from .rule import Rule


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
)
