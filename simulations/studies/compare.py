"""`confide simulate compare`: the same data and budget, learned in several ways, on one page.

A recipe with a [compare] table. Without training (zero-shot), each class is the embedding of its name; every other way
is a set of settings over the recipe, played with the same seeds.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
from pydantic import Field

from ...common.config.resolve import resolve
from ...common.config.run import RunConfig
from ...common.config.section import Positive, Section
from ...common.errors import ConfigError
from ...common.model.loading import model_of
from ...common.model.zero_shot import as_text, zero_shot
from ...common.run_folder import CONFIG
from ...common.types import Reads
from ...server.report import plots, read_report
from ...server.report.render import render, write_pair
from ..run import simulate
from .runner import Results, RoundCallback, varied

ZERO_SHOT = "zero-shot"
_WAYS = {"head only": ["model.train=head"], "LoRA": ["model.train=lora"], "full": ["model.train=full"]}


class CompareSection(Section, frozen=True):
    """[compare] of a recipe."""

    seeds: Positive = 3
    ways: Annotated[dict[str, list[str]], Field(min_length=1)] = _WAYS
    """name → KEY=VALUE texts, as --set takes them"""
    zero_shot: bool = True
    """texts with classes only: also the backbone as it is, with the names of the classes"""
    names: dict[str, str] = Field(default={})
    """for zero-shot: class → a sentence about it, where its name says little"""


def play(content: dict[str, Any], out: Path | None, watch: RoundCallback, *, overwrite: bool = False) -> Path:
    """Plays what is missing and writes the page; returns the folder.

    content: of a recipe, [compare] included. Raises ConfigError, DataError, ModelError.
    """
    section = CompareSection.parse(content["compare"], "compare")
    if ZERO_SHOT in section.ways:
        raise ConfigError(f"compare.ways: '{ZERO_SHOT}' received; that is what compare.zero_shot = true is called")
    base = {key: value for key, value in content.items() if key != "compare"}
    config = RunConfig.parse(base, "compare")
    seeds = range(config.run.seed, config.run.seed + section.seeds)
    wanted = [(way, seed) for seed in seeds for way in section.ways]
    for way, assignments in section.ways.items():  # before anything is played
        RunConfig.parse(varied(base, assignments), f"compare.ways.{way}")
    text = tomli_w.dumps(content)
    results = Results((out or config.output).resolve(), text, overwrite=overwrite)
    done = {(row["way"], row["seed"]): row for row in results.rows()}
    if section.zero_shot and (ZERO_SHOT, seeds[0]) not in done:
        done[ZERO_SHOT, seeds[0]] = _without_training(config, section, seeds[0])
        results.add(done[ZERO_SHOT, seeds[0]])
    for number, (way, seed) in enumerate(wanted, start=1):
        if (way, seed) in done:
            continue
        place = results.place(way, seed)
        output = [f"run.output={json.dumps(str(place))}", f"run.seed={seed}"]
        settings = varied(base, [*section.ways[way], *output])
        with watch(place, f"{number} of {len(wanted)}: {way}"):
            simulate(RunConfig.parse(settings, way), overwrite=(place / CONFIG).is_file())
        done[way, seed] = _facts(way, seed, read_report(place))
        results.add(done[way, seed])
    first = [ZERO_SHOT] if section.zero_shot else []
    _write(results.folder, config, [*first, *section.ways], list(done.values()), text)
    return results.folder


def _without_training(config: RunConfig, section: CompareSection, seed: int) -> dict[str, Any]:
    resolved = resolve(config)
    model = model_of(resolved)
    if Reads() != model.task.READS:
        raise ConfigError(
            f"compare.zero_shot: true received for task '{config.model.task}'; it needs texts with one class each; set "
            "compare.zero_shot = false"
        )
    labels = list(resolved.data.labels or [])
    if unknown := [name for name in section.names if name not in labels]:
        raise ConfigError(f"compare.names: '{unknown[0]}' received; allowed: {', '.join(labels[:10])}")
    rows = model.rows(resolved.data.test, resolved.data)
    predicted = zero_shot(model, rows, [section.names.get(name, as_text(name)) for name in labels])
    accuracy = float((predicted == np.asarray(rows.labels)).mean())
    nothing = {"before": accuracy, "trained": 0, "total": model.count()[1], "kilobytes": 0.0, "seconds": 0.0}
    return {"way": ZERO_SHOT, "seed": seed, "accuracy": accuracy, **nothing, "epsilon": None, "rounds": []}


def _facts(way: str, seed: int, report: dict[str, Any]) -> dict[str, Any]:
    rounds = report["rounds"]
    answers = sum(len(row["sites"]) for row in rounds)
    return {
        "way": way,
        "seed": seed,
        "accuracy": report["after"]["accuracy"],
        "before": report["before"]["accuracy"],
        "trained": report["model"]["trainable"],
        "total": report["model"]["total"],
        "kilobytes": sum(row["bytes_up"] for row in rounds) / 1000 / max(1, answers),
        "seconds": sum(row["seconds"] for row in rounds),
        "epsilon": report["privacy"]["epsilon_spent"],
        "rounds": [row["accuracy"] for row in rounds],
    }


def _write(folder: Path, config: RunConfig, ways: list[str], played: list[dict[str, Any]], text: str) -> None:
    rows = []
    for way in ways:
        own = [row for row in played if row["way"] == way]
        accuracy = [row["accuracy"] for row in own]
        spent = [row["epsilon"] for row in own if row["epsilon"] is not None]
        rows.append(
            {
                "way": way,
                "accuracy": float(np.mean(accuracy)),
                "spread": (max(accuracy) - min(accuracy)) / 2,
                "trained": own[0]["trained"],
                "total": own[0]["total"],
                "kilobytes": float(np.mean([row["kilobytes"] for row in own])),
                "seconds": float(np.mean([row["seconds"] for row in own])),
                "epsilon": max(spent, default=None),
                "rounds": np.mean([row["rounds"] for row in own], axis=0).tolist(),
            }
        )
    report = {
        "schema": 1,
        "kind": "compare",
        "name": config.run.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": config.privacy.mode,
        "seeds": sorted({row["seed"] for row in played}),
        "ways": rows,
        "runs": played,
    }
    images = [("Accuracy by round", "ways", plots.ways(rows))]
    write_pair(folder, report, render("compare.html", images, report=report, configuration=text))
