"""Rows from a source: csv, jsonl, parquet, hub id, SQL url, or the data that confide generates.

Errors name file, row and column, and never show what a row holds: they end up in logs that leave the site.
Rows are counted from 1 and the header of a csv is row 1, as an editor shows them.
"""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from . import demo
from .demo_pictures import digits
from .errors import DataError
from .pictures import PictureForm, read_pictures
from .run_tables import DataSection
from .types import Reads, Rows

_URL = re.compile(r"^[a-z][a-z0-9+]*://")
_DEMO = "demo:"
_TEXT = Reads()
_FILES = (".csv", ".jsonl", ".parquet", ".conll")


def read_rows(
    source: str,
    data: DataSection,
    labels: list[str] | None,
    *,
    reads: Reads = _TEXT,
    picture: PictureForm | None = None,
    group: bool = False,
) -> Rows:
    """Reads and checks a source.

    labels: the class names in order; None where there are no classes. reads: what of a row. picture: what pictures are
    made into. group: also read the column of a `natural` partition. Raises DataError: source missing or unreadable,
    column missing, no rows, empty field, unknown label, no number, no picture.
    """
    table = read_table(source, data)
    first = 2 if source.lower().endswith(".csv") else 1
    tagged, pictures = reads.label == "tags", None
    if reads.pictures and picture is not None:
        _check_column(table, data.image, source)
        pictures = read_pictures(table, data.image, source, first, picture)
    if reads.label == "number":
        values = _numbers(table, data.label, source, first, data.scale)
    else:
        values = None if labels is None or tagged else _classes(table, data.label, source, first, labels)
    return Rows(
        source=source,
        text=_strings(table, data.prompt or data.text, source, first) if reads.text else [""] * table.num_rows,
        response=_strings(table, data.response, source, first) if data.response else None,
        labels=values,
        tags=_tags(table, data, source, first, labels) if labels is not None and tagged else None,
        group=np.asarray(_strings(table, data.partition.column or "", source, first), dtype=object) if group else None,
        pictures=pictures,
    )


def read_texts(source: str, column: str) -> list[str]:
    """A column of texts without anything else. Raises DataError as `read_rows` does."""
    return read_rows(source, DataSection(test=source, text=column), None, reads=Reads(label=None)).text


def label_names(sources: list[str], data: DataSection, *, per_word: bool = False) -> list[str]:
    """The classes that occur in public sources, numbers in numeric order, names in alphabetical order.

    per_word: B-x and I-x for every type x of entity that occurs, and O.
    """
    names: set[str] = set()
    for source in sources:
        table = read_table(source, data)
        found = _strings(table, data.label, source, 2 if source.lower().endswith(".csv") else 1)
        names.update(tag for tags in found for tag in tags.split()) if per_word else names.update(found)
    if per_word:
        return bio_names(names, ", ".join(sources))
    if all(name.lstrip("-").isdigit() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def bio_names(names: Iterable[str], source: str) -> list[str]:
    """All tags of the types in `names`, in the order that `token-classification` needs. Raises DataError."""
    kinds = set()
    for name in names:
        if name != "O" and not re.match(r"^[BI]-.", name):
            raise DataError(f"{source}: tag '{name[:40]}' received; allowed: B-TYPE, I-TYPE and O; convert the tags")
        kinds.add(name[2:])
    kinds.discard("")
    return [*(f"B-{kind}" for kind in sorted(kinds)), *(f"I-{kind}" for kind in sorted(kinds)), "O"]


def shuffled_limit(rows: Rows, limit: int | None, seed: int) -> Rows:
    """The first `limit` rows after a seeded shuffle; all rows in their order without a limit."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.take(_shuffled(len(rows), seed)[:limit])


def _shuffled(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 0x11A17]).permutation(count)


def training_rows(rows: Rows, data: DataSection, seed: int) -> Rows:
    """What a run trains on: the first `limit` rows, or the draw of them that `data.reference` names."""
    if data.reference is None or data.limit is None:
        return shuffled_limit(rows, data.limit, seed)
    pool, drawn = reference_draw(len(rows), data, seed)
    return rows.take(pool[drawn])


def reference_draw(count: int, data: DataSection, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For membership tests: the pool of the first 2·limit rows, of which the run itself took the first half, and which
    of them reference run `data.reference` takes.

    Returns (P,) row numbers and (P/2,) positions in it. Raises DataError when there are too few rows.
    """
    size = 2 * (data.limit or count)
    if size > count:
        raise DataError(
            f"{data.train}: {count} rows, of which the run took {data.limit or 'all'}; as many again must be left to "
            f"compare with; lower data.limit to {count // 2} or less"
        )
    number = data.reference or 0
    order = np.random.default_rng([seed, 0x5EF, number // 2]).permutation(size)
    drawn = order[: size // 2] if number % 2 == 0 else order[size // 2 :]  # in pairs: every record is in one of the two
    return _shuffled(count, seed)[:size], np.sort(drawn)


def read_table(source: str, data: DataSection) -> pa.Table:
    """The raw columns of a source. Raises DataError."""
    if source.startswith(_DEMO):
        spec = source.removeprefix(_DEMO)
        return digits(spec) if "digits" in spec else demo.table(spec)
    if _URL.match(source):
        return _from_sql(source)
    suffix = Path(source).suffix.lower()
    if suffix in _FILES:
        return _from_file(Path(source), suffix)
    return _from_hub(source)


def is_hub_id(source: str) -> bool:
    """Whether a source is of the hub, or the demonstration's: the same wherever it is read."""
    return source.startswith(_DEMO) or not (_URL.match(source) or Path(source).suffix.lower() in _FILES)


def _from_file(path: Path, suffix: str) -> pa.Table:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the path of a csv, jsonl, parquet or conll file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected a header and rows")
    try:
        if suffix == ".conll":
            return _from_conll(path)
        if suffix == ".parquet":
            return _utf8(pyarrow.parquet.read_table(path), path)
        if suffix == ".jsonl":
            return _utf8(pyarrow.json.read_json(path), path)
        header = pyarrow.csv.open_csv(path, parse_options=_csv_options()).schema.names
        # everything is text: a column of digits keeps its leading zeros
        as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
        return pyarrow.csv.read_csv(path, parse_options=_csv_options(), convert_options=as_text)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # pyarrow quotes the offending bytes in its message, so none of it is passed on
        raise DataError(_why_unreadable(path, suffix, error)) from None


def _from_conll(path: Path) -> pa.Table:
    """Columns text and label: the words of a sentence and their tags, joined by spaces.

    Each line holds a word and, last, its tag, separated by tabs or spaces; an empty line ends a sentence.
    """
    texts, labels, words, tags = [], [], [], []
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate([*lines, ""], start=1):
            parts = line.strip("\ufeff\uffff\n").split()  # marks that some tools leave at the ends of a file
            if not parts:
                if words:
                    texts.append(" ".join(words))
                    labels.append(" ".join(tags))
                words, tags = [], []
            elif len(parts) == 1:
                raise DataError(f"{path}: line {number}: a word without a tag; expected WORD TAB TAG")
            elif not parts[0].startswith("-DOCSTART-"):
                words.append(parts[0])
                tags.append(parts[-1])
    return pa.table({"text": pa.array(texts, pa.string()), "label": pa.array(labels, pa.string())})


def _utf8(table: pa.Table, path: Path) -> pa.Table:
    """The table, if its texts are UTF-8: pyarrow's json and parquet readers do not look."""
    for name in table.column_names:
        column = table[name]
        if not pa.types.is_string(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowException:
            for row, value in enumerate(column.cast(pa.binary()).to_pylist(), start=1):
                try:
                    (value or b"").decode("utf-8")
                except UnicodeDecodeError:
                    raise DataError(
                        f"{path}: row {row}, column '{name}': bytes that are not UTF-8; save the file as UTF-8"
                    ) from None
    return table


def _csv_options() -> pyarrow.csv.ParseOptions:
    return pyarrow.csv.ParseOptions(newlines_in_values=True)


def _why_unreadable(path: Path, suffix: str, error: Exception) -> str:
    if suffix == ".parquet":
        return f"{path}: not a readable parquet file ({type(error).__name__})"
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as bad:
                column = _column_at(path, line[: bad.start]) if suffix == ".csv" else ""
                return f"{path}: row {number}{column}: bytes that are not UTF-8; save the file as UTF-8"
    expected = re.search(r"Expected (\d+) columns, got (\d+)", str(error))
    row = re.search(r"[Rr]ow #?(\d+)|line (\d+)", str(error))
    where = f"row {row.group(1) or row.group(2)}: " if row else ""
    what = f"{expected.group(2)} columns instead of {expected.group(1)}" if expected else "it cannot be parsed"
    return f"{path}: {where}{what}; check quotes and separators"


def _column_at(path: Path, before: bytes) -> str:
    """The name of the column that a broken byte stands in, judged by the separators before it."""
    with path.open("rb") as lines:
        names = lines.readline().decode("utf-8", "replace").strip().split(",")
    index = re.sub(rb'"[^"]*"?', b"", before).count(b",")
    return f", column '{names[index]}'" if index < len(names) else ""


def _from_sql(source: str) -> pa.Table:
    """`URL#TABLE` or `URL#SELECT …`, read by `datasets.Dataset.from_sql`."""
    url, _, query = source.partition("#")
    shown = re.sub(r"//[^@/]*@", "//…@", url)  # no password in an error
    if not query:
        raise DataError(f"{shown}: no table named; write URL#TABLE or URL#SELECT …")
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    if not query.lower().lstrip().startswith("select"):
        query = f'SELECT * FROM "{query}"'  # noqa: S608  # the operator's own file names its own table
    try:
        # `datasets` copies what it reads to its cache; a site's rows must not stay behind there
        with tempfile.TemporaryDirectory(prefix="confide-sql-") as cache:
            dataset = Dataset.from_sql(query, url, cache_dir=cache, keep_in_memory=True)
            if not isinstance(dataset, Dataset):
                raise DataError(f"{shown}: the query gave no table")
            return dataset.data.table.combine_chunks()
    except ImportError:
        raise DataError(f"{shown}: SQL needs sqlalchemy; install confide[sql] and the database's driver") from None
    except DataError:
        raise
    except Exception as error:
        # a driver's message may quote rows, so only its kind is told
        raise DataError(
            f"{shown}: the query failed ({type(error.__cause__ or error).__name__}); check url, table and columns"
        ) from None


def _from_hub(source: str) -> pa.Table:
    """`NAME[:SPLIT]` on the Hugging Face hub, or from its cache; the split is `train` unless given."""
    from datasets import Dataset, load_dataset

    name, _, split = source.partition(":")
    try:
        dataset = load_dataset(name, split=split or "train")
    except Exception as error:
        raise DataError(
            f"{source}: neither a csv, jsonl or parquet file, nor a data set of the hub that can be reached or is "
            f"cached ({type(error).__name__}); check the name and the network"
        ) from None
    if not isinstance(dataset, Dataset):
        raise DataError(f"{source}: the hub gave no table; name one split as NAME:SPLIT")
    for column, feature in dataset.features.items():
        if hasattr(feature, "names"):  # class numbers become the names that the data set declares
            named = [feature.int2str(value) if value >= 0 else None for value in dataset[column]]
            dataset = dataset.remove_columns(column).add_column(column, named)
    return dataset.data.table.combine_chunks()


def _check_column(table: pa.Table, column: str, source: str) -> None:
    if column not in table.column_names:
        raise DataError(
            f"{source}: column '{column}' is missing; the columns are: {', '.join(table.column_names)}; set the name "
            "in [data]"
        )
    if table.num_rows == 0:
        raise DataError(f"{source}: there are no rows; expected at least one")


def _strings(table: pa.Table, column: str, source: str, first: int) -> list[str]:
    _check_column(table, column, source)
    values = table[column].to_pylist()
    result = []
    for row, value in enumerate(values, start=first):
        text = "" if value is None else str(value)
        if not text.strip():
            raise DataError(f"{source}: row {row}, column '{column}': the field is empty; fill it or drop the row")
        result.append(text)
    return result


def _classes(table: pa.Table, column: str, source: str, first: int, labels: list[str]) -> np.ndarray:
    index = {name: i for i, name in enumerate(labels)}
    classes = np.empty(table.num_rows, dtype=np.int64)
    for row, name in enumerate(_strings(table, column, source, first)):
        if name not in index:
            raise DataError(
                f"{source}: row {row + first}, column '{column}': a label that is not one of the {len(labels)} of this "
                f"run; allowed: {_shorten(labels)}; correct the row, or state all classes in data.labels"
            )
        classes[row] = index[name]
    return classes


def _numbers(table: pa.Table, column: str, source: str, first: int, scale: tuple[float, float] | None) -> np.ndarray:
    """(N,) float64, measured by `scale`."""
    mean, deviation = scale or (0.0, 1.0)
    values = np.empty(table.num_rows)
    for row, text in enumerate(_strings(table, column, source, first)):
        try:
            values[row] = float(text)
        except ValueError:
            values[row] = np.nan
        if not np.isfinite(values[row]):
            raise DataError(f"{source}: row {row + first}, column '{column}': not a finite number; correct the row")
    return (values - mean) / deviation


def number_scale(sources: list[str], data: DataSection) -> tuple[float, float]:
    """Mean and standard deviation of the numbers in public sources. Raises DataError."""
    found = [
        _numbers(read_table(source, data), data.label, source, 2 if source.lower().endswith(".csv") else 1, None)
        for source in sources
    ]
    values = np.concatenate(found)
    if not values.std():
        raise DataError(
            f"{', '.join(sources)}: column '{data.label}' holds the same number everywhere; nothing to learn"
        )
    return float(values.mean()), float(values.std())


def _tags(table: pa.Table, data: DataSection, source: str, first: int, labels: list[str]) -> list[np.ndarray]:
    """One (W,) array of class indices a row, a tag a word."""
    index = {name: i for i, name in enumerate(labels)}
    texts, columns = (_strings(table, column, source, first) for column in (data.text, data.label))
    result = []
    for row, (text, tags) in enumerate(zip(texts, columns, strict=True), start=first):
        words, names = text.split(), tags.split()
        if len(words) != len(names):
            raise DataError(
                f"{source}: row {row}, column '{data.label}': {len(names)} tags for {len(words)} words; each word "
                "needs one, separated by spaces"
            )
        if not index.keys() >= set(names):
            raise DataError(
                f"{source}: row {row}, column '{data.label}': a tag that is not one of the {len(labels)} of this run; "
                f"allowed: {_shorten(labels)}; correct the row, or state all classes in data.labels"
            )
        result.append(np.array([index[name] for name in names], dtype=np.int32))
    return result


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)} in all)" if len(names) > 8 else "")
