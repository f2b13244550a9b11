"""What `confide data check` finds of faults planted in SST-2, and how fast: `python -m benchmarks.data_check`."""

import os
import time
from pathlib import Path

import pyarrow as pa

from benchmarks.run import DATA, Table, write_part
from confide.client.check.look import Findings, check_rows
from confide.client.check.run import Embedder
from confide.common.model.backbones import DEMO_BACKBONE
from confide.tests.planted import Planted, planted


def measured(fault: Planted, *, embeddings: bool) -> tuple[Findings, float]:
    rows = pa.table({"text": [text for text, _ in fault.rows], "label": [label for _, label in fault.rows]})
    started = time.perf_counter()
    embed = Embedder(DEMO_BACKBONE) if embeddings else None
    return check_rows(rows, "text", "label", None, embed, 0, print), time.perf_counter() - started


def main() -> None:
    fault = planted(Path(DATA) / "sst2" / "train.csv", None, 0)
    table: Table = []
    for embeddings in (False, True):
        found, seconds = measured(fault, embeddings=embeddings)
        named, copied = set(found.wrong.tolist()), set(found.near) | set(found.copies)
        what = "with embeddings" if embeddings else "without"
        right = len(named & fault.flipped)
        table.append((f"{what}: label errors, precision", f"{right / len(named):.3f}", "≥ 0.6"))
        table.append((f"{what}: label errors, recall", f"{right / len(fault.flipped):.3f}", "≥ 0.6"))
        recall = len(copied & fault.copies) / len(fault.copies)
        table.append((f"{what}: near copies, recall", f"{recall:.3f}", "≥ 0.95"))
        table.append((f"{what}: {len(fault.rows):,} rows", f"{seconds:.0f} s", "≤ 180 s"))
    lines = [
        f"`python -m benchmarks.data_check`, {os.cpu_count()} cores: SST-2's training set with a tenth of its labels"
    ]
    lines += ["flipped and a twentieth more rows that are copies with a letter changed.", ""]
    lines += ["| what | measured | target |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in table)]
    write_part("# Data check", lines)


if __name__ == "__main__":
    main()
