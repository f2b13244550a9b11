"""Rules of the modes of privacy: what each needs declared, and what does not go with it."""

from .rule import Rule, private

_SUMMED = ("fedavg", "ffa")
"""aggregations that a sum over sites suffices for"""


def _declared(mode: str, key: str, meaning: str, remedy: str) -> Rule:
    """A number that a private run has to declare; of distillation only ε, since its teachers are counted."""
    return Rule(
        key=f"privacy.{key}",
        when=f"mode '{mode}'",
        refused=lambda c: (
            c.privacy.mode == mode
            and getattr(c.privacy, key) is None
            and (key == "epsilon" or c.distill.public is None)
        ),
        reason=f"the mode needs {meaning}",
        remedy=f"set it in [privacy] ({remedy})",
        example=private(mode, key),
    )


def _budget(mode: str, unit: str) -> tuple[Rule, ...]:
    """What every private mode has to declare. unit: what is drawn, in words."""
    return (
        _declared(mode, "epsilon", "the budget of the whole run", "e.g. 8.0"),
        _declared(mode, "sampling_rate", f"the probability that a {unit}", "e.g. 0.05"),
    )


def _by_record(mode: str) -> tuple[Rule, ...]:
    """Rules of a mode that clips the gradients of single records."""
    return (
        *_budget(mode, "record is drawn in a step"),
        Rule(
            key="privacy.declared_examples",
            when=f"mode '{mode}'",
            refused=lambda c: (
                c.privacy.mode == mode
                and c.data.person is None
                and c.privacy.declared_examples is None
                and c.distill.public is None
            ),
            reason="it is the public size of all sites' data together",
            remedy="set it in [privacy] (a round figure is good enough)",
            example=private(mode, "declared_examples"),
        ),
        Rule(
            key="privacy.declared_persons",
            when=f"mode '{mode}' and data.person",
            refused=lambda c: (
                c.privacy.mode == mode
                and c.data.person is not None
                and c.privacy.declared_persons is None
                and c.distill.public is None
            ),
            reason="it is the public number of persons at all sites together",
            remedy="set it in [privacy] (a round figure is good enough)",
            example=(*private(mode, "declared_examples"), "data.person=patient"),
        ),
        Rule(
            key="data.augmentation.mix",
            when=f"mode '{mode}'",
            refused=lambda c: c.privacy.mode == mode and c.data.augmentation.mix is not None,
            reason="a mixed gradient belongs to two records, and neither could be clipped",
            remedy="remove it, or choose mode client",
            example=(*private(mode), "data.augmentation.mix=0.2"),
        ),
    )


def _summed(mode: str) -> tuple[Rule, ...]:
    """Rules of a mode whose noise is made for the sum over sites."""
    return (
        Rule(
            key="server.aggregation",
            when=f"mode '{mode}' and secure aggregation",
            refused=lambda c: (
                c.privacy.mode == mode and c.secure and c.server.aggregation not in _SUMMED and c.server.groups is None
            ),
            reason="it needs each site's update, and a secure sum hides them",
            remedy="allowed: fedavg, ffa, or a robust one over server.groups",
            example=(*private(mode), "server.aggregation=krum"),
        ),
        Rule(
            key="server.cohort",
            when=f"mode '{mode}'",
            refused=lambda c: c.privacy.mode == mode and c.server.cohort is not None,
            reason="a cohort that the server picks amplifies nothing against it, and the noise counts on every site",
            remedy="remove it (privacy.sampling_rate draws in secret)",
            example=(*private(mode), "server.cohort=5"),
        ),
        Rule(
            key="server.max_norm",
            when=f"mode '{mode}'",
            refused=lambda c: c.privacy.mode == mode and c.server.max_norm is not None,
            reason="privacy.clip bounds what the sites send",
            remedy="remove it",
            example=(*private(mode), "server.max_norm=1.0"),
        ),
    )


NONE = (
    Rule(
        key="server.secure_aggregation",
        when="mode 'none'",
        refused=lambda c: c.privacy.mode == "none" and c.secure,
        reason="without a clip norm there is no grid to add on, and without noise the sums of several rounds reveal "
        "single updates",
        remedy="choose mode distributed, or remove it",
        example=("server.secure_aggregation=true",),
    ),
    Rule(
        key="audit",
        when="mode 'none'",
        refused=lambda c: c.privacy.mode == "none" and bool(c.audit.canaries or c.audit.control),
        reason="the mode claims nothing that could be audited, and is its own control",
        remedy="set privacy.mode, or use audit.records alone, which are scored on the final model",
        example=("audit.canaries=90",),
    ),
)

LOCAL = (
    *_by_record("local"),
    Rule(
        key="server.secure_aggregation",
        when="mode 'local'",
        refused=lambda c: c.privacy.mode == "local" and c.secure,
        reason="every site's own noise already holds against the server, and a sum of full noise wastes accuracy",
        remedy="choose mode distributed, or remove it",
        example=(*private("local"), "server.secure_aggregation=true"),
    ),
    Rule(
        key="server.aggregation",
        when="mode 'local'",
        refused=lambda c: c.privacy.mode == "local" and c.server.aggregation == "qfedavg",
        reason="'qfedavg' weighs sites by their loss, and a loss would be a release of its own",
        remedy="choose fedavg",
        example=(*private("local"), "server.aggregation=qfedavg", "server.options.client_learning_rate=0.1"),
    ),
)

DISTRIBUTED = (
    *_by_record("distributed"),
    Rule(
        key="server.secure_aggregation",
        when="mode 'distributed'",
        refused=lambda c: c.privacy.mode == "distributed" and not c.secure,
        reason="a share of the noise protects nothing that the server can see by itself",
        remedy="set it to true, or choose mode local",
        example=(*private("distributed"), "server.secure_aggregation=false"),
    ),
    *_summed("distributed"),
    Rule(
        key="training.local_steps",
        when="mode 'distributed'",
        refused=lambda c: c.privacy.mode == "distributed" and c.training.local_steps != 1 and c.distill.public is None,
        reason="the mode is DP-SGD over all sites' data: one round is one step",
        remedy="allowed: 1",
        example=(*private("distributed"), "training.local_steps=2"),
    ),
)

CLIENT = (
    *_budget("client", "site takes part in a round"),
    *_summed("client"),
    Rule(
        key="server.aggregation",
        when="mode 'client' and a trusted server",
        refused=lambda c: (
            c.privacy.mode == "client"
            and not c.secure
            and c.server.aggregation not in _SUMMED
            and c.server.groups is None
        ),
        reason="it needs each site's update, and the noise is made for their sum",
        remedy="allowed: fedavg, ffa",
        example=(*private("client"), "server.secure_aggregation=false", "server.aggregation=median"),
    ),
    Rule(
        key="audit",
        when="mode 'client'",
        refused=lambda c: c.privacy.mode == "client" and bool(c.audit.planted),
        reason="canaries are records, and the mode's unit is a whole site",
        remedy="remove the audit",
        example=(*private("client"), "audit.canaries=90"),
    ),
    Rule(
        key="distill.public",
        when="mode 'client'",
        refused=lambda c: c.privacy.mode == "client" and c.distill.public is not None,
        reason="distillation bounds what one record can change, which is one teacher, and the mode's unit is a whole "
        "site",
        remedy="choose mode none, local or distributed",
        example=(*private("client", "sampling_rate"), "distill.public=demo:public", "run.rounds=1"),
    ),
    Rule(
        key="privacy.clip_quantile",
        when="a mode other than client",
        refused=lambda c: c.privacy.mode != "client" and c.privacy.clip_quantile is not None,
        reason="the clip norm adapts to the updates of whole sites",
        remedy="choose mode client, or remove it",
        example=(*private("local"), "privacy.clip_quantile=0.5"),
    ),
    Rule(
        key="privacy.clip_count_noise",
        when="no privacy.clip_quantile",
        refused=lambda c: c.privacy.clip_count_noise is not None and c.privacy.clip_quantile is None,
        reason="a fixed clip norm counts nothing",
        remedy="set privacy.clip_quantile, e.g. 0.5, or remove it",
        example=(*private("client"), "privacy.clip_count_noise=0.5"),
    ),
)

MODES = (*NONE, *LOCAL, *DISTRIBUTED, *CLIENT)
