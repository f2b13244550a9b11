"""Which files are read, and by which suffix: what looks like a file is never asked at a hub."""

import gzip
import re
import zlib
from pathlib import Path

import pyarrow as pa

from ..errors import DataError

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
    """Of a packed file what is in it. Raises DataError."""
    kind = path.suffix.lower()
    if kind not in PACKED:
        return path.read_bytes()
    try:
        if kind == ".gz":
            with gzip.open(path) as file:
                return file.read()
        with pa.OSFile(str(path)) as packed, pa.CompressedInputStream(packed, "zstd") as file:
            return file.read()
    except FileNotFoundError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError, pa.ArrowException):
        name = {".gz": "gzip", ".zst": "zstd"}[kind]
        raise DataError(f"{path}: not a readable {name} file, or cut; pack it again") from None
