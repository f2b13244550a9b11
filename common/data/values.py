"""A value of a source → its text, its class, or its bytes: by itself, whatever else is in its column."""

import datetime
import json
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real

import pyarrow as pa

EMPTY = "the field is empty; fill it or drop the row"
EXACT = 2**53
"""from which on a float does not tell whole numbers apart"""
NOT_UTF8 = "bytes that are not UTF-8; save the file as UTF-8"
_NO_TEXT: dict[str, tuple[type, ...]] = {
    "a list": (list, tuple, set),
    "an object": (dict,),
}
_NO_CLASS: dict[str, tuple[type, ...]] = {
    "a date": (datetime.date,),  # and one with a time of day
    "a time of day": (datetime.time,),
    "a duration": (datetime.timedelta, pa.MonthDayNano),
}


@dataclass(frozen=True)
class Unread:
    """A value that cannot be converted."""

    raw: bytes


class UnreadableError(ValueError):
    """What is wrong with a value, without anything of it."""


_TEXTS = (str, bytes, Unread, list, tuple, set, dict, type(None))
"""of which `as_text` says what is wrong"""


def as_text(value: object) -> str | None:
    """A string as it is, bytes as UTF-8, numbers, truth values and dates by `str`; None where nothing is (null, NaN).

    Whole numbers are written alike in columns of whole and of broken numbers, since one row with a gap makes some
    writers store all of a column as the latter. Raises UnreadableError, also for lists and objects: what `str` makes of
    them is Python's, and no text.
    """
    if isinstance(value, str):
        text = value
    elif value is None or (isinstance(value, float | Decimal) and "nan" in str(value).lower()):
        return None
    elif isinstance(value, Unread):
        raise UnreadableError("a value that cannot be read; correct the row")
    elif kind := next((name for name, types in _NO_TEXT.items() if isinstance(value, types)), None):
        raise UnreadableError(f"{kind} where a text or a number is expected; convert the column")
    else:
        try:
            text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(_whole(value))
        except ValueError:  # a number of thousands of digits
            raise UnreadableError("a value that has no text; correct the row") from None
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            escaped = "\udc80" <= error.object[error.start] <= "\udcff"
            raise UnreadableError(NOT_UTF8 if escaped else "half a surrogate pair; correct the row") from None
    return text


def as_class(value: object) -> str | None:
    """As `as_text`, of a label. Raises UnreadableError for dates, times, durations and infinities, too, and for what
    else is neither text nor a number: `str` would make a class of each."""
    kind = next((name for name, types in _NO_CLASS.items() if isinstance(value, types)), None)
    if kind is None and (isinstance(value, _TEXTS) or _is_finite(value)):
        return as_text(value)
    if kind is None:
        number = isinstance(value, Real | Decimal)
        kind = "an infinite number" if number else f"a value of type {type(value).__name__}"
    raise UnreadableError(
        f"{kind} where a class is expected; allowed: text, numbers, true and false, categories; convert the column"
    )


def _is_finite(value: object) -> bool:
    """Of a number; NaN stands for nothing, and is none of the infinite ones."""
    if isinstance(value, Decimal):
        return not value.is_infinite()
    return isinstance(value, Integral) or (isinstance(value, Real) and abs(value) != float("inf"))


def _whole(value: object) -> object:
    """A whole number as such. Beyond 2⁵³ a broken number stands for several, and stays what it is."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < EXACT
    return int(value) if whole else value  # pyright: ignore[reportArgumentType]  # a float


def flat(value: object) -> object:
    """Lists and objects as JSON text, as a csv has them."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | tuple | dict) else value


def as_bytes(value: object) -> bytes:
    """Of any value but None: the same bytes for the same text, whatever the source; different ones otherwise."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Unread):
        return value.raw
    value = flat(value)
    try:
        return str(_whole(value)).encode("utf-8", "surrogatepass")
    except ValueError:
        return type(value).__name__.encode()
