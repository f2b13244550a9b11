"""A value of the column `data.messages` → a conversation.

| where | a value |
|---|---|
| jsonl, parquet, hub | a list of `{"role": …, "content": …}`, or the two lists of a hub's `Sequence`; or JSON text |
| csv, SQL | JSON text |

Other keys of a message are not read. A row whose conversation cannot be used is a problem of that row alone.
"""

import json
from collections.abc import Iterator

from ..types import Conversation, Message
from .values import EMPTY, UnreadableError, as_bytes, as_text

ROLES = ("system", "user", "assistant", "tool")
_SPOKEN = ("user", "assistant")
"""roles that must say something: an empty instruction or answer of a tool is one, too"""
_EXPECTED = 'expected a list of {"role": …, "content": …}'


def conversation(value: object) -> Conversation:
    """Raises UnreadableError: what is wrong with the value and what to do, without anything of it."""
    turns = tuple(_message(number, one) for number, one in enumerate(_listed(value), start=1))
    if not any(role == "assistant" for role, _ in turns):
        raise UnreadableError("no turn of the assistant, so there is nothing to learn; drop the row")
    return turns


def transcript(turns: Conversation) -> str:
    """By which keys and digests know a conversation: another one for other messages (control characters, which blanks
    are to `record_keys.plain`, stand before roles and contents)."""
    return "".join(f"\x1e{role}\x1f{content}" for role, content in turns)


def as_known(value: object) -> bytes:
    """Of any value but None, for digests: the same bytes for the same conversation, whatever the kind of source."""
    try:
        return transcript(conversation(value)).encode("utf-8", "surrogatepass")
    except UnreadableError:
        return as_bytes(value)


def _listed(value: object) -> list[object]:
    """The messages of a value, one or more."""
    if not isinstance(value, list | tuple | dict):
        text = as_text(value)
        if text is None or not text.strip():
            raise UnreadableError(EMPTY)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise UnreadableError(f"no JSON; {_EXPECTED}") from None
    if isinstance(value, dict):
        value = list(_together(value))
    if not isinstance(value, list | tuple):
        raise UnreadableError(f"no list; {_EXPECTED}")
    if not value:
        raise UnreadableError("a conversation without messages; fill it or drop the row")
    return list(value)


def _together(lists: dict) -> Iterator[dict[str, object]]:
    """Messages of their roles and their contents, as a hub's `Sequence` of messages comes."""
    roles, contents = lists.get("role"), lists.get("content")
    if not (isinstance(roles, list) and isinstance(contents, list) and len(roles) == len(contents)):
        raise UnreadableError(f"no list; {_EXPECTED}")
    for role, content in zip(roles, contents, strict=True):
        yield {"role": role, "content": content}


def _message(number: int, value: object) -> Message:
    if not isinstance(value, dict):
        raise UnreadableError(f"message {number} is no object; {_EXPECTED}")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise UnreadableError(f"message {number} has an unknown role; allowed: {', '.join(ROLES)}; correct the row")
    if not isinstance(content, str) or (role in _SPOKEN and not content.strip()):
        raise UnreadableError(f"message {number} has no content; expected text; fill it or drop the row")
    return role, as_text(content) or ""
