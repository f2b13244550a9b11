"""The facts of a run as one JSON document; its names are a contract (docs/reference/run-folder.md)."""

import importlib.metadata
import os
import platform
from collections import Counter
from datetime import UTC, datetime
from typing import Any, cast

import torch

from ... import __version__
from ...common.config.run import RunConfig
from ...common.modes import mode_of
from ...common.privacy import claims
from ...common.privacy.accounting import ACCOUNTANT, epsilon_prv
from ...common.privacy.explain import most_found
from ...common.privacy.mechanism import PrivacyPlan
from ...common.privacy.plan import declared_steps
from ..at_sites import at_sites
from ..checkpoint import Checkpoint
from ..start import start_facts
from .facts import Metrics, NoPrivacy, Partition, Privacy, Report, Spent, Taken

SCHEMA = 1
FALSE_POSITIVE_RATES = (0.01, 0.001)
"""at which membership tests are judged"""
PACKAGES = ("torch", "transformers", "peft", "opacus", "dp-accounting", "flwr", "datasets", "numpy", "randomgen")

_EXACT = (
    " It speaks of the model. This page of a simulation also shows exact numbers that no ε covers: records by site and "
    "class, what baselines reach that were trained on the same records, and what `confide personalize` adds."
)


def build_report(
    config: RunConfig,
    count: tuple[int, int],
    plan: PrivacyPlan | None,
    state: Checkpoint,
    after: dict[str, Any],
    partition: Partition | None,
    found: dict[str, Any],
) -> Report:
    """count: trained numbers and numbers in all. after: the evaluation of the final adapter, with its
    `confusion` and `texts`.

    found: baselines: what else was compared; audit: what canaries showed, None where none were planted; attack: what
    Byzantine sites achieved; distillation: the teachers, and what they answered.
    partition: `labels` and `counts` (client × label) of a simulation; None in a deployment, where nobody may know.
    """
    metrics = {"before": dict(state.before), "after": dict(after)}
    confusion = {when: values.pop("confusion", None) for when, values in metrics.items()}
    texts = [values.pop("texts", []) for values in metrics.values()]
    privacy = privacy_facts(config, plan, state)
    if partition is not None and privacy["mode"] != "none":
        privacy["statement"] += _EXACT
    counted = at_sites(config, plan, state.evaluations, state.evaluated)
    report: Report = {
        "evaluation": None if counted is None else {"sites": counted},
        "audit": found.get("audit"),
        "attack": found.get("attack"),
        "distillation": found.get("distillation"),
        "baselines": found["baselines"],
        "calibration": found.get("calibration"),
        "schema": SCHEMA,
        "name": config.run.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "before": cast(Metrics, metrics["before"]),
        "after": cast(Metrics, metrics["after"]),
        "privacy": privacy,
        "rounds": state.history,
        "best_round": state.best_round or None,
        "model": {
            "backbone": config.model.backbone,
            "task": config.model.task,
            "pooling": config.model.pooling,
            "trainable": count[0],
            "total": count[1],
            "labels": list(config.data.labels or []),
            "init_from": start_facts(config),
        },
        "robustness": None,
        "personal": None,
        "compression": None,
        "explanation": None,
        "ledger": None,
        "leakage": None,
        "confusion": confusion,
        "generations": [
            {"prompt": a["prompt"], "reference": a["reference"], "before": a["text"], "after": b["text"]}
            for a, b in zip(*texts, strict=True)
        ],
        "partition": partition,
        "environment": environment(),
        "config": config.model_dump(mode="json", exclude_none=True),
    }
    return cast(Report, {**found, **report})  # a callback adds parts and replaces no others


def privacy_facts(config: RunConfig, plan: PrivacyPlan | None, state: Checkpoint) -> Privacy | NoPrivacy:
    """What was promised and what was spent, with unit, adversary, sampling and composition beside every ε."""
    if plan is None or config.audit.control:
        return _nothing_promised(config, state)
    planned = cast(float, config.privacy.epsilon)  # whoever has a plan has declared it
    asked = {site: (steps, state.evaluated.get(site, 0)) for site, steps in state.asked.items()}
    by_asked = {each: plan.epsilon(*each) for each in set(asked.values())}
    sites: list[Spent] = [
        {**taken, "epsilon_spent": by_asked[asked[taken["site"]]], "epsilon_planned": planned, "delta": plan.delta}
        for taken in _taken(state)
    ]
    most = max(asked.values(), key=lambda each: by_asked[each], default=(0, 0))
    spent = max((site["epsilon_spent"] for site in sites), default=0.0)
    mode = mode_of(config)
    adversary = mode.adversary(config)
    return {
        "mode": cast(Any, config.privacy.mode),
        "unit": mode.unit(config),
        "adversary": adversary,
        "sampling": mode.sampling(config),
        "noise": mode.noise(config),
        "secure_aggregation": config.secure,
        "delta": plan.delta,
        "epsilon_planned": planned,
        "epsilon_spent": spent,
        "noise_multiplier": plan.noise_multiplier,
        "sampling_rate": plan.sampling_rate,
        "clip": plan.clip,
        "steps": plan.steps,
        "epsilon_by_round": _by_round(config, plan),
        "composition": _composition(config, plan),
        "accountant": ACCOUNTANT,
        "cross_check": {
            "what": "the same by Opacus' PRV accountant, whose upper bound lies 0.01 above its estimate",
            "epsilon": epsilon_prv(plan.history(*most), plan.delta),
        },
        "most_found": _most_found(plan, most),
        "mechanism": (
            f"Discrete Gaussian noise on a grid of 2^{plan.grid.bit_length() - 1} steps per clip norm, "
            f"{plan.coordinates} numbers a step"
        ),
        "statement": (
            f"{mode.protected(config)} is protected with ε = {spent:.2f} at δ = {plan.delta:g} against {adversary}. "
            f"{claims.limits(config)} {claims.several_sites(config, plan)}"
        ),
        "sites": sites,
    }


def _by_round(config: RunConfig, plan: PrivacyPlan) -> list[float]:
    """ε before the first round, and after each, of a site that takes part in all."""
    counted = 0
    found = [0.0]
    for number in range(1, config.run.rounds + 1):
        counted += config.evaluated_in(number)
        found.append(plan.epsilon(number * config.steps_per_round, counted))
    return found


def _composition(config: RunConfig, plan: PrivacyPlan) -> str:
    told = f"{plan.steps} steps over {config.run.rounds} rounds"
    if plan.held_out is not None:
        told += (
            f", or {plan.held_out.evaluations} evaluations: of the two, which no record is both in, the larger ε counts"
        )
    return f"{told}; the largest ε of any site"


def _most_found(plan: PrivacyPlan, asked: tuple[int, int]) -> dict[str, float]:
    """The largest true positive rate of a membership test after so many steps and evaluations, by its false positive
    rate."""
    if not any(asked):
        return {}
    return {str(rate): most_found(plan.history(*asked), rate) for rate in FALSE_POSITIVE_RATES}


def _nothing_promised(config: RunConfig, state: Checkpoint) -> NoPrivacy:
    return {
        "mode": "none",
        "unit": None,
        "adversary": None,
        "sampling": None,
        "delta": None,
        "epsilon_planned": None,
        "epsilon_spent": None,
        "noise_multiplier": None,
        "steps": declared_steps(config),
        "statement": "No privacy: every update is a function of raw gradients, and the server sees each of them.",
        "sites": _taken(state),
    }


def _taken(state: Checkpoint) -> list[Taken]:
    rounds = Counter(site for row in state.history for site in row["sites"])
    return [{"site": site, "rounds": rounds[site], "steps": steps} for site, steps in sorted(state.asked.items())]


def environment() -> dict[str, Any]:
    """What a run depended on, without the machine's name."""
    return {
        "confide": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
