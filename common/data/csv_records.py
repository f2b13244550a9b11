"""The records of a csv (or tsv) as RFC 4180 has them, and how far a quote reaches that is not closed.

A field that begins with a quote ends with one, which stands before a separator or the end of its line; two quotes are
one of the text; line ends between them belong to it. On the line where a field begins, what follows its closing quote
belongs to the value, too, as in other readers.

Where no quote closes a field, or the next single one stands before anything else, the line where the record began is
left out alone, and the next line begins a record: the rows after it are what they would be without it. What no reader
can tell: the next quote stands before a separator or the end of its line, because a later row has a quote just there.
Then the rows between belong to the field. It takes a row that no csv library writes, with a quote that nothing closes.
"""

import io
import re
from collections.abc import Iterator
from functools import cache

_CLOSE = re.compile(r'([^"]*+(?:""[^"]*+)*+)"')


@cache
def _fields(separator: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What a field with quotes, and one without, look like."""
    plain = rf"[^{separator}\r\n]*+"
    return re.compile(rf'"([^"]*+(?:""[^"]*+)*+)"({plain})'), re.compile(plain)


def records(text: str, separator: str = ",") -> Iterator[tuple[list[str] | None, str]]:
    """The fields of each record, and its text; None, and a line, where that line opens a quote that is not closed.
    Empty lines are no records."""
    lines = list(io.StringIO(text, newline=""))  # they keep their ends
    closing: list[int | None] = [None] * (len(lines) + 1)
    for number in reversed(range(len(lines))):
        closing[number] = number if _CLOSE.match(lines[number]) else closing[number + 1]
    at = 0
    while at < len(lines):
        fields, after = _record(lines, at, closing, separator)
        if fields != [""] or '"' in lines[at]:
            yield fields, "".join(lines[at:after]).rstrip("\r\n")
        at = after


def _record(lines: list[str], at: int, closing: list[int | None], separator: str) -> tuple[list[str] | None, int]:
    """The fields of the record that begins at a line, or None, and the line after it.

    closing: for each line, the first from there on that closes a quote that is open when it begins.
    """
    line, first, place = lines[at], at, 0
    if '"' not in line:
        return line.rstrip("\r\n").split(separator), at + 1
    quoted, plain = _fields(separator)
    fields: list[str] = []
    while True:
        if not line.startswith('"', place):
            found = plain.match(line, place)
            value = found[0] if found else ""
        elif found := quoted.match(line, place):
            value = found[1].replace('""', '"') + found[2]  # what follows a closed quote belongs to the value
        else:
            end = closing[at + 1]
            found = None if end is None else _CLOSE.match(lines[end])
            if end is None or found is None or lines[end][found.end() : found.end() + 1] not in f"{separator}\r\n":
                return None, first + 1
            value = "".join([line[place + 1 :], *lines[at + 1 : end], found[1]]).replace('""', '"')
            at, line = end, lines[end]
        place = found.end() if found else place
        fields.append(value)
        if not line.startswith(separator, place):
            return fields, at + 1
        place += 1
