"""Which files are read, and by which suffix: what looks like a file is never asked at a hub."""

import gzip
import io
import re
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import DataError
from ..machine import total_ram

ROW_FILES = (".csv", ".tsv", ".jsonl", ".parquet", ".conll", ".txt")
"""in which a broken row is no other row's matter"""
FILES = (*ROW_FILES, ".json")
PACKED = (".gz", ".zst")
"""after the suffix of a file of text"""
_OTHER_FILES = re.compile(
    r"\.(arrow|bz2|db|feather|gz|ndjson|ods|orc|pickle|pkl|sqlite|tar|toml|xlsx?|xml|xz|ya?ml|zip|zst)",
    re.IGNORECASE,
)
"""which are not read, and whose names are no hub's"""
_AT_ONCE, _PART = 2**24, 8
"""bytes that are unpacked at a time, and what part of the machine's memory they may take in all: of what is
free other rows may decide"""


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read: of a packed one that before `.gz` or `.zst`, of text alone."""
    kind = path.suffix.lower()
    if kind not in PACKED:
        return kind
    inside = path.with_suffix("").suffix.lower()
    return kind if inside == ".parquet" else inside


def is_file(source: str) -> bool:
    """Whether a source that is no url names a file, there or not: such a name is never asked at a hub."""
    path = Path(source)
    known = path.suffix.lower() in FILES or _OTHER_FILES.fullmatch(path.suffix)
    return bool(known) or path.exists() or source.startswith(("/", ".", "~"))


def bytes_of(path: Path) -> bytes:
    """Of a packed file what is in it. Raises DataError, also for one that unpacks to more than an eighth of the
    machine's memory: a file of 20 MB may hold 20 GB, and its rows take some times that."""
    kind = path.suffix.lower()
    if kind not in PACKED:
        return path.read_bytes()
    try:
        if kind == ".gz":
            with gzip.open(path) as file:
                return _unpacked(path, file)
        with pa.OSFile(str(path)) as packed, pa.CompressedInputStream(packed, "zstd") as file:
            return _unpacked(path, file)
    except FileNotFoundError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError, pa.ArrowException):
        name = {".gz": "gzip", ".zst": "zstd"}[kind]
        raise DataError(f"{path}: not a readable {name} file, or cut; pack it again") from None


def _unpacked(path: Path, file: Any) -> bytes:
    most = total_ram() // _PART
    content = io.BytesIO()
    while part := file.read(_AT_ONCE):
        content.write(part)
        if content.tell() > most:
            raise DataError(
                f"{path}: unpacks to more than {most / 2**20:,.0f} MiB, an eighth of this machine's memory; give fewer "
                "rows, or a parquet file, whose columns are read one by one"
            )
    return content.getvalue()
