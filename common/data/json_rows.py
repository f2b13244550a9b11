"""Rows that are JSON objects: one a line, or in a list."""

import json
import re
from collections.abc import Iterator

BOM = "\ufeff"
NO_OBJECT = "it cannot be parsed; expected one JSON object a line"
_SURROGATE = re.compile("[\ud800-\udfff]")
_DEPTH = 32
"""lists within lists; deeper ones could not be read on every stack"""
Found = tuple[dict[str, object] | None, str]
"""an object, or None, and how it is written"""


def objects_a_line(text: str) -> Iterator[Found]:
    """A byte-order mark may stand before any line: files are joined, and lose their first rows."""
    for line in filter(str.strip, text.split("\n")):
        yield _object(line.removeprefix(BOM)), line.strip()


def objects(text: str) -> Iterator[Found]:
    """Of a list, or a line each. Raises ValueError for a list that is no JSON: one row decides about all of them, so no
    site's source is such a file; and for one object over several lines."""
    lines = text.removeprefix(BOM).strip()
    if lines.startswith("["):
        return _listed(lines)
    if "\n" in lines and _object(lines.split("\n")[0]) is None and _object(lines) is not None:
        raise ValueError("one object; expected a list of objects, or one object a line; take the list out of it")
    return objects_a_line(text)


def _listed(text: str) -> Iterator[Found]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("a list that cannot be parsed as JSON; correct the file, or write jsonl") from None
    return ((value if _is_row(value) else None, json.dumps(value)) for value in values)


def _object(line: str) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, or a number of thousands of digits
        return None
    many = line.count("[") + line.count("{") > _DEPTH
    return value if isinstance(value, dict) and _named(value) and (not many or _shallow(value, _DEPTH)) else None


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and _named(value) and _shallow(value, _DEPTH)


def _named(value: dict[str, object]) -> bool:
    """Whether its columns' names can be written again: half a surrogate pair, or bytes that are not UTF-8, cannot."""
    return not any(map(_SURROGATE.search, value))


def _shallow(value: object, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_shallow(one, depth - 1) for one in inner)
