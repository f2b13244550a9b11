"""After a run with Byzantine sites: how far a backdoor got, and whether the aggregation named the Byzantine sites."""

from typing import Any

import numpy as np

from ...common.config.run import RunConfig
from ...common.data.partition import site_name
from ...common.data.sources import read_rows
from ...common.model.loading import FineTuneModel
from ...common.types import Adapter
from ...server.callbacks import Callback, RunState
from ...server.checkpoint import Checkpoint
from ...server.evaluation import predictions
from .poison import byzantine_sites, target_of, triggered


class AttackReport(Callback):
    """The report's part about the attack of a simulation."""

    def finished(self, run: RunState) -> dict[str, Any]:
        return {"attack": attack_facts(run.config, run.model, run.state)}


def attack_facts(config: RunConfig, model: FineTuneModel, state: Checkpoint) -> dict[str, Any] | None:
    """The part of report.json about the attack of a simulation; None when nobody lied."""
    attack = config.attack
    if attack.kind is None:
        return None
    byzantine = [site_name(number, config.clients) for number in byzantine_sites(config)]
    fixed = attack.participation == "fixed" and config.server.cohort is not None
    return {
        "kind": attack.kind,
        "byzantine": [] if fixed else byzantine,
        "detection": None if fixed else detection(byzantine, state.history),
        "backdoor": backdoor(config, model, state.adapter) if attack.kind == "backdoor" else None,
    }


def backdoor(config: RunConfig, model: FineTuneModel, adapter: Adapter) -> dict[str, float]:
    """Over test texts of other classes than the target's. success: of those that are not taken for the target's, the
    share that the trigger turns into it. without_trigger: the share that is taken for it anyhow."""
    rows = read_rows(config.data.test, config.data, list(config.data.labels or []))
    target = target_of(config.attack, config)
    others = rows.take(np.flatnonzero(np.asarray(rows.labels) != target))
    called = []
    for texts in (others, triggered(rows, config)):
        records = model.encode(texts)
        called.append(predictions(model, adapter, records) == target)
    plain, with_it = called
    return {
        "success": float(with_it[~plain].mean()) if not plain.all() else 0.0,
        "without_trigger": float(plain.mean()),
    }


def detection(byzantine: list[str], history: list[dict[str, Any]]) -> dict[str, float | None] | None:
    """Precision and recall of the sites that a robust aggregation left out, or without memory called outliers, over all
    rounds; None: it names nobody."""
    rows = [(row.get("left_out", row.get("outliers")), row["sites"]) for row in history]
    named = [(suspects, sites) for suspects, sites in rows if suspects is not None]
    if not named:
        return None
    hits = sum(len(set(suspects) & set(byzantine)) for suspects, _ in named)
    told = sum(len(suspects) for suspects, _ in named)
    there = sum(len(set(sites) & set(byzantine)) for _, sites in named)
    return {"precision": hits / told if told else None, "recall": hits / there if there else None}
