"""Rules of audits: canaries that could be planted, scored, and told from what was not."""

from .rule import Rule, private


def _too_few(key: str) -> Rule:
    """Canaries of which not every site would hold one."""
    return Rule(
        key=f"audit.{key}",
        when="more sites than that",
        refused=lambda c: 0 < getattr(c.audit, key) < (c.data.partition.clients or 1),  # `natural`: known with the data
        reason="each of {c.data.partition.clients} sites plants an equal share",
        remedy="allowed: 0, or at least one a site",
        example=(*private("local"), f"audit.{key}=3"),
    )


def _too_many_guesses(key: str) -> Rule:
    """More guesses than there are canaries of a kind."""
    return Rule(
        key="audit.guesses",
        when=f"fewer audit.{key}",
        refused=lambda c: c.audit.guesses is not None and 0 < getattr(c.audit, key) < c.audit.guesses,
        reason=f"only {{c.audit.{key}}} canaries of this kind are planted",
        remedy=f"lower it, or raise audit.{key}",
        example=(*private("local"), f"audit.{key}=90", "audit.guesses=91"),
    )


AUDIT = (
    Rule(
        key="audit.records",
        when="task 'masked-lm'",
        refused=lambda c: c.model.task == "masked-lm" and bool(c.audit.records),
        reason="no canary's other maskings are made",
        remedy="use audit.canaries",
        example=(*private("local"), "model.task=masked-lm", "audit.records=90"),
    ),
    Rule(
        key="audit.records",
        when="augmentation",
        refused=lambda c: c.augments and bool(c.audit.records),
        reason="copies of canary records are not made",
        remedy="remove one",
        example=(*private("local"), "training.augmentation=0.1", "audit.records=90"),
    ),
    Rule(
        key="audit.kind",
        when="another task than 'causal-lm'",
        refused=lambda c: c.model.task != "causal-lm" and c.audit.kind not in (None, "words"),
        reason="no secret can be read out of what the model learns",
        remedy="allowed: words",
        example=("audit.kind=random",),
    ),
    Rule(
        key="audit.control",
        when="engine.ledger",
        refused=lambda c: c.audit.control and c.engine.ledger is not None,
        reason="a control run releases without noise, which no ledger that stays may record",
        remedy="allowed: a ledger in memory; remove engine.ledger",
        example=(*private("local"), "audit.control=true", "engine.ledger=ledgers"),
    ),
    _too_few("canaries"),
    _too_few("records"),
    _too_many_guesses("canaries"),
    _too_many_guesses("records"),
)
