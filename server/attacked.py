"""After a run with lying sites: how far a backdoor got, and whether the aggregation named the liars."""

from typing import Any

import numpy as np

from ..common.config import RunConfig
from ..common.data import read_rows
from ..common.models import FineTuneModel
from ..common.partition import site_name
from ..common.robustness.poison import liars_of, target_of, triggered
from ..common.types import Adapter
from .checkpoint import Checkpoint
from .evaluation import predictions


def attack_facts(config: RunConfig, model: FineTuneModel, state: Checkpoint) -> dict[str, Any] | None:
    """The part of report.json about the attack of a simulation; None when nobody lied."""
    attack = config.attack
    if attack.kind is None:
        return None
    liars = [site_name(number, config.clients) for number in liars_of(config)]
    fixed = attack.participation == "fixed" and config.server.cohort is not None
    return {
        "kind": attack.kind,
        "liars": [] if fixed else liars,
        "detection": None if fixed else detection(liars, state.history),
        "backdoor": backdoor(config, model, state.adapter) if attack.kind == "backdoor" else None,
    }


def backdoor(config: RunConfig, model: FineTuneModel, adapter: Adapter) -> dict[str, float]:
    """Share of test texts of other classes that become the target's with the trigger, and without it."""
    rows = read_rows(config.data.test, config.data, list(config.data.labels or []))
    target = target_of(config.attack, config)
    with_it = triggered(rows, config)
    others = rows.take(np.flatnonzero(np.asarray(rows.labels) != target))
    shares = {}
    for name, changed in (("success", with_it), ("without_trigger", others)):
        records = model.task.encode(changed, model.tokenizer, config.model.max_length)
        shares[name] = float((predictions(model, adapter, records) == target).mean())
    return shares


def detection(liars: list[str], history: list[dict[str, Any]]) -> dict[str, float | None] | None:
    """Precision and recall of the outliers that a robust aggregation named, over all rounds; None: it names nobody."""
    named = [(row["outliers"], row["sites"]) for row in history if row.get("outliers") is not None]
    if not named:
        return None
    hits = sum(len(set(outliers) & set(liars)) for outliers, _ in named)
    told = sum(len(outliers) for outliers, _ in named)
    there = sum(len(set(sites) & set(liars)) for _, sites in named)
    return {"precision": hits / told if told else None, "recall": hits / there if there else None}
