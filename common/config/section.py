"""TOML in, tables that are checked, and one line for what is wrong with them."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

import tomli_w
from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo, field_validator

from ..errors import ConfigError, first_line

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


def _at_home(text: str) -> str:
    """~ is the user's folder here, too: no shell has read a file of TOML. Raises ValueError."""
    if "\0" in text:
        raise ValueError("a path without zero bytes")
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


PathText = Annotated[str, AfterValidator(_at_home)]
"""a path, or a name that may be one"""

RENAMED = {
    "attack.liars": "attack.byzantine",
    "distill.questions": "distill.queries",
    "model.lora.whole": "model.lora.modules_to_save",
    "server.liars": "server.byzantine",
    "server.memory": "server.momentum",
    "training.physical_batch": "training.batch_tokens (of a step in mode none: training.batch_size)",
    "server.wire": "server.upload_dtype",
}
"""keys of earlier versions → what they are called now"""


_SHOWN = 120
"""characters of a value that a message shows"""
_KIND = re.compile(r"(literal|constrained-|tuple)\[|constrained-")
"""parts by which pydantic tells the kinds apart that one key may have"""


class Section(BaseModel, frozen=True, extra="forbid"):
    """A table of a file, or a whole file; unknown keys are errors."""

    OVERRIDES: ClassVar[str] = " or with --set {key}=VALUE"
    """where a key may be set beside the file, as messages say it"""

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: object, info: ValidationInfo) -> object:
        """pydantic takes true for 1, and whole numbers of any length, which neither Flower nor numpy can hold."""
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field is not None and not _takes_truth(field.annotation):
            raise ValueError("neither true nor false")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("a whole number of 64 bits")
        return value

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def parse(cls, content: dict[str, Any], source: str) -> Self:
        """Checks a nested dictionary. Raises ConfigError, one line that names `source`, key, value and remedy."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ConfigError(f"{source}: {_one_line(cls, error)}") from None


def _takes_truth(annotation: Any) -> bool:
    return annotation in (bool, Any) or True in get_args(annotation) or any(map(_takes_truth, get_args(annotation)))


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Raises ConfigError; `what` ends the sentence when there is no such file."""
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"), str(path))  # with the mark of some editors
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {what}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Raises ConfigError that names `source`."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError is also a number of thousands of digits
        raise ConfigError(f"{source}: not valid TOML: {first_line(error)}; correct it there") from None


def override(content: dict[str, Any], assignments: Iterable[str]) -> None:
    """Applies `key=value` texts to nested content. Raises ConfigError."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set: received '{assignment}'; allowed: KEY=VALUE, e.g. privacy.epsilon=3")
        assign(content, key.strip(), _value(text.strip()))


def assignment(key: str, value: str | list[str]) -> str:
    """KEY=VALUE of texts as they are: a folder that is called 2024 is no number."""
    return f"{key}={as_toml(value)}"


def as_toml(value: str | list[str]) -> str:
    """As a file of TOML has it, in quotes."""
    return tomli_w.dumps({"_": value}).removeprefix("_ = ").rstrip("\n")


def _value(text: str) -> Any:
    """A TOML value, or else a bare string; nothing unsets the key."""
    if not text:
        return None
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def assign(nested: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets a dotted key in nested content; None unsets it. Raises ConfigError."""
    *sections, last = dotted.split(".")
    for name in sections:
        nested = nested.setdefault(name, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"--set: {dotted}: '{name}' is a value, not a section; allowed: section.key=value")
    if value is None:
        nested.pop(last, None)
    else:
        nested[last] = value


def _one_line(model: type[BaseModel], error: ValidationError) -> str:
    """The first finding as: key: what came; what is allowed; what to do."""
    found = sorted(error.errors(include_url=False), key=lambda one: _key(one["loc"]) not in RENAMED)
    first, *others = found
    more = f" (and {len(others)} more)" if others else ""
    key = _key(first["loc"])
    beside = model.OVERRIDES.format(key=key) if issubclass(model, Section) else ""
    if key in RENAMED and first["type"] == "extra_forbidden":
        return f"{key}: renamed; use {RENAMED[key]}{more}"
    if not key:  # a check that spans sections says it all itself
        return first["msg"].removeprefix("Value error, ") + more
    if first["type"] == "extra_forbidden":
        allowed = _keys_beside(model, first["loc"])
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        remedy = f"did you mean '{close[0]}'?" if close else "remove it"
        return f"{key}: unknown key; allowed here: {', '.join(allowed)}; {remedy}{more}"
    if first["type"] == "missing":
        return f"{key}: nothing received; it is required; set it in the file{beside}{more}"
    if first["type"] == "string_type" and isinstance(first["input"], int | float | date | time):
        quoted = as_toml(_shown(first["input"]))
        return f"{key}: received {_shown(first['input'])}; allowed: a text; write it in quotes: {quoted}{more}"
    ways = [one for one in found if _key(one["loc"]) == key]  # of a key that takes several kinds, one each
    allowed = " or ".join(one["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for one in ways)
    more = f" (and {len(found) - len(ways)} more)" if len(found) > len(ways) else ""
    shown = _shown(first["input"])
    return f"{key}: received {shown}; allowed: {allowed}; change it there{beside}{more}"


def _shown(value: object) -> str:
    """As Python writes it (dates as TOML does), cut where it is long."""
    try:
        text = str(value) if isinstance(value, date | time) else repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _key(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc if not _KIND.match(str(part)))


def _keys_beside(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    annotation: Any = model
    for name in loc[:-1]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(name)].annotation
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
