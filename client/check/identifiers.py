"""Personal details by pattern: addresses, numbers and dates that look like somebody's.

A pattern knows no names, no nicknames and no rare disease; that it finds nothing does not make a text anonymous.
"""

import re
from collections.abc import Callable


def _luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812)."""
    numbers = [int(d) for d in reversed(re.sub(r"\D", "", digits))]
    total = sum(d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(numbers))
    return 13 <= len(numbers) <= 19 and total % 10 == 0


def _iban(text: str) -> bool:
    """ISO 13616: the number modulo 97 is 1."""
    packed = re.sub(r"\s", "", text).upper()
    moved = packed[4:] + packed[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


PATTERNS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "e-mail address": (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), lambda _: True),
    "payment card": (re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), _luhn),
    "IBAN": (re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?\b"), _iban),
    "phone number": (
        re.compile(
            r"(?<![\w.])(?<!\d[ -])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?"
            r"\d{3,4}[ .-]\d{3,4}(?:[ .-]\d{2,4})?(?![\w.])(?![ -]\d)"
        ),
        lambda text: len(re.sub(r"\D", "", text)) >= 9,
    ),
    "US social security number": (re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"), lambda _: True),
    "IP address": (
        re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"),
        lambda text: all(int(part) < 256 for part in text.split(".")),
    ),
    "date of a day": (
        re.compile(r"\b(?:\d{1,2}[./]\d{1,2}[./](?:19|20)\d{2}|(?:19|20)\d{2}-\d{2}-\d{2})\b"),
        lambda _: True,
    ),
    "user name": (re.compile(r"(?<![\w@])@\w{3,}"), lambda _: True),
}


def details(text: str) -> list[str]:
    """The kinds of personal details in a text."""
    return [
        kind
        for kind, (pattern, holds) in PATTERNS.items()
        if any(holds(found.group()) for found in pattern.finditer(text))
    ]


def masked(text: str) -> str:
    """The text with what the patterns find replaced by its kind."""
    for kind, (pattern, holds) in PATTERNS.items():
        text = pattern.sub(
            lambda found, kind=kind, holds=holds: f"[{kind}]" if holds(found.group()) else found.group(), text
        )
    return text
