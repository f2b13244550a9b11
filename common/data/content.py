"""Digests of a data set: of whose records they are, and of all that they hold. Both are the same for the same rows,
whatever their order and kind of source.

Two data sets with the same texts are the same people's, whatever other columns a table of site.toml names as labels."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..config.tables import DataSection
from ..errors import DataError
from .conversations import as_known
from .formats import Table
from .images import image_file
from .record_keys import plain
from .values import as_bytes, as_text

_NOTHING = (b"", b"nan", b"none", b"null")
ROLES = ("text", "label", "image", "prompt", "response", "person", "messages", "chosen", "rejected", "text_pair")
"""the columns that a digest covers, by their keys in [data]"""


def mark(value: object, content: bytes | None) -> bytes | None:
    """What the digest covers of an image: its file, where `content` could be read, or the value itself."""
    if value is None or content is not None:
        return None if content is None else b"file" + hashlib.sha256(content).digest()
    return b"none" + as_bytes(value)


def _marks(values: list[object], folder: Path) -> Iterator[bytes | None]:
    for value in values:
        try:
            content = image_file(value, folder, "image")
        except DataError:
            content = None
        yield mark(value, content)


def identity(table: Table, data: DataSection, marks: list[bytes | None] | None) -> bytes:
    """32 bytes over the texts alone, or over the images where there are no texts, each once. Case, blanks and rows
    without one make no other data set. marks: of the images, where they were read."""
    values = table.columns.get(data.messages or data.prompt or data.text)
    second = None if data.text_pair is None else table.columns.get(data.text_pair)
    if values is not None and second is not None:  # whichever of the two a table names first
        rows = {one for pair in zip(values, second, strict=True) if (one := _together(pair))}
    elif values is not None:
        read = _words if data.messages is None else as_known
        known = (b"" if value is None else plain(read(value)) for value in values)
        rows = {one for one in known if one not in _NOTHING}
    else:
        images = table.columns.get(data.image, [])
        rows = {one for one in (marks if marks is not None else _marks(images, table.folder)) if one}
    return _whose(rows)


def joined(value: object) -> object:
    """Words of a list, or numbers of tags, with blanks between; any other value, and a list of anything else, as it
    is."""
    if not isinstance(value, list | tuple) or not all(map(_is_word, value)):
        return value
    return " ".join(word if isinstance(word, str) else as_text(word) or "" for word in value)


def _is_word(value: object) -> bool:
    """Of numbers also broken ones: one of them makes some writers store all numbers of a column so."""
    if isinstance(value, str):
        return value.split() == [value]
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _words(value: object) -> bytes:
    """Lists of words as the text that they make in other files."""
    return as_bytes(joined(value))


def _together(texts: tuple[object, object]) -> bytes:
    """Of two texts, in an order of their own; nothing where both are missing."""
    known = sorted(b"" if text is None else plain(_words(text)) for text in texts)
    return (
        b""
        if all(one in _NOTHING for one in known)
        else b"".join(len(one).to_bytes(8, "little") + one for one in known)
    )


def _whose(rows: set[bytes]) -> bytes:
    return hashlib.sha256(b"who" + b"".join(sorted(hashlib.sha256(row).digest() for row in rows))).digest()


NOBODY = _whose(set())
"""the identity of a data set without rows"""


def digest(table: Table, data: DataSection, marks: list[bytes | None] | None) -> bytes:
    """32 bytes: SHA-256 over the sorted SHA-256 of the rows. marks: of the images, where they were read."""
    parts: list[list[bytes]] = []
    for number, role in enumerate(ROLES):
        values = table.columns.get(getattr(data, role) or "")
        if values is None:
            continue
        read = as_known if role == "messages" else as_bytes
        contents = (None if value is None else read(value) for value in values)
        if role == "image":
            contents = iter(marks) if marks is not None else _marks(values, table.folder)
        head = bytes([number])
        parts.append([b"" if one is None else head + len(one).to_bytes(8, "little") + one for one in contents])
    rows = [b"row" + b"".join(part[place] for part in parts) for place in range(len(table.rows))]
    rows += [b"raw" + lost.raw for lost in table.lost]
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(row).digest() for row in rows))).digest()
