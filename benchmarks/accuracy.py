"""Accuracy against ε: mode `distributed`, mode `local`, and central DP-SGD written directly on Opacus.

    python -m benchmarks.accuracy [SECONDS]

SST-2, 8,000 records, 8 sites, q = 0.05, T = 30, Adam, δ = 1e-5, everything else as confide has it by default; ε = 8
with ten seeds, the others with fewer; seeds decide the records, the split and the initial adapter. Each run takes about
80 s on two cores. Finished runs are kept in accuracy.json, so that the program can be stopped and started again; with
SECONDS it stops by itself. When all are there it writes its part of RESULTS.md and docs/assets/accuracy.png.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import t

from benchmarks.run import DATA, HERE, python, write_part
from confide.common.config.run import RunConfig, load
from confide.simulations.recipes import find_recipe

KEPT = HERE / "accuracy.json"
IMAGE = HERE.parent / "docs" / "assets" / "accuracy.png"
SEEDS: dict[float | None, tuple[int, ...]] = {8.0: tuple(range(7, 17)), 3.0: (7, 8, 9), None: (7, 8, 9), 1.0: (7, 8, 9)}
"""by ε"""
KINDS = {
    "central": "central DP-SGD, Opacus",
    "distributed": "confide, distributed, the defaults: one site may vanish, one may collude",
    "local": "confide, local",
}
_OF_LOCAL = (7, 8, 9)
"""seeds of mode `local`"""
MARK = "# Accuracy against ε"


def config_of(kind: str, epsilon: float | None, seed: int, output: Path) -> RunConfig:
    mode = "none" if epsilon is None else "local" if kind == "local" else "distributed"
    settings = {
        "run.seed": seed,
        "run.rounds": 30,
        "run.output": output,
        "data.train": DATA / "sst2" / "train.csv",
        "data.test": DATA / "sst2" / "validation.csv",
        "data.limit": 8000,
        "privacy.mode": mode,
        "privacy.declared_examples": 8000,
        "privacy.sampling_rate": 0.05,
        "privacy.clip": 3.0,
        "training.learning_rate": 0.008,
        "training.batch_size": 50,  # 8 × 50 records a step: q·N
        "server.evaluation_limit": 50,
        **({} if epsilon is None else {"privacy.epsilon": epsilon}),
    }
    return load(find_recipe("sst2"), [f"{key}={value}" for key, value in settings.items()])


def measure(kind: str, epsilon: float | None, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="confide-accuracy-") as scratch:
        recipe, output = Path(scratch) / "recipe.toml", Path(scratch) / "run"
        recipe.write_text(config_of(kind, epsilon, seed, output).to_toml(), encoding="utf-8")
        if kind == "central":
            result = Path(scratch) / "central.json"
            python("-W", "ignore", "-m", "benchmarks.central", recipe, result)
            return json.loads(result.read_text())
        python("-W", "ignore", "-m", "confide.cli.main", "simulate", recipe)
        report = json.loads((output / "report.json").read_text())
        seconds = [row["seconds"] for row in report["rounds"]]
        noise = report["privacy"]["noise_multiplier"]
        return {
            "accuracy": report["after"]["accuracy"],
            "noise_multiplier": 0.0 if noise is None else noise,
            "seconds": float(np.median(seconds)),
        }


def name_of(kind: str, epsilon: float | None, seed: int) -> str:
    return f"{kind}/{'none' if epsilon is None else f'{epsilon:g}'}/{seed}"


def main() -> None:
    until = time.monotonic() + float(sys.argv[1]) if len(sys.argv) > 1 else float("inf")
    found: dict[str, dict[str, float]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name, kind, epsilon, seed in wanted():
        if name not in found:
            if time.monotonic() > until:
                sys.exit(f"{len(found)} runs done, not all: start again")
            found[name] = measure(kind, epsilon, seed)
            KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(name, found[name], flush=True)
    draw(found)
    write_part(MARK, lines_of(found))


def wanted() -> Iterator[tuple[str, str, float | None, int]]:
    """The runs, the ones that say most first; without noise the modes are the same run."""
    for kinds in (("central", "distributed"), ("local",)):
        for epsilon, seeds in SEEDS.items():
            for seed in seeds:
                for kind in kinds:
                    if kind != "local" or (epsilon is not None and seed in _OF_LOCAL):
                        yield name_of(kind, epsilon, seed), kind, epsilon, seed


def values(found: dict, kind: str, epsilon: float | None) -> np.ndarray:
    """(seeds,) accuracies."""
    kind = "distributed" if kind == "local" and epsilon is None else kind
    names = [name_of(kind, epsilon, seed) for seed in SEEDS[epsilon]]
    return np.array([found[name]["accuracy"] for name in names if name in found])


def gap(found: dict, epsilon: float | None) -> str:
    """Points by which central training is better, over pairs of one seed, with a 95 % interval (Student's t)."""
    central, ours = values(found, "central", epsilon), values(found, "distributed", epsilon)
    differences = 100 * (central - ours)
    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return f"{differences.mean():+.1f} ± {half:.1f} ({len(differences)} seeds)"


def lines_of(found: dict) -> list[str]:
    rows = []
    for epsilon in sorted(SEEDS, key=lambda e: e or 1e9):
        measured = [values(found, kind, epsilon) for kind in KINDS]
        cells = [f"{v.mean():.3f} ({', '.join(f'{x:.3f}' for x in v)})" for v in measured]
        rows.append(f"| {'∞' if epsilon is None else f'{epsilon:g}'} | {' | '.join(cells)} | {gap(found, epsilon)} |")
    return [
        "`python -m benchmarks.accuracy`: SST-2, 8,000 records, 8 sites, q = 0.05, T = 30, C = 3, Adam 0.008, "
        "δ = 1e-5; mean of the seeds (each seed). Central: one owner of all records, Opacus' `DPOptimizer`, Gaussian "
        "noise calibrated by Opacus' default accountant, PRV. All 8 sites answered in every round: the noise of the "
        "sum is then √(8/7) = 1.069 times central training's.",
        "",
        f"| ε | {' | '.join(KINDS.values())} | central − distributed, points |",
        "|---|---|---|---|---|",
        *rows,
    ]


def draw(found: dict) -> None:
    budgets = [1.0, 3.0, 8.0, None]
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for (kind, label), style, color in zip(
        KINDS.items(), ("o--", "o-", "s-"), ("#777777", "#1f5fa8", "#b5541c"), strict=True
    ):
        points = [(i, 100 * v) for i, epsilon in enumerate(budgets) if len(v := values(found, kind, epsilon))]
        middle = [v.mean() for _, v in points]
        spread = [[v.mean() - v.min() for _, v in points], [v.max() - v.mean() for _, v in points]]
        axes.errorbar([i for i, _ in points], middle, spread, fmt=style, color=color, label=label, capsize=3)
    axes.set_xticks(range(4), ["1", "3", "8", "∞"])
    axes.set(xlabel="ε at δ = 1e-5, one record", ylabel="accuracy on SST-2, %")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside upper left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    IMAGE.parent.mkdir(exist_ok=True)
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
