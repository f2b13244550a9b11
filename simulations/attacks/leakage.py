"""`confide audit leakage`: attacks on a finished run, by somebody who holds the records and may try.

Membership inference on the final model, with reference models trained as the run was; gradient inversion on one update
of one site, without and with differential privacy. Run it where the data is: it reads records, and reports rates.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.config.run import RunConfig, load
from ...common.data.sources import reference_draw
from ...common.errors import ConfigError
from ...common.model.adapter import read_arrays
from ...common.model.loading import FineTuneModel, model_of
from ...common.model.per_sample import clipped_sum, hooked
from ...common.modes import mode_of
from ...common.privacy.audit import largest_rate
from ...common.privacy.mechanism import PoissonMechanism, PrivacyPlan
from ...common.privacy.noise import secure_generator
from ...common.privacy.plan import privacy_plan
from ...common.types import Adapter, ProgressCallback, Records
from ...server.evaluation import record_losses
from ...server.report import amend_report, read_report
from ..run import simulate
from ..studies.runner import RoundCallback
from ..unread import unread
from . import inversion, membership

RECORDS_IN_UPDATE = (1, 2, 4, 8)
_TRIALS = 8


Working = Callable[[], AbstractContextManager[ProgressCallback]]
"""shows the progress of work in this process"""


def _unseen() -> AbstractContextManager[ProgressCallback]:
    return nullcontext(lambda *_: None)


def audit_leakage(
    folder: Path, references: int, watch: RoundCallback, scored: int | None = None, working: Working = _unseen
) -> dict[str, Any]:
    """Attacks the run in `folder`, adds the outcome to its report and returns it.

    references: an even number of reference models. scored: of the members, and of as many others, how many are scored;
    None: all. Raises ConfigError: no finished run, or no rows left over.
    """
    report = read_report(folder)
    if references < 2 or references % 2:
        raise ConfigError(f"--references: received {references}; allowed: an even number from 2")
    config = load(folder / "config.toml", [])
    if config.data.limit is None:
        raise ConfigError(
            f"{folder}: the run trained on every row of data.train, so there is nothing to compare members with; "
            "make the run with data.limit at half of the rows or less"
        )
    if config.evaluation.sites:
        raise ConfigError(
            f"{folder}: the run held some of its rows out of training (evaluation.sites), so not all of them are "
            "members; make the run without it"
        )
    model = model_of(config)
    adapter = read_arrays(folder / "adapter")
    records, halves = _pool(config, model, references)
    outcome = {
        "membership": _membership(config, report["privacy"], model, adapter, records, halves, watch, scored, working),
    }
    with working() as progress:
        outcome["inversion"] = invert(config, model, adapter, records, progress=progress)
    amend_report(folder, "leakage", outcome)
    return outcome


def _pool(config: RunConfig, model: FineTuneModel, references: int) -> tuple[Records, list[np.ndarray]]:
    """The run's records, as many others after them, and who of them each reference model is trained on."""
    rows = model.rows(config.data.training, config.data)
    draws = [reference_draw(rows, _reference(config, number).data, config.run.seed) for number in range(references)]
    pool = rows.take(draws[0][0])
    return model.encode(pool), [half for _, half in draws]


def _reference(config: RunConfig, number: int, folder: Path | None = None) -> RunConfig:
    """The run again on another half of the pool, its ledger in memory; nobody reads what it reaches."""
    content = config.model_dump()
    unread(content)
    content["data"]["reference"] = number
    content["run"] |= {"id": None, "output": str(folder) if folder else None}
    content["engine"]["ledger"] = None
    content["audit"] = content["baselines"] = {}
    return RunConfig.parse(content, "reference")


def _references(config: RunConfig, count: int, watch: RoundCallback) -> Iterator[Adapter]:
    """The adapters of so many reference models, as they are trained."""
    with tempfile.TemporaryDirectory(prefix="confide-references-") as scratch:
        for number in range(count):
            folder = Path(scratch) / str(number)
            with watch(folder, f"reference model {number + 1} of {count}"):
                simulate(_reference(config, number, folder))
            yield read_arrays(folder / "adapter")


def _membership(
    config: RunConfig,
    privacy: dict[str, Any],
    model: FineTuneModel,
    adapter: Adapter,
    records: Records,
    halves: list[np.ndarray],
    watch: RoundCallback,
    scored: int | None,
    working: Working,
) -> dict[str, Any]:
    def losses_of(adapter: Adapter) -> np.ndarray:
        with working() as progress:
            return record_losses(model, adapter, records, which, partial(progress, "scoring records"))

    which = _scored(len(records), scored, config.run.seed)
    members = which < len(records) // 2
    was_in = np.stack([np.isin(which, half) for half in halves])
    losses = [losses_of(trained) for trained in _references(config, len(halves), watch)]
    target = losses_of(adapter)
    references = membership.confidence(np.stack(losses))
    scores = {
        "loss": -target,
        "lira": membership.likelihood_ratio(membership.confidence(target), references, was_in),
    }
    epsilon = privacy["epsilon_spent"]
    rates = membership.FALSE_POSITIVE_RATES
    return {
        "members": int(members.sum()),
        "others": int((~members).sum()),
        "references": len(halves),
        "attacks": {name: membership.summary(values, members) for name, values in scores.items()},
        "bound": None
        if epsilon is None or mode_of(config).ledger_unit(config) != "example"  # ε is of another unit
        else {str(rate): largest_rate(epsilon, privacy["delta"], rate) for rate in rates},
    }


def _scored(count: int, most: int | None, seed: int) -> np.ndarray:
    """At most so many of the members, which are the first half of all records, and of the others, in order."""
    half, rng = count // 2, np.random.default_rng([seed, 0x5C0])
    return np.sort(
        np.concatenate([first + rng.permutation(size)[:most] for first, size in ((0, half), (half, count - half))])
    )


def invert(
    config: RunConfig,
    model: FineTuneModel,
    adapter: Adapter,
    records: Records,
    seed: int = 0,
    progress: ProgressCallback = lambda *_: None,
) -> dict[str, Any]:
    """Tries to read tokens and labels from single updates at the final model, without and with noise.

    An update holds the mean gradient of 1, 2, 4 or 8 records: fewer records betray more. seed: which records.
    """
    model = model.copy()
    model.set(adapter)
    rng = np.random.default_rng(seed)
    plan = _plan(config, model)
    trials = [
        (count, rng.choice(len(records), count, replace=False)) for _ in range(_TRIALS) for count in RECORDS_IN_UPDATE
    ]
    length = int(max(records.lengths(batch).max() for _, batch in trials))
    progress("gradient inversion: updates", 0, 1)
    layers = inversion.first_layer(model, length)
    known = set(model.tokenizer.all_special_ids)
    truths = [_tokens(records, batch, known) for _, batch in trials]
    released = {
        how: [gradient_of(model, records, batch, plan) for _, batch in trials]
        for how, gradient_of in (("none", _plain_gradient), ("private", _private_gradient))
    }
    layer = next(iter(layers.values()), None)
    near: list[list[tuple[int, int, float]]] = []
    if layer is not None:
        bases = [
            inversion.span([update[name] for name in layers]) for updates in released.values() for update in updates
        ]
        wanted = [len(truth) for truth in truths] * len(released)
        told = partial(progress, "gradient inversion: tokens")
        near = inversion.span_check(model, layer, bases, wanted, length, sorted(known), told)
    outcomes: dict[str, dict[int, list[dict[str, float]]]] = {how: {} for how in released}
    for place, (how, number) in enumerate((how, number) for how in released for number in range(len(trials))):
        count, batch = trials[number]
        found = _labels(model, released[how][number], records, batch)
        if near:
            hits = truths[number] & {(token, position) for token, position, _ in near[place]}
            found["tokens"] = len(hits) / max(1, len(truths[number]))
        outcomes[how].setdefault(count, []).append(found)
    return {
        "noise_multiplier": plan.noise_multiplier,
        "trials": _TRIALS,
        "layers": len(layers),
        "directions": sum(gradient.shape[0] for name, gradient in model.get().items() if name in layers),
        "embedding": _embedding(model, records, trials[0][1], plan, known),
        **{how: {str(count): _mean(found) for count, found in by.items()} for how, by in outcomes.items()},
    }


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([item[key] for item in found])) for key in found[0]}


def _tokens(records: Records, batch: np.ndarray, known: set[int]) -> set[tuple[int, int]]:
    """(token, position) of the named records, special tokens apart."""
    return {
        (int(token), place)
        for index in batch
        for place, token in enumerate(records.tokens[records.offsets[index] : records.offsets[index + 1]])
        if token >= 0 and int(token) not in known
    }


def _plan(config: RunConfig, model: FineTuneModel) -> PrivacyPlan:
    """The run's own; for a run without privacy that of its declaration, or else z = 1."""
    coordinates = model.count()[0]
    content = config.model_dump()
    content["privacy"] |= {"mode": "local", "clip_quantile": None, "clip_count_noise": None}
    content["server"] |= {"secure_aggregation": None, "min_survivors": None}
    try:
        plan = privacy_plan(RunConfig.parse(content, "privacy"), coordinates)
    except ConfigError:
        plan = None
    default = PrivacyPlan(1.0, 1.0, 1, config.privacy.clip, config.privacy.delta, coordinates, 1.0)
    return replace(plan or default, steps=2)


def _plain_gradient(model: FineTuneModel, records: Records, batch: np.ndarray, plan: PrivacyPlan) -> Adapter:
    loss = model.losses(records, batch).mean()
    gradients = torch.autograd.grad(loss, list(model.trained.values()))
    return {name: g.cpu().numpy() for name, g in zip(model.trained, gradients, strict=True)}


def _private_gradient(model: FineTuneModel, records: Records, batch: np.ndarray, plan: PrivacyPlan) -> Adapter:
    """Clipped, summed and noised by the mechanism of mode `local`."""
    mechanism = PoissonMechanism(plan, secure_generator())
    mechanism.draw(0)  # the records of this step are given
    with hooked(model):
        total = clipped_sum(model, model.losses(records, batch), plan.clip)[0].double().cpu().numpy()
    return model.arrays(mechanism.release(total))


def _labels(model: FineTuneModel, gradient: Adapter, records: Records, batch: np.ndarray) -> dict[str, float]:
    """Whether a single record's class was read from the head's bias."""
    bias = next((array for name, array in gradient.items() if array.shape == (model.classes,)), None)
    if bias is None or len(batch) > 1 or model.task.READS.label != "class":
        return {}
    return {"label": float(inversion.label_of_bias(bias) == records.targets[batch[0]])}


def _embedding(
    model: FineTuneModel, records: Records, batch: np.ndarray, plan: PrivacyPlan, known: set[int]
) -> dict[str, Any]:
    """What the embedding's gradient would give away if it were trained; LoRA does not release it."""
    weight = inversion.word_embedding(model)
    weight.requires_grad_(True)
    try:
        gradient = torch.autograd.grad(model.losses(records, batch).sum(), [weight])[0].cpu().numpy()
    finally:
        weight.requires_grad_(False)
    truth = {token for token, _ in _tokens(records, batch, known)}
    norm = float(np.linalg.norm(gradient))
    noise = secure_generator().normal(0, plan.noise_multiplier * plan.clip, gradient.shape)
    private = gradient * min(1.0, plan.clip / norm) + noise
    found = {}
    for how, array in (("none", gradient), ("private", private)):
        guessed = [t for t in inversion.tokens_of_embedding(array, len(truth) + len(known)) if t not in known]
        found[how] = len(truth & set(guessed[: len(truth)])) / max(1, len(truth))
    return {"released": any(p is weight for p in model.trained.values()), **found}
