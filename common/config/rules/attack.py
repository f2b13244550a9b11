"""Rules of simulated attacks: where each can be played."""

from ..probes import ON_RECORDS
from .rule import Rule, private

_FLIPS = "attack.kind=labelflip"

ATTACK = (
    Rule(
        key="attack.kind",
        when="secure aggregation",
        refused=lambda c: c.secure and c.attack.kind is not None and c.attack.kind not in ON_RECORDS,
        reason="an attack on updates reads single updates, which nobody sees then",
        remedy=f"allowed: {', '.join(ON_RECORDS)}",
        example=(*private("distributed"), "attack.kind=signflip"),
    ),
    Rule(
        key="attack.kind",
        when="a task other than sequence-classification",
        refused=lambda c: c.attack.kind in ON_RECORDS and c.model.task != "sequence-classification",
        reason="an attack on records changes classes of texts, which task {c.model.task} does not learn",
        remedy="allowed: an attack on updates, or task sequence-classification",
        example=("model.task=causal-lm", _FLIPS),
    ),
    Rule(
        key="attack.kind",
        when="engine.kind 'ray'",
        refused=lambda c: c.attack.kind is not None and c.engine.kind != "inprocess",
        reason="Byzantine sites live in the in-process engine",
        remedy="choose engine.kind inprocess",
        example=("attack.kind=signflip", "engine.kind=ray"),
    ),
    Rule(
        key="attack.participation",
        when="an attack on records",
        refused=lambda c: c.attack.kind in ON_RECORDS and c.attack.participation == "fixed",
        reason="{c.attack.kind} changes records once, before the first round",
        remedy="allowed: drawn",
        example=(_FLIPS, "attack.participation=fixed"),
    ),
    Rule(
        key="attack.byzantine",
        when="no more sites than that",
        refused=lambda c: (
            c.attack.kind not in (None, "backdoor")
            and c.attack.byzantine is not None
            and c.data.partition.clients is not None
            and c.attack.byzantine >= c.data.partition.clients
        ),
        reason="at least one of {c.data.partition.clients} sites must be honest",
        remedy="lower it",
        example=("attack.kind=signflip", "attack.byzantine=9"),
    ),
    Rule(
        key="attack.target",
        when="data.labels that lack it",
        refused=lambda c: (
            c.attack.kind is not None
            and c.attack.target is not None
            and c.data.labels is not None
            and c.attack.target not in c.data.labels
        ),
        reason="the trigger leads to one of the classes",
        remedy="choose one of data.labels, or remove it",
        example=("attack.kind=backdoor", "attack.target=blue", 'data.labels=["red", "green"]'),
    ),
)
