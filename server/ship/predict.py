"""`confide predict`: rows in, rows out with an answer each.

Rows are read as a run reads them, and refused as it refuses them. What a row must have, and what it gets, goes by the
task: a text, or two, an image, or a text and an image; a class, classes, a tag for each word, a number, or a
continuation.
"""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, get_args, runtime_checkable

from ...common.config.tables import DataSection
from ...common.data.columns import Notes, columns_told, read_images, read_strings, read_text, refuse, require
from ...common.data.files import bytes_of, is_file, kind_of
from ...common.data.formats import Table, parsed
from ...common.data.formats import load as load_table
from ...common.data.images import ImageForm
from ...common.data.values import flat
from ...common.errors import ConfigError, DataError, harmless
from ...common.types import Conversation, Reads, Rows
from ...common.whole import require_writable, whole_file
from .runtime import FACTS, VARIANTS, OnnxModel

Format = Literal["csv", "tsv", "json", "jsonl", "conll", "parquet", "text"]
"""of what is asked"""
Written = Literal["csv", "tsv", "jsonl"]
"""of the answers"""
STDIN = "-"
PREDICTED, PROBABILITY = "predicted", "probability"
_BATCH = 64
_OBJECTS = ("json", "jsonl", "parquet")


class Model(Protocol):
    """What answers rows: `Answering`, or `Writer`."""

    task: str
    labels: list[str]
    two_texts: bool

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
    pair: str = "text_pair"
    image: str = "image"

    def of(self, model: Model) -> list[str]:
        """Those that a model reads."""
        texts = [self.text, *([self.pair] if model.two_texts else [])] if model.reads.text else []
        return [*texts, *([self.image] if model.reads.images else [])]


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

        run = FinishedRun(folder, *exported(), *writers(), two_texts=True)
        return Writer(run) if run.model.task.EXPORT == "text" else run.merged(), name
    if not (folder / VARIANTS / name / FACTS).is_file():
        known = sorted(path.parent.name for path in (folder / VARIANTS).glob(f"*/{FACTS}"))
        raise ConfigError(f"--variant: received '{name}'; allowed: {', '.join(['torch', *known])}")
    return OnnxModel(folder / VARIANTS / name, threads), name


def columns_of(folder: Path, names: Sequence[str]) -> Columns:
    """The names that a run has them under, or, of those that are not among `names`, and for a variant's folder, the
    usual ones."""
    usual = Columns()
    if (folder / FACTS).is_file():
        return usual
    from ...common.config.run import load as load_config
    from ...common.run_folder import CONFIG

    data: DataSection = load_config(folder / CONFIG).data
    own = Columns(data.prompt or data.text, data.text_pair or usual.pair, data.image)
    there = {
        key: getattr(usual, key)
        for key in ("text", "pair", "image")
        if getattr(own, key) not in names and getattr(usual, key) in names
    }
    return replace(own, **there)


def format_of(source: str, given: str | None) -> Format | None:
    """How a source is read: what was asked, or by its name; None: no file, but a hub id or an SQL url. Raises
    ConfigError."""
    if given is None and source != STDIN:
        if not is_file(source):
            return None
        given = kind_of(Path(source)).removeprefix(".").replace("txt", "text")
    found: Format | None = next((one for one in get_args(Format) if one == given), None)
    if found is None or (source == STDIN and found == "parquet"):
        allowed = [one for one in get_args(Format) if source != STDIN or one != "parquet"]
        raise ConfigError(f"--format: received '{given or 'nothing'}'; allowed: {', '.join(allowed)}")
    return found


def read(source: str, format_: Format | None) -> Table:
    """All of a source. Raises DataError."""
    path = Path("standard input" if source == STDIN else source)
    kind = "" if format_ is None else f".{format_}".replace(".text", ".txt")
    if source == STDIN:
        return parsed(path, kind, sys.stdin.buffer.read())
    if format_ is None or kind == kind_of(path) or kind == ".parquet":
        return load_table(source)
    try:
        return parsed(path, kind, bytes_of(path))
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}; give the path of a file") from None


def written_as(format_: Format | None, out: Path | None) -> Written:
    """By the name of the file of the answers; otherwise rows of columns stay such, and objects too."""
    kind = "" if out is None else out.suffix.lower().removeprefix(".")
    if (named := next((one for one in get_args(Written) if one == kind), None)) is not None:
        return named
    return "tsv" if format_ == "tsv" else "jsonl" if format_ in _OBJECTS else "csv"


def predict_file(
    model: Model,
    source: str,
    out: Path | None,
    format_: Format | None,
    *,
    columns: Columns | Callable[[Sequence[str]], Columns] = Columns(),
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """source: a file, hub id, SQL url, or - for standard input. columns: or what makes them of the names that there
    are. out: a new file, there only when all rows have been answered; None: standard output, batch by batch; of a model
    that writes texts, where that is a terminal, each text and then its continuation, token by token. Raises
    ConfigError, DataError."""
    if out is not None:
        if out.exists():
            raise ConfigError(f"--out: {out} is there already; give another file")
        require_writable(out, "--out")
    if isinstance(model, Writes) and tells(model, out) and source == STDIN and format_ == "text":
        return _tell(model, (line.rstrip("\n") for line in sys.stdin if line.strip()), sys.stdout)  # as it is typed
    table, written = read(source, format_), written_as(format_, out)
    columns = columns if isinstance(columns, Columns) else columns(table.names)
    if isinstance(model, Writes) and tells(model, out):
        return _tell(model, iter(read_strings(_required(table, [columns.text]), columns.text)), sys.stdout)
    if out is None:
        return predict(model, table, sys.stdout, written, columns=columns, progress=progress)
    with whole_file(out) as partial, partial.open("w", newline="", encoding="utf-8") as target:
        return predict(model, table, target, written, columns=columns, progress=progress)


def tells(model: Model, out: Path | None) -> bool:
    """Whether `predict_file` shows texts while they are written."""
    return out is None and isinstance(model, Writes) and sys.stdout.isatty()


def _tell(model: Writes, texts: Iterator[str], out: TextIO) -> int:
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


def predict(
    model: Model,
    table: Table,
    out: TextIO,
    written: Written,
    *,
    columns: Columns = Columns(),
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """Writes each row with its answer, in order; returns how many.

    An answer is `predicted`, and for classes and tags `probability`, of several the least. Columns of bytes are left
    out. Images are paths from the source's folder, or bytes. Raises DataError, which names the row and no content,
    before the first answer where texts alone are read.
    """
    wanted = columns.of(model)
    for taken in (PREDICTED, PROBABILITY):
        if taken in table.names:
            raise DataError(f"{table.source}: column '{taken}' is there already; rename it")
    notes = _required(table, wanted)
    words = model.reads.label == "tags"
    read = {name: read_strings(notes, name, words=words) for name in wanted if name != columns.image}
    passed = read | _others(notes, written, [name for name in table.columns if name not in read])
    writer: Any = None
    count = len(table.rows)
    for start in range(0, count, _BATCH):
        part = slice(start, start + _BATCH)
        rows = _rows(model, table, columns, read, part)
        for place, answer in enumerate(model.answers(rows), start=start):
            row = {name: passed[name][place] for name in table.columns if name in passed}
            full = {**row, **_as_columns(answer, joined=written != "jsonl")}
            if written == "jsonl":
                out.write(json.dumps(full, ensure_ascii=False, default=str) + "\n")
                continue
            if writer is None:
                writer = csv.DictWriter(out, list(full), delimiter="\t" if written == "tsv" else ",")
                writer.writeheader()
            writer.writerow(full)
        out.flush()
        progress(min(part.stop, count), count)
    return count


def _required(table: Table, wanted: list[str]) -> Notes:
    """Raises DataError for a column that is not there, no rows, or one that cannot be parsed."""
    notes = Notes(table, strict=True)
    refuse(notes)
    if missing := next((name for name in wanted if name not in table.names), None):
        raise DataError(
            f"{table.source}: column '{missing}' is missing; {columns_told(table.names)}; name it with --text, "
            "--text-pair or --image"
        )
    require(notes, wanted)
    return notes


def _rows(model: Model, table: Table, columns: Columns, read: dict[str, list[str]], part: slice) -> Rows:
    """What the model reads of a part of the rows."""
    numbers = table.rows[part]
    images = None
    if model.form is not None:
        values = {columns.image: table.column(columns.image)[part]}
        some = replace(table, columns=values, rows=numbers, lost=[])
        images = read_images(Notes(some, strict=True), columns.image, table.folder, model.form)[0]
    text = read[columns.text][part] if model.reads.text else [""] * len(numbers)
    return Rows(table.source, text, images=images, pair=read[columns.pair][part] if model.two_texts else None)


def _others(notes: Notes, written: Written, names: list[str]) -> dict[str, list[Any]]:
    """The columns that are passed on: what JSON can say as it is, and otherwise texts."""
    found: dict[str, list[Any]] = {}
    for name in names:
        values = notes.table.column(name)
        if any(isinstance(value, bytes | bytearray) for value in values):
            continue
        texts = [read_text(notes, name, place, flat(value)) or "" for place, value in enumerate(values)]
        found[name] = list(map(_in_json, values)) if written == "jsonl" else texts
    return found


def _in_json(value: object) -> object:
    """As JSON can say it: no NaN, and nothing infinite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_columns(answer: dict[str, Any], *, joined: bool) -> dict[str, Any]:
    """An answer of `Model.answers` as fields of a row. joined: tags as one text, a word's after the other's;
    several classes as JSON text, as a run reads them."""
    if "label" in answer:
        return {PREDICTED: answer["label"], PROBABILITY: answer["probability"]}
    if "labels" in answer:
        chosen = answer["labels"]
        least = min((answer["probabilities"][label] for label in chosen), default=None)
        return {PREDICTED: json.dumps(chosen, ensure_ascii=False) if joined else chosen, PROBABILITY: least}
    if "number" in answer:
        return {PREDICTED: answer["number"]}
    if "continuation" in answer:
        return {PREDICTED: answer["continuation"]}
    least = min((p for p in answer["probabilities"] if p is not None), default=None)
    return {PREDICTED: " ".join(answer["tags"]) if joined else answer["tags"], PROBABILITY: least}
