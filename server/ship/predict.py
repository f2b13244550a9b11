"""`confide predict`: rows in, rows out with an answer each; a file of any length passes through in batches.

What a row must have, and what it gets, goes by the task: a text, an image's path, or both; a class, a tag for each
word, a number, or a continuation.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, runtime_checkable

import numpy as np

from ...common.data.columns import columns_told
from ...common.data.formats import twice
from ...common.data.images import ImageForm, read_image
from ...common.errors import ConfigError, DataError, harmless
from ...common.types import Conversation, Reads, Rows
from ...common.whole import require_writable, whole_file
from .runtime import FACTS, VARIANTS, OnnxModel, fault_of

Format = Literal["csv", "jsonl", "text"]
PREDICTED, PROBABILITY = "predicted", "probability"
_BATCH, _LONGEST = 64, 1 << 20
"""records at a time; letters of a field"""


class Model(Protocol):
    """What answers rows: `Answering`, or `Writer`."""

    task: str
    labels: list[str]

    @property
    def reads(self) -> Reads: ...

    @property
    def form(self) -> ImageForm | None: ...

    def answers(self, rows: Rows) -> list[dict[str, Any]]: ...


@runtime_checkable
class Writes(Model, Protocol):
    """A model that writes texts, which can be told while they come: `Writer`."""

    positions: int | None

    def tell(self, text: str, told: Callable[[str], None]) -> None: ...

    def prompt(self, turns: Conversation) -> list[int]: ...

    def write(
        self, prompt: list[int], tokens: int, temperature: float = 0.0, told: Callable[[str], None] | None = None
    ) -> Any: ...


@dataclass(frozen=True)
class Columns:
    """Where a row has what a model reads."""

    text: str = "text"
    image: str = "image"

    def of(self, reads: Reads) -> list[str]:
        return [*([self.text] if reads.text else []), *([self.image] if reads.images else [])]


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
        from .finished import FinishedRun, exported, writers
        from .writer import Writer

        run = FinishedRun(folder, *exported(), *writers())
        return Writer(run) if run.model.task.EXPORT == "text" else run.merged(), name
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
    columns: Columns = Columns(),
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """source: a file, or - for standard input. out: a new file, there only when all rows have been answered; None:
    standard output, row by row; of a model that writes texts, where that is a terminal, each text and then its
    continuation, token by token. Raises ConfigError, DataError."""
    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} is there already; give another file")
    if out is not None:
        require_writable(out, "--out")
    name = "standard input" if source == "-" else source
    try:
        with ExitStack() as stack:
            lines = sys.stdin if source == "-" else stack.enter_context(_open(source))
            if isinstance(model, Writes) and tells(model, out):
                records = _records(lines, format_, columns.of(model.reads), name)
                return _tell(model, (record[columns.text] for record in records), sys.stdout)
            if out is None:
                return predict(model, lines, sys.stdout, format_, columns=columns, source=source, progress=progress)
            partial = stack.enter_context(whole_file(out))
            with partial.open("w", newline="", encoding="utf-8") as target:
                return predict(model, lines, target, format_, columns=columns, source=source, progress=progress)
    except UnicodeDecodeError:
        raise DataError(f"{name}: not UTF-8; convert it") from None


def tells(model: Model, out: Path | None) -> bool:
    """Whether `predict_file` shows texts while they are written."""
    return out is None and isinstance(model, Writes) and sys.stdout.isatty()


def _tell(model: Writes, texts: Iterable[str], out: TextIO) -> int:
    """Shows each text with its continuation as it is written; returns how many."""

    def told(part: str) -> None:
        out.write(harmless(part))
        out.flush()

    done = 0
    for text in texts:
        told(f"{text}\n")
        model.tell(text, told)
        told("\n\n")
        done += 1
    return done


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
    columns: Columns = Columns(),
    source: str = "-",
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Writes each row with its answer, in order; returns how many.

    An answer is `predicted`, and for classes and tags `probability`, of tags the least. A row of format `text` is one
    line, and comes out as csv. Images are paths from the source's folder. Raises ConfigError, DataError, which names
    the line and no content.
    """
    wanted = columns.of(model.reads)
    if format_ == "text" and len(wanted) > 1:
        raise ConfigError(f"--format: received 'text'; the model reads {' and '.join(wanted)}; give csv or jsonl")
    name = "standard input" if source == "-" else source
    folder = Path() if source == "-" else Path(source).parent
    records = _records(lines, format_, wanted, name)
    writer: Any = None
    done = 0
    while part := list(islice(records, _BATCH)):
        rows = _rows(part, model, columns, folder, f"{name}: row", done + 1)
        for record, answer in zip(part, model.answers(rows), strict=True):
            full = {**record, **_as_columns(answer, joined=format_ != "jsonl")}
            if format_ == "jsonl":
                out.write(json.dumps(full, ensure_ascii=False) + "\n")
                continue
            if writer is None:
                writer = csv.DictWriter(out, list(full))
                writer.writeheader()
            writer.writerow(full)
        out.flush()
        done += len(part)
        progress(done)
    if not done:
        raise DataError(f"{name}: no rows received")
    return done


def _rows(records: list[dict[str, Any]], model: Model, columns: Columns, folder: Path, where: str, first: int) -> Rows:
    """What the model reads of records. first: the number of the first, for messages."""
    texts = [str(record[columns.text]) if model.reads.text else "" for record in records]
    for number, text in enumerate(texts if model.reads.text else (), start=first):
        if (wrong := fault_of(text)) is not None:
            raise DataError(f"{where} {number}, column '{columns.text}': {wrong}; correct the row, or drop it")
    images = None
    if model.form is not None:
        images = np.stack(
            [
                read_image(record[columns.image], folder, model.form, f"{where} {number}, column '{columns.image}'")
                for number, record in enumerate(records, start=first)
            ]
        )
    return Rows("rows", texts, images=images)


def _as_columns(answer: dict[str, Any], *, joined: bool) -> dict[str, Any]:
    """An answer of `Model.answers` as fields of a row. joined: tags as one text, a word's after the other's."""
    if "label" in answer:
        return {PREDICTED: answer["label"], PROBABILITY: answer["probability"]}
    if "number" in answer:
        return {PREDICTED: answer["number"]}
    if "continuation" in answer:
        return {PREDICTED: answer["continuation"]}
    least = min((p for p in answer["probabilities"] if p is not None), default=None)
    return {PREDICTED: " ".join(answer["tags"]) if joined else answer["tags"], PROBABILITY: least}


def _records(lines: TextIO, format_: Format, columns: list[str], source: str) -> Iterator[dict[str, Any]]:
    if format_ == "text":
        for line in lines:
            if line.strip():
                yield {columns[0]: line.rstrip("\n")}
        return
    if format_ == "jsonl":
        yield from _json_rows(lines, columns, source)
        return
    csv.field_size_limit(_LONGEST)
    rows = csv.DictReader(lines, strict=True)
    _check_columns(rows.fieldnames or [], columns, source)
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


def _json_rows(lines: Iterable[str], columns: list[str], source: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{source}: line {number}: not valid JSON; one object a line is expected") from None
        if "\\u" in line and not _is_utf8(record):
            raise DataError(f"{source}: line {number}: half a character (a lone surrogate); correct the row")
        for column in columns:
            if not isinstance(record, dict) or not isinstance(record.get(column), str):
                raise DataError(
                    f"{source}: line {number}: no text under '{column}'; name its key with --text, or --image"
                )
        for taken in (PREDICTED, PROBABILITY):
            if taken in record:
                raise DataError(f"{source}: line {number}: has '{taken}' already; rename it")
        yield record


def _is_utf8(record: Any) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_columns(names: Sequence[str], columns: list[str], source: str) -> None:
    repeated = next((name for name in names if list(names).count(name) > 1), None)
    if repeated is not None:  # of two columns of one name, one would be lost
        raise DataError(f"{source}: {twice(repeated)}")
    for column in columns:
        if column not in names:
            raise DataError(f"{source}: column '{column}' is missing; {columns_told(names)}")
    for taken in (PREDICTED, PROBABILITY):
        if taken in names:
            raise DataError(f"{source}: column '{taken}' is there already; rename it")
