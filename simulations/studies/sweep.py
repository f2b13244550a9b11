"""Defence × attack × setting × seed: a recipe with a [sweep] table is many runs and one page.

Each cell is a whole simulation in a folder of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from ...common.config.run import RunConfig
from ...common.config.section import Positive, Section
from ...common.errors import ConfigError
from ...common.tasks import ACCURACY
from ...server.report import plots_many as plots
from ...server.report.verdict import SHARES
from .runner import Key, Results, RoundCallback, most, over_seeds, reported, run_at

NOBODY = "none"
"""the attack that every defence is compared with"""
Assignments = Annotated[dict[str, list[str]], Field(min_length=1)]
"""name → KEY=VALUE texts, as --set takes them"""


class SweepSection(Section, frozen=True):
    """[sweep] of a recipe."""

    seeds: Positive = 3
    settings: Assignments = Field(default={"as declared": []})
    """e.g. the number of Byzantine sites, or how unlike the sites are"""
    defences: Assignments
    attacks: Assignments
    """the one called `none` is no attack"""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, and what came of it."""

    setting: str
    defence: str
    attack: str
    seed: int
    accuracy: float | None = None
    """or what else the task is judged by, where that is a share, too"""
    measure: str = ACCURACY.name
    """its name"""
    """None: refused"""
    backdoor: float | None = None
    precision: float | None = None
    recall: float | None = None
    epsilon: float | None = None
    reason: str | None = None
    """why it was refused"""

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.setting, self.defence, self.attack, self.seed


def play(content: dict[str, Any], out: Path | None, watch: RoundCallback, *, overwrite: bool = False) -> Path:
    """Plays what is missing of a sweep and writes its page; returns the folder.

    content: of a recipe, [sweep] included. Raises ConfigError.
    """
    sweep = SweepSection.parse(content["sweep"], "sweep")
    base = {key: value for key, value in content.items() if key != "sweep"}
    if NOBODY not in sweep.attacks or sweep.attacks[NOBODY]:
        raise ConfigError(f"sweep.attacks: '{NOBODY}' = [] is missing; every defence is compared with no attack")
    config = RunConfig.parse(base, "sweep")
    results = Results(out or config.output, content, overwrite=overwrite)

    def play_cell(cell: Cell, assignments: list[str], how_far: str) -> dict[str, Any]:
        name = f"{cell.defence} × {cell.attack}"
        try:
            one = run_at(base, assignments, results.place(*cell.key), name)
        except ConfigError as error:
            return asdict(replace(cell, reason=str(error)))
        return asdict(_filled(cell, reported(one, watch, f"{how_far}: {name}")))

    wanted: dict[Key, Callable[[str], dict[str, Any]]] = {
        cell.key: partial(play_cell, cell, assignments) for cell, assignments in _cells(sweep, config.run.seed)
    }
    played = results.complete(wanted, lambda row: Cell(**row).key)
    _write(results, config.run.name, sweep, [Cell(**row) for row in played])
    return results.folder


def _cells(sweep: SweepSection, first: int) -> Iterator[tuple[Cell, list[str]]]:
    for seed in range(first, first + sweep.seeds):
        for setting, of_setting in sweep.settings.items():
            for defence, of_defence in sweep.defences.items():
                for attack, of_attack in sweep.attacks.items():
                    assignments = [*of_setting, *of_defence, *of_attack, f"run.seed={seed}"]
                    if attack == NOBODY:
                        assignments += ["attack.kind="]
                    yield Cell(setting, defence, attack, seed), assignments


def _filled(cell: Cell, report: dict[str, Any]) -> Cell:
    attack = report["attack"] or {}
    found, main = attack.get("detection") or {}, report["after"]["main"]
    return replace(
        cell,
        accuracy=main["value"] if main["key"] in SHARES else report["after"]["accuracy"],
        measure=main["name"] if main["key"] in SHARES else ACCURACY.name,
        backdoor=(attack.get("backdoor") or {}).get("success"),
        precision=found.get("precision"),
        recall=found.get("recall"),
        epsilon=report["privacy"]["epsilon_spent"],
    )


def _write(results: Results, name: str, sweep: SweepSection, cells: list[Cell]) -> None:
    settings, images = [], []
    attacks, measure = list(sweep.attacks), cells[-1].measure
    for index, setting in enumerate(sweep.settings):
        here = [cell for cell in cells if cell.setting == setting]
        mean, spread = _table(here, list(sweep.defences), attacks, "accuracy")
        lies = [i for i, attack in enumerate(attacks) if attack != NOBODY]
        rows = []
        for row, defence in enumerate(sweep.defences):
            worst = _worst(mean[row, lies])
            own = [cell for cell in here if cell.defence == defence]
            rows.append(
                {
                    "defence": defence,
                    "clean": _or_none(mean[row, attacks.index(NOBODY)]),
                    "worst": None if worst is None else float(mean[row, lies[worst]]),
                    "worst_attack": None if worst is None else attacks[lies[worst]],
                    "backdoor": most(cell.backdoor for cell in own),
                    "precision": _average(cell.precision for cell in own),
                    "recall": _average(cell.recall for cell in own),
                    "epsilon": most(cell.epsilon for cell in own),
                    "accuracy": {a: _or_none(mean[row, i]) for i, a in enumerate(attacks)},
                    "spread": {a: _or_none(spread[row, i]) for i, a in enumerate(attacks)},
                }
            )
        settings.append({"name": setting, "rows": rows})
        if lies:
            images.append((f"{setting}: privacy, robustness, {measure}", f"trade-{index}", plots.trade(rows, measure)))
        last = np.array([[np.nan if row["worst"] is None else row["worst"]] for row in rows])
        drawn = plots.heat_map(
            np.hstack([mean, last]),
            np.hstack([spread, np.zeros_like(last)]),
            list(sweep.defences),
            [*attacks, "worst"],
            good_is_high=True,
        )
        images.append((f"{setting}: {measure}, %", f"accuracy-{index}", drawn))
        if any(cell.backdoor is not None for cell in here):
            drawn = _backdoors(here, sweep, attacks)
            images.append((f"{setting}: share of texts that the trigger turns, %", f"backdoor-{index}", drawn))
    refused = {(c.defence, c.attack): c.reason for c in cells if c.reason is not None}
    facts = {
        "seeds": sorted({cell.seed for cell in cells}),
        "measure": measure,
        "settings": settings,
        "cells": [asdict(cell) for cell in cells],
        "refused": [{"defence": d, "attack": a, "reason": reason} for (d, a), reason in refused.items()],
    }
    results.write_page("sweep", name, facts, images, percent=_percent)


def _backdoors(cells: list[Cell], sweep: SweepSection, attacks: list[str]) -> Figure:
    names = [attack for attack in attacks if any(c.attack == attack and c.backdoor is not None for c in cells)]
    mean, spread = _table(cells, list(sweep.defences), names, "backdoor")
    worst = np.array([[np.nan if np.isnan(row).all() else np.nanmax(row)] for row in mean])
    table = np.hstack([mean, worst])
    spreads = np.hstack([spread, np.zeros_like(worst)])
    return plots.heat_map(table, spreads, list(sweep.defences), [*names, "worst"], good_is_high=False)


def _table(cells: list[Cell], rows: list[str], columns: list[str], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and half the distance of lowest and highest, (R, C); NaN where nothing was played."""
    mean = np.full((len(rows), len(columns)), np.nan)
    spread = np.zeros_like(mean)
    for row, column in np.ndindex(mean.shape):
        found = [
            value
            for cell in cells
            if (cell.defence, cell.attack) == (rows[row], columns[column])
            and (value := getattr(cell, what)) is not None
        ]
        if found:
            mean[row, column], spread[row, column] = over_seeds(found)
    return mean, spread


def _worst(values: np.ndarray) -> int | None:
    return None if np.isnan(values).all() else int(np.nanargmin(values))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _average(values: Any) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
