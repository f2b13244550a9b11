"""Combinations of a run's settings that cannot hold, each with its reason and what to do instead.

`RunConfig` calls `check_combinations` when it is read. docs/reference/refused.md follows this page.
"""

from typing import TYPE_CHECKING

from ..errors import SecureSumError
from .byzantine import most_byzantine, most_left_out
from .tables import ON_RECORDS

if TYPE_CHECKING:
    from .run import RunConfig

_MEANS = ("fedavg", "ffa")
_OF_TEXTS = ("sequence-classification", "regression", "image-text-classification")


def check_combinations(config: "RunConfig") -> None:
    """Raises ValueError with one line."""
    for check in (
        _check_privacy,
        _check_sums,
        _check_clipping,
        _check_partition,
        _check_server,
        _check_patience,
        _check_robust,
        _check_groups,
        _check_views,
        _check_task,
        _check_train,
        _check_distil,
        _check_records,
        _check_audit,
        _check_attack,
    ):
        check(config)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_privacy(config: "RunConfig") -> None:
    privacy = config.privacy
    if privacy.mode == "none":
        return
    unit = "site takes part in a round" if privacy.mode == "client" else "record is drawn in a step"
    needed = {
        "epsilon": "the budget of the whole run, e.g. 8.0",
        "sampling_rate": f"the probability that a {unit}, e.g. 0.05",
        "declared_examples": "the public size of all sites' data together (a round figure will do)",
    }
    if privacy.mode == "client":
        del needed["declared_examples"]
    if config.distils:  # every record is with one teacher, and teachers are counted
        needed = {"epsilon": needed["epsilon"]}
    for key, meaning in needed.items():
        _require(
            getattr(privacy, key) is not None,
            f"privacy.{key}: nothing received; mode '{privacy.mode}' needs {meaning}; set it in [privacy]",
        )
    _require(
        config.server.aggregation != "qfedavg",
        "server.aggregation: 'qfedavg' weighs sites by their loss, which is a release; choose fedavg",
    )


def _check_sums(config: "RunConfig") -> None:
    mode, server = config.privacy.mode, config.server
    summed = mode in ("distributed", "client")
    _require(
        mode != "distributed" or config.secure,
        "server.secure_aggregation: false received for mode 'distributed'; a share of the noise protects nothing that "
        "the server can see by itself; set it to true, or choose mode local",
    )
    _require(
        mode != "none" or not config.secure,
        "server.secure_aggregation: true received for mode 'none'; without a clip norm there is no grid to add on, and "
        "without noise sums of several rounds give away updates; choose mode distributed",
    )
    _require(
        mode != "local" or not config.secure,
        "server.secure_aggregation: true received for mode 'local'; every site's own noise already holds against the "
        "server, and a sum of full noise wastes accuracy; choose mode distributed",
    )
    _require(
        not summed or server.aggregation in _MEANS or server.groups is not None,
        f"server.aggregation: '{server.aggregation}' received for mode '{mode}'; it needs each site's update, and "
        f"{'a secure sum hides them' if config.secure else 'the noise is made for their sum'}; allowed: fedavg, ffa, "
        "or with secure aggregation a robust one over server.groups",
    )
    _require(
        mode != "distributed" or config.training.local_steps == 1 or config.distils,
        f"training.local_steps: {config.training.local_steps} received; mode 'distributed' is DP-SGD over all sites' "
        "data: one round is one step; allowed: 1",
    )
    _require(
        not summed or server.cohort is None,
        f"server.cohort: {server.cohort} received for mode '{mode}'; a cohort that the server picks amplifies nothing "
        "against it, and the noise counts on every site; remove it (privacy.sampling_rate draws in secret)",
    )
    _require(
        not config.secure or server.upload_dtype == "float32",
        f"server.upload_dtype: '{server.upload_dtype}' received with secure aggregation, "
        "whose integers are packed; remove it",
    )
    _require(
        config.secure or server.min_survivors is None,
        "server.min_survivors: received without secure aggregation; remove it, or use server.min_clients",
    )
    if config.secure and config.data.partition.clients is not None:
        try:
            _ = config.secure_parameters
        except SecureSumError as error:
            raise ValueError(
                f"server.min_survivors, privacy.colluders: {error}; change them or data.partition.clients"
            ) from None


def _check_clipping(config: "RunConfig") -> None:
    privacy = config.privacy
    adaptive = privacy.clip_quantile is not None
    _require(
        not adaptive or privacy.mode == "client",
        f"privacy.clip_quantile: received for mode '{privacy.mode}'; the clip norm adapts to whole updates; allowed: "
        "mode client; remove it",
    )
    _require(
        adaptive or privacy.clip_count_noise is None,
        "privacy.clip_count_noise: received without privacy.clip_quantile; set it, e.g. 0.5, or remove this",
    )


def _check_partition(config: "RunConfig") -> None:
    partition = config.data.partition
    natural = partition.kind == "natural"
    _require(
        not natural or partition.column is not None,
        "data.partition.column: nothing received; kind 'natural' needs the column that names the site",
    )
    _require(
        natural or partition.clients is not None or config.data.train is None,  # real sites are counted when it starts
        f"data.partition.clients: nothing received; kind '{partition.kind}' needs a number of sites, e.g. 8",
    )
    if partition.clients is not None:
        _require(
            config.server.min_clients <= (config.server.cohort or partition.clients),
            f"server.min_clients: {config.server.min_clients} received, but a round asks only "
            f"{config.server.cohort or partition.clients} sites; lower it, or raise server.cohort or "
            "data.partition.clients",
        )
        _require(
            config.server.cohort is None or config.server.cohort <= partition.clients,
            f"server.cohort: {config.server.cohort} received; at most data.partition.clients = {partition.clients}",
        )


def _check_server(config: "RunConfig") -> None:
    _require(
        not config.server.options or config.server.flower,
        f"server.options: received for '{config.server.aggregation}', which takes none; remove them or choose a "
        "Flower strategy",
    )
    _require(
        config.server.aggregation != "qfedavg" or "client_learning_rate" in config.server.options,
        "server.options: 'qfedavg' needs client_learning_rate; set server.options.client_learning_rate",
    )


def _check_patience(config: "RunConfig") -> None:
    public = config.data.validation
    _require(
        config.server.patience is None or (public is not None and public != config.data.test),
        "server.patience: received without a data.validation of its own; to stop when the test set looks best would "
        "spoil it; set data.validation",
    )


def _check_robust(config: "RunConfig") -> None:
    server, clients = config.server, config.data.partition.clients
    for key in ("byzantine", "mixing", "momentum"):
        _require(
            server.robust or getattr(server, key) is None,
            f"server.{key}: received for '{server.aggregation}', which tolerates no Byzantine site; choose "
            "trimmedmean, or remove it",
        )
    _require(
        server.max_norm is None or config.privacy.mode in ("none", "local"),
        f"server.max_norm: received for mode '{config.privacy.mode}'; its sums are bounded by privacy.clip at the "
        "sites; remove it",
    )
    if not server.robust or clients is None:
        return
    sites = config.compared
    what = "groups" if server.groups else "sites"
    most = most_byzantine(server.aggregation, sites)
    _require(
        most >= max(1, config.byzantine),
        f"server.byzantine: {config.byzantine} received for '{server.aggregation}' with {sites} {what} in a round; "
        f"it tolerates {'none' if most < 1 else f'at most {most}'}; lower it, ask more {what}, or choose trimmedmean",
    )
    _require(
        not server.momentum or most_left_out(server.aggregation, sites, config.byzantine) > 0,
        f"server.momentum: {server.momentum} received; with one of {sites} {what} left out, '{server.aggregation}' "
        f"would not tolerate {config.byzantine} Byzantine sites; set it to 0, lower server.byzantine, ask more {what}",
    )


def _check_groups(config: "RunConfig") -> None:
    groups, clients = config.server.groups, config.data.partition.clients
    if groups is None:
        return
    _require(
        config.secure and config.server.robust,
        f"server.groups: {groups} received; sums of groups are for secure aggregation (modes distributed and client) "
        "with a robust aggregation, e.g. trimmedmean; remove it, or set both",
    )
    _require(
        clients is None or clients % groups == 0,
        f"server.groups: {groups} received for {clients} sites; groups are of one size; choose a divisor of {clients}",
    )
    _require(
        config.privacy.clip_quantile is None,
        "server.groups: received with privacy.clip_quantile; the count of whole updates is of one sum; remove one",
    )
    _require(
        not config.audit.planted,
        "server.groups: received with audit; canaries are scored on the sum over all sites; remove one",
    )


def _check_views(config: "RunConfig") -> None:
    training = config.training
    _require(
        training.augmentation is None or training.adversarial is None,
        "training.adversarial: received with training.augmentation; both make views of a record; choose one",
    )
    made, task = config.data.augmentation, config.model.task
    _require(
        training.augmentation is None or task in _OF_TEXTS,
        f"training.augmentation: received for task '{task}'; perturbed text would be learned as text; allowed: "
        f"{', '.join(_OF_TEXTS)}",
    )
    spelled, spelling = (*_OF_TEXTS, "token-classification"), config.model.spelling
    _require(
        spelling == "none" or task in spelled,
        f"model.spelling: received for task '{task}', which learns the text itself, or reads none; allowed: "
        f"{', '.join(spelled)}",
    )
    _require(
        spelling != "none" or not config.model.known_words,
        "model.known_words: received with model.spelling 'none', which leaves every word; choose vocabulary or english",
    )
    _require(
        not made.of_texts or task in _OF_TEXTS,
        f"data.augmentation: swap, delete, insert or punctuation received for task '{task}'; perturbed text would be "
        f"learned as text; allowed: {', '.join(_OF_TEXTS)}",
    )
    _require(
        not made.of_images or task.startswith("image-"),
        f"data.augmentation: flip, shift or noise received for task '{task}', which reads no images; remove them",
    )
    _require(
        made.mix is None or task in (*_OF_TEXTS, "image-classification"),
        f"data.augmentation.mix: received for task '{task}'; it needs one answer a record; allowed: "
        f"{', '.join((*_OF_TEXTS, 'image-classification'))}",
    )
    _require(
        made.mix is None or config.privacy.mode in ("none", "client"),
        f"data.augmentation.mix: received for mode '{config.privacy.mode}'; a mixed gradient belongs to two records, "
        "and neither could be clipped; remove it, or choose mode client",
    )
    _require(
        made.mix is None or config.model.pooling != "model",
        "data.augmentation.mix: received with model.pooling 'model', whose head reads more than one vector a record; "
        "choose mean",
    )
    _require(
        made.mix is None or training.adversarial is None,
        "data.augmentation.mix: received with training.adversarial; choose one",
    )
    _require(
        not config.augments or training.adversarial is None,
        "training.adversarial: received with data.augmentation; both make views of a record; choose one",
    )
    _require(
        not config.augments or not config.audit.records,
        "audit.records: received with augmentation; a canary's copies are not made; remove one",
    )


def _check_task(config: "RunConfig") -> None:
    data = config.data
    _require(
        (data.prompt is None) == (data.response is None),
        "data.response: prompt and response go together; set both or neither",
    )
    _require(
        config.model.task == "causal-lm" or data.prompt is None,
        f"data.prompt: received, but task '{config.model.task}' reads data.text; remove it",
    )
    model, kind = config.model, data.partition.kind
    _require(
        model.task not in ("token-classification", "regression") or kind in ("iid", "natural"),
        f"data.partition.kind: '{kind}' received for task '{model.task}', whose records have no class each; allowed: "
        "iid, natural",
    )
    _require(
        (model.image_backbone is not None) == (model.task == "image-text-classification"),
        f"model.image_backbone: {'nothing ' if model.image_backbone is None else ''}received for task '{model.task}'; "
        "image-text-classification needs one, e.g. demo:vit, and no other task has one",
    )
    images = model.task.startswith("image-")
    _require(
        not images or model.pooling in ("mean", "first"),
        f"model.pooling: '{model.pooling}' received for task '{model.task}'; allowed: mean, first",
    )
    _require(
        config.training.adversarial is None or model.task != "image-classification",
        "training.adversarial: received for task 'image-classification'; it moves the embeddings of words; remove it",
    )


def _check_train(config: "RunConfig") -> None:
    model = config.model
    if model.train == "lora":
        return
    _require(
        config.server.aggregation not in ("ffa", "exact"),
        f"server.aggregation: '{config.server.aggregation}' received with model.train = '{model.train}'; it is about "
        "factors of LoRA; choose fedavg",
    )
    _require(
        not config.audit.canaries,
        f"audit.canaries: received with model.train = '{model.train}'; canaries lie on LoRA's numbers; use "
        "audit.records, or train LoRA",
    )
    _require(
        model.lora.modules_to_save is None,
        f"model.lora.modules_to_save: received with model.train = '{model.train}', which says what is "
        "trained; remove it",
    )
    _require(
        model.train != "head" or config.training.adversarial is None,
        "training.adversarial: received with model.train = 'head'; nothing below the head learns; remove it",
    )
    _require(
        model.train != "head" or model.task not in ("causal-lm",),
        "model.train: 'head' received for task 'causal-lm', which has no head of its own; allowed: lora, full",
    )


def _check_distil(config: "RunConfig") -> None:
    distill, model = config.distill, config.model
    if not config.distils:
        changed = [key for key, field in type(distill).model_fields.items() if getattr(distill, key) != field.default]
        _require(
            not changed,
            f"distill.{next(iter(changed), '')}: received without distill.public, the texts that teachers answer; set "
            "it, or remove this",
        )
        return
    _require(
        config.run.rounds == 1,
        f"run.rounds: {config.run.rounds} received with distill.public; teachers answer once; allowed: 1",
    )
    _require(
        model.task == "sequence-classification",
        f"model.task: '{model.task}' received with distill.public; teachers give a text one class; allowed: "
        "sequence-classification",
    )
    _require(
        config.privacy.mode != "client",
        "privacy.mode: 'client' received with distill.public; what is bounded is what one record can turn, which is "
        "one teacher; allowed: none, local, distributed",
    )
    for key in ("sampling_rate", "declared_examples"):
        _require(
            getattr(config.privacy, key) is None,
            f"privacy.{key}: received with distill.public; every record is with one teacher, and the teachers are "
            "counted; remove it",
        )
    _require(
        config.server.aggregation == "fedavg" and config.server.groups is None,
        f"server.aggregation: '{config.server.aggregation}' received with distill.public; answers are added up; "
        "allowed: fedavg, without server.groups",
    )
    for what, asked in (
        ("server.patience", config.server.patience is not None),
        ("server.max_norm", config.server.max_norm is not None),
        ("audit", bool(config.audit.planted or config.audit.control)),
        ("training.adversarial", config.training.adversarial is not None),
    ):
        _require(not asked, f"{what}: received with distill.public, to which it does not apply; remove it")
    _require(
        config.attack.kind is None or config.attack.kind in ON_RECORDS,
        f"attack.kind: '{config.attack.kind}' received with distill.public; allowed: {', '.join(ON_RECORDS)}",
    )


def _check_records(config: "RunConfig") -> None:
    _require(
        config.model.task != "masked-lm" or not config.audit.records,
        "audit.records: received for task 'masked-lm'; no canary's other maskings are made; use audit.canaries",
    )


def _check_audit(config: "RunConfig") -> None:
    audit = config.audit
    _require(
        config.privacy.mode != "client" or not audit.planted,
        "audit: received for mode 'client'; canaries are records, and its unit is a whole site; remove it",
    )
    _require(
        config.private or not (audit.planted or audit.control),
        "audit: received for mode 'none', which claims nothing that could be audited; set privacy.mode, or remove it",
    )
    _require(
        not audit.control or config.engine.ledger is None,
        "audit.control: releases without noise; allowed: a ledger in memory; remove engine.ledger",
    )
    sites = config.data.partition.clients or 1  # unknown for natural partitions until the data has been read
    for key, count in (("canaries", audit.canaries), ("records", audit.records)):
        _require(
            count == 0 or count >= sites,
            f"audit.{key}: {count} received for {sites} sites, which plant equal shares; allowed: 0, or at least one a "
            "site",
        )
    _require(
        audit.guesses is None or audit.guesses <= min(n for n in (audit.canaries, audit.records, 10**9) if n),
        f"audit.guesses: {audit.guesses} received; at most the number of canaries; lower it",
    )
    _require(
        config.data.reference is None or config.data.limit is not None,
        "data.reference: received without data.limit; it draws N of the first 2N rows; set data.limit",
    )


def _check_attack(config: "RunConfig") -> None:
    attack = config.attack
    if attack.kind is None:
        return
    on_records = attack.kind in ON_RECORDS
    _require(
        on_records or not config.secure,
        f"attack.kind: '{attack.kind}' received with secure aggregation; it reads single updates, "
        f"which nobody sees then; allowed: {', '.join(ON_RECORDS)}",
    )
    _require(
        not on_records or config.model.task == "sequence-classification",
        f"attack.kind: '{attack.kind}' received for task '{config.model.task}'; it changes classes; allowed: "
        "sequence-classification",
    )
    _require(
        config.engine.kind == "inprocess",
        f"attack.kind: received with engine.kind '{config.engine.kind}'; Byzantine sites live in the in-process engine",
    )
    _require(
        not on_records or attack.participation == "drawn",
        f"attack.participation: 'fixed' received for '{attack.kind}', which changes records once; allowed: drawn",
    )
    clients = config.data.partition.clients
    _require(
        clients is None or attack.byzantine is None or attack.byzantine < clients or attack.kind == "backdoor",
        f"attack.byzantine: {attack.byzantine} received of {clients} sites; at least one must tell the truth; lower it",
    )
    _require(
        attack.target is None or config.data.labels is None or attack.target in config.data.labels,
        f"attack.target: received '{attack.target}'; allowed: one of the classes",
    )
