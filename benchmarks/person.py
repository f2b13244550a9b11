"""The person as the unit, against naive group privacy at the same ε for a person; and audits with canary persons.

    python -m benchmarks.person [SEEDS]
    python -m benchmarks.person mixture    the noise that row sampling would need, no training

SST-2's first 8,000 rows, dealt to persons of 1 to 20 rows (Zipf), 8 sites, mode `distributed`. Naive: rows are drawn,
and ε, δ of a row are so small that a group of 20 has (8, 1e-5): ε = 8/20, δ = 1e-5/(20·e^(19·8/20)). Finished runs are
kept in person.json.
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
from scipy.stats import binom

from benchmarks.accuracy import python
from benchmarks.run import DATA, HERE, write_part
from confide.common.config.run import load
from confide.simulations.recipes import find_recipe

KEPT = HERE / "person.json"
MARK = "# The person as the unit"
MOST, EPSILON, DELTA = 20, 8.0, 1e-5


def write_persons(path: Path, seed: int) -> tuple[int, int]:
    """Persons with their number of rows drawn from a Zipf law of exponent 1.5, cut at 20; whose labels lean to one
    class. Returns rows and persons."""
    rng = np.random.default_rng(seed)
    with (DATA / "sst2" / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for _, row in zip(range(8000), csv.DictReader(file), strict=False)]
    order, person, taken = rng.permutation(len(rows)), 0, 0
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["person", "text", "label"])
        while taken < len(rows):
            for row in order[taken : taken + min(MOST, int(rng.zipf(1.5)))]:
                out.writerow([f"p{person}", rows[row]["text"], rows[row]["label"]])
                taken += 1
            person += 1
    return taken, person


def measure(kind: str, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="confide-person-") as scratch:
        source, output = Path(scratch) / "persons.csv", Path(scratch) / "run"
        rows, persons = write_persons(source, seed)
        settings = {
            "run.seed": seed,
            "run.rounds": 30,
            "run.output": output,
            "data.train": source,
            "data.test": DATA / "sst2" / "validation.csv",
            "privacy.mode": "distributed",
            "privacy.sampling_rate": 0.05,
            "privacy.clip": 3.0,
            "training.learning_rate": 0.008,
            "server.evaluation_limit": 50,
        }
        if kind == "person":
            settings |= {
                "data.person": "person",
                "privacy.declared_persons": persons,
                "privacy.declared_examples": "",
                "privacy.epsilon": EPSILON,
            }
        else:
            settings |= {
                "privacy.declared_examples": rows,
                "privacy.epsilon": EPSILON / MOST,
                "privacy.delta": DELTA / (MOST * np.exp((MOST - 1) * EPSILON / MOST)),
            }
        recipe = Path(scratch) / "recipe.toml"
        config = load(find_recipe("sst2"), [f"{key}={value}" for key, value in settings.items()])
        recipe.write_text(config.to_toml(), encoding="utf-8")
        python("-W", "ignore", "-m", "confide.cli.main", "simulate", recipe)
        report = json.loads((output / "report.json").read_text())
        return {
            "accuracy": report["after"]["accuracy"],
            "noise_multiplier": report["privacy"]["noise_multiplier"],
            "rows": rows,
            "persons": persons,
        }


def mixture_noise(rows: int, rate: float = 0.05, steps: int = 30) -> float:
    """z for which rows drawn by themselves, at most `rows` a person, have (EPSILON, DELTA) for a person: a mixture of
    Gaussians of sensitivities i, i ~ Binomial(rows, rate). Within 0.4 % above."""
    low, high = 0.3, 6.0
    weights = binom.pmf(np.arange(rows + 1), rows, rate).tolist()
    while high / low > 1.004:
        middle = (low * high) ** 0.5
        loss = from_mixture_gaussian_mechanism(
            middle, list(range(rows + 1)), weights, value_discretization_interval=0.01
        )
        spent = loss.self_compose(steps).get_epsilon_for_delta(DELTA)
        low, high = (middle, high) if spent > EPSILON else (low, middle)
    return high


def main() -> None:
    if sys.argv[1:] == ["mixture"]:
        for rows in (1, 2, 4, 8, 20):
            print(rows, round(mixture_noise(rows), 3), flush=True)
        return
    seeds = [int(seed) for seed in sys.argv[1:]] or [7, 8, 9]
    found: dict[str, dict[str, float]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for seed in seeds:
        for kind in ("person", "naive"):
            if (name := f"{kind}/{seed}") not in found:
                found[name] = measure(kind, seed)
                KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(name, found[name], flush=True)
    rows = []
    for kind, label in (("person", "data.person, persons drawn"), ("naive", "rows drawn, naive group privacy of 20")):
        own = [found[f"{kind}/{seed}"] for seed in seeds]
        accuracy = [one["accuracy"] for one in own]
        rows.append(
            f"| {label} | {np.mean(accuracy):.3f} ({', '.join(f'{x:.3f}' for x in accuracy)}) | "
            f"{np.mean([one['noise_multiplier'] for one in own]):.3f} |"
        )
    first = found[f"person/{seeds[0]}"]
    lines = [
        f"`python -m benchmarks.person`: SST-2, {first['rows']:,} rows of {first['persons']:,} persons (Zipf, 1 to 20 "
        "rows; the first seed), 8 sites, mode distributed with the defaults, q = 0.05, T = 30, C = 3, Adam 0.008; "
        "ε = 8 at δ = 1e-5 for a person with all their rows. Mean of the seeds (each seed).",
        "",
        "| what | accuracy | noise multiplier |",
        "|---|---|---|",
        *rows,
    ]
    write_part(MARK, lines)


if __name__ == "__main__":
    main()
