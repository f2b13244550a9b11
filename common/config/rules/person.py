"""Rules of `data.person`: ε for a person with all their records."""

from .rule import Rule, private

_DECLARED = (*private("local", "declared_examples"), "data.person=patient", "privacy.declared_persons=100")
"""a run whose unit is the person, and which every rule allows"""

PERSON = (
    Rule(
        key="data.person",
        when="mode 'client'",
        refused=lambda c: c.privacy.mode == "client" and c.data.person is not None,
        reason="its unit is a site with all that it holds, each person included",
        remedy="remove it, or choose mode local or distributed",
        example=(*private("client"), "data.person=patient"),
    ),
    Rule(
        key="data.person",
        when="distill.public",
        refused=lambda c: c.private and c.distill.public is not None and c.data.person is not None,
        reason="a record is with one teacher, and the records of one person would be with several",
        remedy="remove it, or train without distillation",
        example=(
            *private("local", "declared_examples", "sampling_rate"),
            "data.person=patient",
            "distill.public=demo:public",
            "run.rounds=1",
        ),
    ),
    Rule(
        key="privacy.declared_persons",
        when="no data.person",
        refused=lambda c: c.privacy.declared_persons is not None and c.data.person is None,
        reason="no column says whose a row is",
        remedy="set data.person, or declare examples",
        example=(*private("local"), "privacy.declared_persons=100"),
    ),
    Rule(
        key="privacy.declared_examples",
        when="data.person",
        refused=lambda c: c.private and c.privacy.declared_examples is not None and c.data.person is not None,
        reason="persons are drawn, and the sum is divided by their number",
        remedy="remove it; declared_persons takes its place",
        example=(*_DECLARED, "privacy.declared_examples=1000"),
    ),
    Rule(
        key="data.limit",
        when="data.person",
        refused=lambda c: c.private and c.data.person is not None and c.data.limit is not None,
        reason="a person more in data.train could push rows of several others out",
        remedy="remove it, and give a file of fewer persons",
        example=(*_DECLARED, "data.limit=500"),
    ),
)
