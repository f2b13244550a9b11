"""Runs the benchmarks one after the other, each in a process of its own, and writes RESULTS.md.

    python -m benchmarks.run [plain] [step] [clients]        (default: all)

The first needs SST-2 as csv files: ../shared/data, or the folder in CONFIDE_DATA.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from confide.common.config.run import RunConfig, load
from confide.common.model.backbones import DEMO_BACKBONE, resolve_backbone
from confide.simulations.recipes import find_recipe

HERE = Path(__file__).parent
DATA = Path(os.environ.get("CONFIDE_DATA", HERE.parents[1] / "shared" / "data"))
ROUNDS = 2

Table = list[tuple[str, str, str]]
"""(what, measured, target)"""


def python(*arguments: object, **environment: str) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True, env={**os.environ, **environment})


def against_plain(scratch: Path) -> Table:
    """Both programs on the same records' number, sampling rate, noise, clip, optimizer, steps; one after the other."""
    train, test = DATA / "sst2" / "train.csv", DATA / "sst2" / "validation.csv"
    if not train.is_file():
        return [("against the plain program", f"not run: {train} is missing", "")]
    config = load(
        find_recipe("sst2"),
        [
            f"run.rounds={ROUNDS}",
            f"run.output={scratch / 'ours'}",
            f"data.train={train}",
            f"data.test={test}",
            "data.limit=2000",
            "data.labels=['negative', 'positive']",
            "privacy.clip=1.0",
            "privacy.sampling_rate=0.128",
            "privacy.declared_examples=2000",
            "training.learning_rate=0.005",
            "training.local_steps=8",
            "training.batch_size=32",
            "server.evaluation_limit=872",
        ],
    )
    ours = ours_on(config, scratch)
    noise = ours["privacy"]["noise_multiplier"]
    result = scratch / "plain.json"
    backbone = resolve_backbone(DEMO_BACKBONE)
    rate = config.training.learning_rate
    python("-W", "ignore", "-m", "benchmarks.plain.app", backbone, train, test, noise, rate, ROUNDS, result)
    plain = json.loads(result.read_text())
    ours_seconds, plain_seconds = (min(seconds) for seconds in (rounds_of(ours), plain["seconds"]))
    changes = {
        "server": config.server.model_copy(update={"upload_dtype": "float16"}),
        "run": config.run.model_copy(update={"output": str(scratch / "half"), "rounds": 1}),
    }
    up, half = bytes_a_client(ours), bytes_a_client(ours_on(config.model_copy(update=changes), scratch))
    whole = ours["model"]["total"] * 4
    return [
        ("seconds a round, plain Flower + PEFT + Opacus", f"{plain_seconds:.1f}", ""),
        ("seconds a round, confide", f"{ours_seconds:.1f}", ""),
        ("factor", f"{plain_seconds / ours_seconds:.1f}×", "≥ 8×"),
        (f"accuracy after {ROUNDS} rounds, plain", f"{plain['accuracies'][-1]:.3f}", ""),
        (
            f"accuracy after {ROUNDS} rounds, confide (ε = {ours['privacy']['epsilon_spent']:.2f} both, z = {noise})",
            f"{ours['after']['accuracy']:.3f}",
            "no worse",
        ),
        ("kB up a client and round: whole model", f"{whole / 1e3:,.0f}", ""),
        ("kB up a client and round: adapter", f"{up / 1e3:,.0f}", "adapter only"),
        ("kB up a client and round: adapter, fp16", f"{half / 1e3:,.0f}", "option"),
    ]


def ours_on(config: RunConfig, scratch: Path) -> dict:
    recipe = scratch / "recipe.toml"
    recipe.write_text(config.to_toml(), encoding="utf-8")
    python("-m", "confide.cli.main", "simulate", recipe, "--overwrite")
    return json.loads((config.output / "report.json").read_text())


def bytes_a_client(report: dict) -> float:
    """Sent up by one client in the first round."""
    first = report["rounds"][0]
    return first["bytes_up"] / len(first["sites"])


def rounds_of(report: dict) -> list[float]:
    return [row["seconds"] for row in report["rounds"]]


def dp_step(scratch: Path) -> Table:
    """The same batch of 64 records of 16 tokens, with and without per-sample clipping and noise."""
    found = {}
    for kind in ("plain", "private"):
        python("-W", "ignore", "-m", "benchmarks.step", kind, scratch / "step.json")
        found[kind] = json.loads((scratch / "step.json").read_text())
    time = found["private"]["seconds"] / found["plain"]["seconds"]
    memory = found["private"]["peak"] / found["plain"]["peak"]
    return [
        ("step without privacy, 64 × 16 tokens", f"{found['plain']['seconds'] * 1e3:.0f} ms", ""),
        ("step with clipping and noise", f"{found['private']['seconds'] * 1e3:.0f} ms", ""),
        ("time, with / without", f"{time:.2f}×", "≤ 1.15×"),
        ("peak memory, with / without", f"{memory:.2f}×", "≤ 1.3×"),
    ]


def many_clients(scratch: Path) -> Table:
    """One round with a tiny model, 100 and 1,000 clients."""
    found = {}
    for clients in (100, 1000):
        python("-W", "ignore", "-m", "benchmarks.clients", clients, scratch / "clients.json", scratch / str(clients))
        found[clients] = json.loads((scratch / "clients.json").read_text())
    overhead = found[1000]["overhead"] * 1e3
    memory = found[1000]["peak"] / found[100]["peak"]
    return [
        ("1,000 clients: overhead a client", f"{overhead:.1f} ms", "≤ 10 ms"),
        ("1,000 clients: own training a client", f"{found[1000]['training'] * 1e3:.1f} ms", ""),
        ("peak memory, 1,000 / 100 clients", f"{memory:.2f}×", "≤ 1.2×"),
    ]


PARTS = {"plain": against_plain, "step": dp_step, "clients": many_clients}


def main() -> None:
    names = sys.argv[1:] or list(PARTS)
    rows: Table = []
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as scratch:
        for name in names:
            rows += PARTS[name](Path(scratch))
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    lines = [
        "# Results of `make bench`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {processor}, {os.cpu_count()} cores, torch {torch.__version__}. One run, "
        "parts one after the other on an otherwise idle machine; seconds a round are the best of its rounds.",
        "",
        "| what | measured | target |",
        "|---|---|---|",
        *(f"| {what} | {measured} | {target} |" for what, measured, target in rows),
    ]
    write_part(lines[0], lines[2:])


def play(title: str, parts: dict[str, Callable[[Path], Table]], wanted: list[str], how: Callable[[str], str]) -> None:
    """Measures the wanted parts, or all, and writes each into RESULTS.md. how: the line under a part's title."""
    for part in wanted or list(parts):
        with tempfile.TemporaryDirectory(prefix="confide-bench-") as scratch:
            rows = parts[part](Path(scratch))
        lines = [how(part), "", "| what | measured | target |", "|---|---|---|"]
        write_part(f"# {title}: {part}", [*lines, *(f"| {a} | {b} | {c} |" for a, b, c in rows)])


def write_part(title: str, lines: list[str]) -> None:
    """Replaces the part of RESULTS.md under this title, or adds it at the end; the others stay as they are."""
    path = HERE / "RESULTS.md"
    parts = re.split(r"^(?=# )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    new = "\n".join([title, "", *lines]) + "\n"
    places = [i for i, part in enumerate(parts) if part.partition("\n")[0] == title]
    for i in places or [len(parts)]:
        parts[i : i + 1] = [new]
    path.write_text("\n".join(part.strip("\n") + "\n" for part in parts if part.strip()), encoding="utf-8")
    print(new)


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []


if __name__ == "__main__":
    main()
