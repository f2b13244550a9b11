"""What `confide data check` finds of planted faults, and how fast.

    python -m benchmarks.data_check [faults] [labels]        (default: both)

`faults`: labels and copies in all of SST-2. `labels`: shares of the labels replaced in few rows of banking77 and SST-2.
Needs both as csv files: ../shared/data, or the folder in CONFIDE_DATA.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.run import DATA, Table, write_part
from confide.client.check.look import Findings, check_rows
from confide.client.check.run import Embedder
from confide.common.model.backbones import DEMO_BACKBONE
from confide.tests.planted import Planted, planted, replaced

Embed = Callable[[list[str]], np.ndarray]
SEEDS = 5
FEW = (("banking77", 2000), ("banking77", 1000), ("sst2", 2000))
SHARES = (0.08, 0.03, 0.2)


def measured(fault: Planted, *, embeddings: bool) -> tuple[Findings, float]:
    started = time.perf_counter()
    found = checked(fault.rows, Embedder(DEMO_BACKBONE) if embeddings else None, 0)
    return found, time.perf_counter() - started


def checked(rows: list[tuple[str, str]], embed: Embed | None, seed: int) -> Findings:
    table = pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    return check_rows(table, "text", "label", None, embed, seed, lambda _: None)


def scores(named: np.ndarray, wrong: set[int]) -> tuple[float, float, float]:
    """Precision, recall, F1."""
    right = len(set(named.tolist()) & wrong)
    return right / max(1, len(named)), right / len(wrong), 2 * right / (len(named) + len(wrong))


def faults() -> list[str]:
    fault = planted(Path(DATA) / "sst2" / "train.csv", None, 0)
    table: Table = []
    for embeddings in (False, True):
        found, seconds = measured(fault, embeddings=embeddings)
        what = "with embeddings" if embeddings else "without"
        if (judgement := found.judgement) is None:
            raise RuntimeError("labels were not ranked")
        precision, recall, f1 = scores(judgement.rows[: judgement.estimated], fault.flipped)
        table.append((f"{what}: label errors, precision", f"{precision:.3f}", "≥ 0.6"))
        table.append((f"{what}: label errors, recall", f"{recall:.3f}", "≥ 0.6"))
        trial = judgement.trial.found
        table.append((f"{what}: label errors, F1; found in the trial", f"{f1:.3f}; {trial:.3f}", "– ; ≥ 0.6"))
        copied = set(found.near) | set(found.copies)
        recall = len(copied & fault.copies) / len(fault.copies)
        table.append((f"{what}: near copies, recall", f"{recall:.3f}", "≥ 0.95"))
        table.append((f"{what}: {len(fault.rows):,} rows", f"{seconds:.0f} s", "≤ 180 s"))
    lines = ["SST-2's training set with a tenth of its labels flipped and a twentieth more rows that are copies with a"]
    lines += ["letter changed.", "", "| what | measured | target |", "|---|---|---|"]
    return [*lines, *(f"| {a} | {b} | {c} |" for a, b, c in table), ""]


def remembered(embed: Embed) -> Embed:
    """Reads each text once, over all seeds."""
    known: dict[str, np.ndarray] = {}

    def call(texts: list[str]) -> np.ndarray:
        new = sorted(set(texts) - known.keys())
        known.update(zip(new, embed(new), strict=True))
        return np.stack([known[text] for text in texts])

    return call


def few_rows() -> list[str]:
    embed = remembered(Embedder(DEMO_BACKBONE))
    lines = [f"Labels replaced by any other class, {SEEDS} seeds; what the check names. F1 at the true number:"]
    lines += ["the ranking, cut there. Trial: share found of what the check itself replaces, mean and range.", ""]
    lines += ["| rows | replaced | precision | recall | F1: mean, worst | F1 at the true number | trial | judged |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, count in FEW:
        for share in SHARES:
            got = np.array([_one(name, count, share, seed, embed) for seed in range(SEEDS)])
            precision, recall, f1, true_number, trial, judged = got.mean(0)
            lines.append(
                f"| {name}, {count:,} | {share:.0%} | {precision:.2f} | {recall:.2f} | {f1:.2f}, {got[:, 2].min():.2f} "
                f"| {true_number:.2f} | {trial:.2f} ({got[:, 4].min():.2f} to {got[:, 4].max():.2f}) "
                f"| {round(judged * SEEDS)} of {SEEDS} |"
            )
            print(lines[-1], flush=True)
    return [*lines, ""]


def _one(name: str, count: int, share: float, seed: int, embed: Embed) -> tuple[float, ...]:
    rows, wrong = replaced(Path(DATA) / name / "train.csv", count, share, seed)
    found = checked(rows, embed, seed)
    if (judgement := found.judgement) is None:
        raise RuntimeError(f"{name}: labels were not ranked")
    named = judgement.rows[: judgement.estimated]
    at = scores(judgement.rows[: len(wrong)], wrong)[2]
    return *scores(named, wrong), at, judgement.trial.found, float(judgement.trial.passed)


def main() -> None:
    parts = sys.argv[1:] or ["faults", "labels"]
    lines = [f"`python -m benchmarks.data_check`, {os.cpu_count()} cores.", ""]
    for part in parts:
        lines += {"faults": faults, "labels": few_rows}[part]()
    write_part("# Data check", lines)


if __name__ == "__main__":
    main()
