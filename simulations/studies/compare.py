"""`confide simulate compare`: the same data and budget, learned in several ways, on one page.

A recipe with a [compare] table. Without training (zero-shot), each class is the embedding of its name; every other way
is a set of settings over the recipe, played with the same seeds.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ...common.config.resolve import resolve
from ...common.config.run import RunConfig
from ...common.config.section import Positive, Section
from ...common.errors import ConfigError
from ...common.model.loading import model_of
from ...common.model.zero_shot import as_text, zero_shot
from ...common.types import Reads
from ...server.report import plots_many as plots
from ...server.report.verdict import in_words, told
from .runner import Key, Results, RoundCallback, most, over_seeds, reported, run_at, varied

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
    for way, assignments in section.ways.items():  # before anything is played
        RunConfig.parse(varied(base, assignments), f"compare.ways.{way}")
    results = Results(out or config.output, content, overwrite=overwrite)

    def play_way(way: str, seed: int, how_far: str) -> dict[str, Any]:
        one = run_at(base, [*section.ways[way], f"run.seed={seed}"], results.place(way, seed), way)
        return _facts(way, seed, reported(one, watch, f"{how_far}: {way}"))

    wanted: dict[Key, Callable[[str], dict[str, Any]]] = {}
    if section.zero_shot:
        wanted[ZERO_SHOT, seeds[0]] = lambda _: _without_training(config, section, seeds[0])
    wanted |= {(way, seed): partial(play_way, way, seed) for seed in seeds for way in section.ways}
    _write(results, config, results.complete(wanted, lambda row: (row["way"], row["seed"])))
    return results.folder


def _without_training(config: RunConfig, section: CompareSection, seed: int) -> dict[str, Any]:
    resolved = resolve(config)
    model = model_of(resolved)
    if Reads() != model.task.READS or model.two_texts:
        raise ConfigError(
            f"compare.zero_shot: true received for task '{config.model.task}'; it needs texts with one class each; set "
            "compare.zero_shot = false"
        )
    labels = list(resolved.data.labels or [])
    if unknown := [name for name in section.names if name not in labels]:
        raise ConfigError(f"compare.names: '{unknown[0]}' received; allowed: {', '.join(labels[:10])}")
    records = model.encode(model.rows(resolved.data.test, resolved.data))
    predicted = zero_shot(
        model, records, np.arange(len(records)), [section.names.get(name, as_text(name)) for name in labels]
    )
    right = float((predicted == records.targets).mean())
    nothing = {"before": right, "trained": 0, "total": model.count()[1], "kilobytes": 0.0, "seconds": 0.0}
    main = model.task.MAIN._asdict()  # of texts with a class each: accuracy
    return {"way": ZERO_SHOT, "seed": seed, "main": main, "value": right, **nothing, "epsilon": None, "rounds": []}


def _facts(way: str, seed: int, report: dict[str, Any]) -> dict[str, Any]:
    rounds, main = report["rounds"], report["after"]["main"]
    answers = sum(len(row["sites"]) for row in rounds)
    return {
        "way": way,
        "seed": seed,
        "main": {key: main[key] for key in ("name", "key", "higher")},
        "value": main["value"],
        "before": report["before"]["main"]["value"],
        "trained": report["model"]["trainable"],
        "total": report["model"]["total"],
        "kilobytes": sum(row["bytes_up"] for row in rounds) / 1000 / max(1, answers),
        "seconds": sum(row["seconds"] for row in rounds),
        "epsilon": report["privacy"]["epsilon_spent"],
        "rounds": [row[main["key"]] for row in rounds],
    }


def _write(results: Results, config: RunConfig, played: list[dict[str, Any]]) -> None:
    rows = []
    for way in dict.fromkeys(row["way"] for row in played):
        own = [row for row in played if row["way"] == way]
        value, spread = over_seeds(row["value"] for row in own)
        rows.append(
            {
                "way": way,
                "value": value,
                "spread": spread,
                "trained": own[0]["trained"],
                "total": own[0]["total"],
                "kilobytes": float(np.mean([row["kilobytes"] for row in own])),
                "seconds": float(np.mean([row["seconds"] for row in own])),
                "epsilon": most(row["epsilon"] for row in own),
                "rounds": np.mean([row["rounds"] for row in own], axis=0).tolist(),
            }
        )
    main = played[-1]["main"]
    facts = {
        "mode": config.privacy.mode,
        "main": main,
        "seeds": sorted({row["seed"] for row in played}),
        "ways": rows,
        "runs": played,
    }
    looked_at = "rows of the test set" if config.data.validation is None else "the validation set"
    drawn = plots.ways(rows, f"{main['name']} on {looked_at}")
    results.write_page(
        "compare", config.run.name, facts, [("Main figure by round", "ways", drawn)], varied=in_words, told=told
    )
