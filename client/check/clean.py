"""The cleaned copy of a table, and the log of what was left out and why."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ..deploy.folder import write_private
from .look import Findings

CLEANED, DROPPED, LABELS = "cleaned.csv", "dropped.csv", "labels.csv"


def reasons(checked: Findings, *, drop_labels: bool) -> dict[int, str]:
    """Row → why it is left out; the first reason that holds.

    drop_labels: also for its label; where labels cannot be judged, only what contradicts a copy.
    """
    found: dict[int, str] = {}
    for row in checked.empty:
        found.setdefault(int(row), "empty")
    for row in checked.leaked:
        found.setdefault(int(row), "in the test set")
    for row, other in checked.copies.items():
        found.setdefault(row, f"copy of row {other + 1}")
    for row, other in checked.near.items():
        found.setdefault(row, f"nearly a copy of row {other + 1}")
    if drop_labels:
        for row in checked.conflicts:
            found.setdefault(int(row), "another label than a copy of it")
        for row, rather in zip(checked.wrong, checked.rather, strict=True) if checked.judged else ():
            found.setdefault(int(row), f"label looks wrong, rather {rather}")
    return dict(sorted(found.items()))


def write_clean(folder: Path, table: pa.Table, checked: Findings, *, drop_labels: bool) -> dict[int, str]:
    """cleaned.csv, dropped.csv (row, reason) and labels.csv (all that were ranked), mode 0600.

    Rows are counted from 1, without a header. Returns what was left out. Raises OSError.
    """
    left_out = reasons(checked, drop_labels=drop_labels)
    keep = np.ones(table.num_rows, dtype=bool)
    keep[list(left_out)] = False
    content = io.BytesIO()
    pyarrow.csv.write_csv(table.filter(pa.array(keep)), content)
    write_private(folder / CLEANED, content.getvalue())
    _write(folder / DROPPED, ["row", "reason"], [[row + 1, reason] for row, reason in left_out.items()])
    if checked.names is not None and (judgement := checked.judgement) is not None:
        ranking = [
            [place, row + 1, checked.names[row], likely, f"{score:.4f}", "yes" if place <= checked.cut else "no"]
            for place, (row, likely, score) in enumerate(
                zip(judgement.rows, judgement.likely, judgement.score, strict=True), start=1
            )
        ]
        _write(folder / LABELS, ["rank", "row", "label", "likely", "score", "named"], ranking)
    return left_out


def _write(path: Path, header: list[str], rows: list[list]) -> None:
    content = io.StringIO(newline="")
    csv.writer(content).writerows([header, *rows])
    write_private(path, content.getvalue().encode())
