"""`confide seeds`: one recipe with several seeds, and how far its main figure spreads."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...common.config.run import MANY, RunConfig
from ...common.errors import ConfigError
from ...server.report import plots_many
from ...server.report.verdict import SHARES, told
from .runner import Key, Results, RoundCallback, reported, run_at


def play(
    content: dict[str, Any], count: int, out: Path | None, watch: RoundCallback, *, overwrite: bool = False
) -> Path:
    """Plays what is missing of `count` seeds, from run.seed on, and writes the page; returns the folder.

    content: of a recipe of one run. out: otherwise run.output with "-seeds" behind its name. What was played for a
    smaller count is kept. Raises ConfigError.
    """
    if kind := next((name for name in MANY if name in content), None):
        raise ConfigError(f"[{kind}]: received; such a recipe plays its own seeds: set {kind}.seeds, and simulate it")
    if count < 2:
        raise ConfigError(f"--n: {count} received; a spread needs two seeds or more")
    config = RunConfig.parse(content, "seeds")
    if config.engine.ledger is not None:
        raise ConfigError("engine.ledger: many runs keep ledgers of their own; leave it out")
    folder = out or config.output.with_name(f"{config.output.name}-seeds")
    results = Results(folder, content, overwrite=overwrite)

    def play_seed(seed: int, how_far: str) -> dict[str, Any]:
        one = run_at(content, [f"run.seed={seed}"], results.place("seed", seed), f"seed {seed}")
        return _facts(seed, reported(one, watch, f"{how_far}: seed {seed}"))

    seeds = range(config.run.seed, config.run.seed + count)
    wanted: dict[Key, Callable[[str], dict[str, Any]]] = {(seed,): partial(play_seed, seed) for seed in seeds}
    _write(results, config, results.complete(wanted, lambda row: (row["seed"],)))
    return results.folder


def _facts(seed: int, report: dict[str, Any]) -> dict[str, Any]:
    main = report["after"]["main"]
    return {
        "seed": seed,
        "main": main,
        **{key: main[key] for key in ("value", "low", "high")},
        "epsilon": report["privacy"]["epsilon_spent"],
        "seconds": sum(row["seconds"] for row in report["rounds"]),
    }


def _write(results: Results, config: RunConfig, played: list[dict[str, Any]]) -> None:
    values = np.array([row["value"] for row in played])
    main, mean, deviation = played[0]["main"], float(values.mean()), float(values.std(ddof=1))
    spread = f"{100 * deviation:.1f} points" if main["key"] in SHARES else f"{deviation:.3f}"
    low, high = (told(main, float(edge)) for edge in (values.min(), values.max()))
    name = f"{main['name'][0].upper()}{main['name'][1:]}"
    facts = {
        "mode": config.privacy.mode,
        "main": {key: main[key] for key in ("name", "key", "higher", "records")},
        "mean": mean,
        "deviation": deviation,
        "low": float(values.min()),
        "high": float(values.max()),
        "sentence": (
            f"{name} is {told(main, mean)} in the mean of {len(played)} seeds, with a standard deviation of {spread} "
            f"({low} to {high}), on {main['records']:,} public test records."
        ),
        "runs": [{key: value for key, value in row.items() if key != "main"} for row in played],
    }
    drawn = plots_many.seeds(played, mean)
    results.write_page("seeds", config.run.name, facts, [("Main figure by seed", "by-seed", drawn)], told=told)
