"""Which files are read, and by which suffix: what looks like a file is never asked at a hub."""

import gzip
import re
import zlib
from pathlib import Path

from ..errors import DataError

ROW_FILES = (".csv", ".tsv", ".jsonl", ".parquet", ".conll")
"""in which a broken row is no other row's matter"""
FILES = (*ROW_FILES, ".json")
PACKED = ".gz"
"""after the suffix of a file of text"""
_OTHER_FILES = re.compile(
    r"\.(arrow|bz2|db|feather|gz|ndjson|ods|orc|pickle|pkl|sqlite|tar|toml|txt|xlsx?|xml|xz|ya?ml|zip|zst)",
    re.IGNORECASE,
)
"""which are not read, and whose names are no hub's"""


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read: of a packed one that before `.gz`, of text alone."""
    kind = path.suffix.lower()
    if kind != PACKED:
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
    if path.suffix.lower() != PACKED:
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path}: not a readable gzip file, or cut; pack it again") from None
