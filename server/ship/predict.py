"""`confide predict`: rows in, rows out with an answer each; a file of any length passes through in batches."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import numpy as np

from ...common.errors import ConfigError, DataError
from .runtime import FACTS, VARIANTS, OnnxModel, softmax

Format = Literal["csv", "jsonl", "text"]
PREDICTED, PROBABILITY = "predicted", "probability"
_BATCH, _LONGEST = 64, 1 << 20
"""records at a time; letters of a field"""


class Model(Protocol):
    """What answers texts."""

    @property
    def labels(self) -> list[str]: ...

    def logits(self, texts: Sequence[str]) -> np.ndarray: ...


def load(folder: Path, variant: str | None = None, threads: int | None = None) -> tuple[Model, str]:
    """A run's model, and the name of what was loaded.

    variant: one of the run's; omitted: the recommended one, or, where none was measured, torch. folder: also that of a
    variant itself, as an export holds it. Raises ConfigError.
    """
    if (folder / FACTS).is_file():
        return OnnxModel(folder, threads), folder.name
    from ..report import read_report

    name: str = variant or (read_report(folder).get("compression") or {}).get("recommended") or "torch"
    if name == "torch":
        from .finished import FinishedRun

        return FinishedRun(folder).merged(), name
    if not (folder / VARIANTS / name / FACTS).is_file():
        known = sorted(path.parent.name for path in (folder / VARIANTS).glob(f"*/{FACTS}"))
        raise ConfigError(f"--variant: received '{name}'; allowed: {', '.join(['torch', *known])}")
    return OnnxModel(folder / VARIANTS / name, threads), name


def format_of(source: str, given: str | None) -> Format:
    """By what was asked, or by the file's name. Raises ConfigError."""
    name = given or Path(source).suffix.removeprefix(".").replace("txt", "text")
    if name not in ("csv", "jsonl", "text"):
        raise ConfigError(f"--format: received '{name or 'nothing'}'; allowed: csv, jsonl, text (one a line)")
    return name


def predict_file(
    model: Model,
    source: str,
    out: Path | None,
    format_: Format,
    *,
    column: str = "text",
    tell: Callable[[int], None] = lambda _: None,
) -> int:
    """source: a file, or - for standard input. out: a new file, there only when all rows have been answered; None:
    standard output, row by row. Raises ConfigError, DataError."""
    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} is there already; give another file")
    name = "standard input" if source == "-" else source
    try:
        with ExitStack() as stack:
            lines = sys.stdin if source == "-" else stack.enter_context(_open(source))
            if out is None:
                return predict(model, lines, sys.stdout, format_, column=column, source=name, tell=tell)
            partial = out.with_name(f"{out.name}.partial")
            stack.callback(partial.unlink, missing_ok=True)
            with partial.open("w", newline="", encoding="utf-8") as target:
                done = predict(model, lines, target, format_, column=column, source=name, tell=tell)
            partial.replace(out)
            return done
    except UnicodeDecodeError:
        raise DataError(f"{name}: not UTF-8; convert it") from None


def _open(source: str) -> TextIO:
    try:
        return Path(source).open(newline="", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from None


def predict(
    model: Model,
    lines: TextIO,
    out: TextIO,
    format_: Format,
    *,
    column: str = "text",
    source: str = "standard input",
    tell: Callable[[int], None] = lambda _: None,
) -> int:
    """Writes each row with its class and that class' probability, in order; returns how many.

    `text` gives csv with columns text, predicted, probability. Raises DataError, which names the line and no content.
    """
    records = _records(lines, format_, column, source)
    writer: Any = None
    done = 0
    while part := list(islice(records, _BATCH)):
        probabilities = softmax(model.logits([str(record[column]) for record in part]))
        for record, row in zip(part, probabilities, strict=True):
            best = int(row.argmax())
            full = {**record, PREDICTED: model.labels[best], PROBABILITY: round(float(row[best]), 6)}
            if format_ == "jsonl":
                out.write(json.dumps(full, ensure_ascii=False) + "\n")
                continue
            if writer is None:
                writer = csv.DictWriter(out, list(full))
                writer.writeheader()
            writer.writerow(full)
        out.flush()
        done += len(part)
        tell(done)
    if not done:
        raise DataError(f"{source}: no rows received")
    return done


def _records(lines: TextIO, format_: Format, column: str, source: str) -> Iterator[dict[str, Any]]:
    if format_ == "text":
        for line in lines:
            if line.strip():
                yield {column: line.rstrip("\n")}
        return
    if format_ == "jsonl":
        yield from _json_rows(lines, column, source)
        return
    csv.field_size_limit(_LONGEST)
    rows = csv.DictReader(lines, strict=True)
    _check_columns(rows.fieldnames or [], column, source)
    while True:
        try:
            record = next(rows, None)
        except csv.Error:
            raise DataError(f"{source}: line {rows.line_num}: not valid csv; check its quotes") from None
        if record is None:
            return
        if None in record or None in record.values():
            raise DataError(f"{source}: line {rows.line_num}: more or fewer fields than the header has columns")
        yield record


def _json_rows(lines: Iterable[str], column: str, source: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{source}: line {number}: not valid JSON; one object a line is expected") from None
        if not isinstance(record, dict) or not isinstance(record.get(column), str):
            raise DataError(f"{source}: line {number}: no text under '{column}'; name its key with --text")
        for taken in (PREDICTED, PROBABILITY):
            if taken in record:
                raise DataError(f"{source}: line {number}: has '{taken}' already; rename it")
        yield record


def _check_columns(names: Sequence[str], column: str, source: str) -> None:
    if column not in names:
        raise DataError(f"{source}: column '{column}' is missing; there are: {', '.join(names) or 'none'}")
    for taken in (PREDICTED, PROBABILITY):
        if taken in names:
            raise DataError(f"{source}: column '{taken}' is there already; rename it")
