"""`confide label`: which rows of a site's pool to label next, and the labels back in. All of it stays at the site."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.config.tables import DataSection
from ..common.data.active import Strategy, choose
from ..common.data.sources import read_table, read_texts
from ..common.errors import ConfigError, DataError
from ..common.model.adapter import read_adapter
from ..common.types import Reads, Rows
from ..common.whole import require_new, require_writable, whole_folder
from .deploy.folder import load_site, own_backbones, write_private
from .personalize import load_finished

_ROW, _TEXT, _LABEL = "row", "text", "label"
TRAIN, POOL = "train.csv", "pool.csv"


@dataclass(frozen=True)
class Imported:
    added: int
    left: int
    """rows that are still in the pool"""


def suggest(
    pool: str,
    adapter: Path,
    out: Path,
    *,
    strategy: Strategy,
    count: int,
    labelled: str | None = None,
    text: str = "text",
    site: Path | None = None,
    seed: int = 0,
) -> int:
    """Writes a csv for the annotators: row (of the pool, from 1), text, and an empty label; returns how many.

    labelled: what the site trains on already. site: its folder, where backbones of its own are named. The file is
    private: mode 0600. Raises ConfigError, DataError, ModelError.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already, perhaps with labels in it; give another file with --out")
    require_writable(out, "--out")
    finished = load_finished(adapter, () if site is None else own_backbones(site, load_site(site)[0]))
    model = finished.model
    if Reads() != model.task.READS or model.two_texts:
        raise ConfigError(f"{adapter}: task '{finished.section.task}'; labels are asked for one class a text")
    texts = read_texts(pool, text)
    known = read_texts(labelled, text) if labelled else []
    everything = [*texts, *known]
    records = model.with_features(
        model.encode(Rows(pool, everything, labels=np.zeros(len(everything), dtype=np.int64)))
    )
    numbers = np.arange(len(everything))
    rng = np.random.default_rng([seed, 0x1ABE1])
    chosen = choose(
        strategy, count, model, finished.adapter, records, numbers[: len(texts)], numbers[len(texts) :], rng
    )
    _write(out, [_ROW, _TEXT, _LABEL], [[str(i + 1), texts[i], ""] for i in chosen])
    return len(chosen)


def import_labels(
    answers: Path,
    pool: str,
    out: Path,
    *,
    train: str | None = None,
    adapter: Path | None = None,
    text: str = "text",
    label: str = "label",
) -> Imported:
    """Writes out/train.csv, the rows of `train` and those that were labelled, and out/pool.csv, the others.

    adapter: of the run whose classes are allowed; omitted: those of `train`, or any. Rows whose label is empty stay in
    the pool. Nothing that exists is changed. Raises ConfigError, DataError, which name lines and never show a row.
    """
    require_new(out)
    data = DataSection(test=pool, text=text, label=label)
    rows = read_table(pool, data)
    texts = read_texts(pool, text)
    old = read_table(train, data, label=label).to_pylist() if train else []
    allowed = set(read_adapter(adapter)[1]) if adapter else {str(row.get(label)) for row in old}
    given = _answers(answers, texts, allowed)
    columns = list(old[0]) if old else list(dict.fromkeys([*rows.column_names, label]))
    pooled = rows.to_pylist()
    new = [{**pooled[i], text: texts[i], label: name} for i, name in given.items()]
    kept = [pooled[i] for i in range(len(pooled)) if i not in given]
    with whole_folder(out) as place:
        _write(place / TRAIN, columns, [[_cell(row.get(column)) for column in columns] for row in [*old, *new]])
        _write(place / POOL, rows.column_names, [[_cell(row[column]) for column in rows.column_names] for row in kept])
    return Imported(len(new), len(kept))


def _answers(path: Path, texts: list[str], allowed: set[str]) -> dict[int, str]:
    """Row number from 0 → class."""
    table = read_table(str(path), DataSection(test=str(path)), label=_LABEL)
    for column in (_ROW, _TEXT, _LABEL):
        if column not in table.column_names:
            raise DataError(f"{path}: column '{column}' is missing; give the file that confide label suggest wrote")
    given: dict[int, str] = {}
    for line, answer in enumerate(table.select([_ROW, _TEXT, _LABEL]).to_pylist(), start=2):
        name = _cell(answer[_LABEL]).strip()
        if not name:
            continue
        number = _cell(answer[_ROW])
        index = int(number) - 1 if number.isdigit() else -1
        if not 0 <= index < len(texts) or texts[index] != answer[_TEXT]:
            raise DataError(
                f"{path}: line {line}: row and text are not those of the pool; was another pool given, or the text "
                "changed? Labels belong to the text they were asked for"
            )
        if allowed and name not in allowed:
            known = ", ".join(sorted(allowed)[:10])
            raise DataError(f"{path}: line {line}: the label is none of the classes; allowed: {known}")
        if index in given:
            raise DataError(f"{path}: line {line}: row {number} was labelled above; remove one of the two")
        given[index] = name
    if not given:
        raise DataError(f"{path}: no row has a label; fill the column '{_LABEL}'")
    return given


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows(rows)
    write_private(path, out.getvalue().encode())
