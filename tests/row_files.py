"""Rows of every kind of source, good ones and bad ones. What a bad row holds says `measles`: no message may."""

import datetime
import io
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from confide.common.config.tables import DataSection
from confide.common.data.images import ImageForm
from confide.common.types import Reads

LABELS = ["1", "2", "2020-01-31", "no", "yes"]
TAGS = ["B-per", "I-per", "O"]
FORM = ImageForm(1, 4, 4)
SECRET = "measles"


def png(value: int, size: int = 4) -> bytes:
    target = io.BytesIO()
    Image.new("L", (size, size), value).save(target, "PNG")
    return target.getvalue()


def noise() -> bytes:
    """An image that is long as a file."""
    target = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(target, "PNG")
    return target.getvalue()


def csv_file(folder: Path, rows: list[bytes], header: bytes = b"text,label\n") -> str:
    (folder / "r.csv").write_bytes(header + b"".join(rows))
    return str(folder / "r.csv")


def jsonl_file(folder: Path, rows: list[bytes]) -> str:
    (folder / "r.jsonl").write_bytes(b"".join(row + b"\n" for row in rows))
    return str(folder / "r.jsonl")


def conll_file(folder: Path, rows: list[bytes]) -> str:
    (folder / "r.conll").write_bytes(b"".join(row + b"\n" for row in rows))
    return str(folder / "r.conll")


def database(folder: Path, rows: list[tuple]) -> str:
    """No column has a type, and a text that is not UTF-8 is one all the same."""
    (folder / "r.db").unlink(missing_ok=True)
    with sqlite3.connect(folder / "r.db") as connection:
        connection.execute("CREATE TABLE m (text, label)")
        connection.executemany("INSERT INTO m VALUES (?, ?)", rows)
        connection.execute("UPDATE m SET text = CAST(text AS TEXT) WHERE typeof(text) = 'blob'")
    connection.close()
    return f"sqlite:///{folder}/r.db#m"


def parquet_file(folder: Path, rows: list[tuple], kind: pa.DataType | None = None) -> str:
    raw = pa.array(
        [text if text is None or isinstance(text, bytes) else text.encode() for text, _ in rows], pa.binary()
    )
    table = pa.table({"text": raw.view(pa.string()), "label": pa.array([one for _, one in rows], kind or pa.string())})
    pyarrow.parquet.write_table(table, folder / "r.parquet")
    return str(folder / "r.parquet")


def float_labels(folder: Path, rows: list[tuple]) -> str:
    return parquet_file(folder, rows, pa.float64())


def dates(folder: Path, rows: list[tuple]) -> str:
    texts = pa.array([text for text, _ in rows], pa.timestamp("ms"))
    pyarrow.parquet.write_table(pa.table({"text": texts, "label": [one for _, one in rows]}), folder / "r.parquet")
    return str(folder / "r.parquet")


def images(folder: Path, rows: list[bytes]) -> str:
    for value in range(3):
        (folder / f"{value}.png").write_bytes(png(value))
    (folder / "broken.png").write_bytes(b"\x89PNG measles")
    (folder / "short.png").write_bytes(noise()[:900])
    (folder / "folder.png").mkdir(exist_ok=True)
    return csv_file(folder, rows, b"image,label\n")


def encoded_images(folder: Path, rows: list[tuple]) -> str:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array([one for one, _ in rows], kind), "label": [label for _, label in rows]})
    pyarrow.parquet.write_table(table, folder / "r.parquet")
    return str(folder / "r.parquet")


CSV_GOOD = [
    b"first,yes\n",
    b'"second, with comma",no\r\n',
    b'"third\nover ""two"" lines",yes\n',
    b'he said "so",1\n',
    b'"quoted" and on,2\n',
    "fünf,2020-01-31\n".encode(),
    b"\nafter a blank line,no\n",
]
CSV_BAD = {
    "unknown class": b"measles,measles\n",
    "empty text": b"  ,yes\n",
    "empty label": b"measles,\n",
    "nothing": b",\n",
    "broken byte": b"measles \xff,yes\n",
    "broken label": b"measles,\xff\n",
    "too many columns": b"measles,yes,more\n",
    "too few columns": b"measles\n",
    "too many over lines": b'"measles\nfine,yes\nx",yes,more\n',
    "open quote": b'"measles,yes\n',
    "open quote at the end": b'measles,"yes\n',
    "NaN": b"measles,nan\n",
}
JSONL_GOOD = [
    b'{"text": "first", "label": "yes"}',
    b'{"text": "second", "label": 1}',
    b'{"label": "2020-01-31", "text": "2020-01-31"}',
    b'{"text": 7, "label": 2}',
    b'{"text": true, "label": "no", "more": [1, {"x": null}]}',
    b'\n  \n{"text": "f\\u00fcnf \\ud83d\\ude00", "label": "no"}\r',
]
JSONL_BAD = {
    "unknown class": b'{"text": "measles", "label": "measles"}',
    "a float among whole numbers": b'{"text": 1.5, "label": 1.5}',
    "a name among numbers": b'{"text": "measles", "label": "x"}',
    "no date among dates": b'{"text": "measles", "label": "2020-01"}',
    "null": b'{"text": null, "label": null}',
    "NaN": b'{"text": "measles", "label": NaN}',
    "infinity": b'{"text": 1e999, "label": -Infinity}',
    "empty text": b'{"text": " ", "label": "yes"}',
    "no such key": b'{"label": "yes"}',
    "nothing": b"{}",
    "broken byte": b'{"text": "measles \xff", "label": "yes"}',
    "half a surrogate pair": b'{"text": "measles \\ud83d", "label": "yes"}',
    "broken line": b'{"text": "measles", ',
    "no object": b'["measles", "yes"]',
    "a list": b'{"text": "measles", "label": ["yes"]}',
    "an object": b'{"text": "measles", "label": {"yes": 1}}',
    "a huge number": b'{"text": "measles", "label": ' + b"9" * 5000 + b"}",
    "deep": b'{"text": "measles", "label": ' + b"[" * 300 + b"]" * 300 + b"}",
    "bottomless": b'{"text": "measles", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}
CONLL_GOOD = [b"Ann\tB-per\nsees\tO\n", b"it O\n", b"Ann B-per\nLee I-per\nsees x O\n", "Jürgen\tB-per\n".encode()]
CONLL_BAD = {
    "a word without a tag": b"measles\tO\nmeasles\n",
    "unknown tag": b"measles\tB-measles\n",
    "no tag": b"measles\tmeasles\n",
    "broken byte": b"meas\xffles\tO\n",
    "broken tag": b"measles\tO\xff\n",
}
SQL_GOOD = [("first", "yes"), ("second", 1), (7, 2), ("fünf", "no"), ("six", "2020-01-31")]
SQL_BAD = {
    "NULL": (SECRET, None),
    "no text": (None, "yes"),
    "unknown class": (SECRET, SECRET),
    "a float among whole numbers": (1.5, 1.5),
    "empty text": ("", "yes"),
    "broken byte": (b"measles \xff", "yes"),
    "broken bytes as a label": (SECRET, b"\xff\xfe"),
}
PARQUET_GOOD = [("first", "yes"), ("second", "no"), ("fünf", "1"), ("six", "2")]
PARQUET_BAD = {
    "null": (SECRET, None),
    "no text": (None, "yes"),
    "unknown class": (SECRET, SECRET),
    "empty text": (" ", "yes"),
    "broken byte": (b"measles \xff", "yes"),
}
FLOAT_BAD = {"NaN": (SECRET, float("nan")), "null": (SECRET, None), "another": (SECRET, 1.5), "inf": (SECRET, np.inf)}
DATE = datetime.datetime(2020, 1, 31)
DATES_BAD = {"beyond the calendar": (2**50, "yes"), "null": (None, "yes")}
TAGS_GOOD = [b"Ann sees,B-per O\n", b"it,O\n", b"Ann Lee,B-per I-per\n"]
TAGS_BAD = {
    "too few tags": b"measles measles,O\n",
    "too many tags": b"measles,O O\n",
    "unknown tag": b"measles,B-measles\n",
    "no tags": b"measles,\n",
}
NUMBERS_GOOD = [b"first,1\n", b"second,2.5\n", b"third,-1e3\n"]
NUMBERS_BAD = {
    name: f"measles,{name}\n".encode() for name in ("measles", "nan", "inf", "1e999", "", "9" * 5000, "\u00b2")
}
IMAGES_GOOD = [b"0.png,yes\n", b"1.png,no\n", b"2.png,yes\n"]
IMAGES_BAD = {
    "no such file": b"measles.png,yes\n",
    "no image": b"broken.png,yes\n",
    "half an image": b"short.png,yes\n",
    "a folder": b"folder.png,yes\n",
    "no path": b",yes\n",
    "broken path": b"measles\xff.png,yes\n",
    "a path that cannot be": b"measles\x00.png,yes\n",
    "a long path": b"m" * 5000 + b",yes\n",
    "unknown class": b"0.png,measles\n",
}
ENCODED_GOOD = [({"bytes": png(value), "path": None}, "yes") for value in range(3)]
ENCODED_BAD = {
    "nothing": (None, "yes"),
    "neither": ({"bytes": None, "path": None}, "yes"),
    "no image": ({"bytes": b"measles", "path": None}, "yes"),
    "too many pixels": ({"bytes": png(1, 9000), "path": None}, "yes"),
    "empty label": (ENCODED_GOOD[0][0], ""),
}
IMAGES = {"reads": Reads(text=False, images=True), "image": FORM}
Case = tuple[Callable[..., str], list[Any], dict[str, Any], list[str] | None, dict[str, Any]]
KINDS: dict[str, Case] = {
    "csv": (csv_file, CSV_GOOD, CSV_BAD, LABELS, {}),
    "jsonl": (jsonl_file, JSONL_GOOD, JSONL_BAD, LABELS, {}),
    "conll": (conll_file, CONLL_GOOD, CONLL_BAD, TAGS, {"reads": Reads("tags")}),
    "sql": (database, SQL_GOOD, SQL_BAD, LABELS, {}),
    "parquet": (parquet_file, PARQUET_GOOD, PARQUET_BAD, LABELS, {}),
    "floats": (float_labels, [("a", 1.0), ("b", 2.0), ("c", 1.0)], FLOAT_BAD, ["1.0", "2.0"], {}),
    "dates": (dates, [(DATE, "yes"), (DATE, "no")], DATES_BAD, LABELS, {}),
    "tags": (csv_file, TAGS_GOOD, TAGS_BAD, TAGS, {"reads": Reads("tags")}),
    "numbers": (csv_file, NUMBERS_GOOD, NUMBERS_BAD, None, {"reads": Reads("number")}),
    "images": (images, IMAGES_GOOD, IMAGES_BAD, LABELS, IMAGES),
    "encoded images": (encoded_images, ENCODED_GOOD, ENCODED_BAD, LABELS, IMAGES),
}
CASES = [(kind, name) for kind, case in KINDS.items() for name in case[2]]
DATA = DataSection(test="unused")
