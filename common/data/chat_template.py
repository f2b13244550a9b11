"""Conversations → tokens, by a chat template, and which of the tokens are learned: what the assistant says, and the
token that ends it.

Which part of the text that is, a template tells in one of two ways. With `{% generation %}` blocks it says so itself.
Otherwise from prefixes: the text up to an assistant's turn, with the header that asks for one, and the text up to its
end must both be beginnings of the whole text; what lies between is the turn. A template for which they are not (it
rewrites earlier turns when more follow) is refused.

What is too long for `max_length`, by the record alone:

1. messages after the assistant's last turn are left out: nothing of them is learned, nor does it change what is;
2. the oldest exchanges (a user's message and all up to the next one) are left out until the rest fits, but not a system
   message at the beginning;
3. a single exchange that is still too long loses tokens as a prompt and its response do, see `shortened`.

A template that asks for the day gets always the same one: a record must not become another overnight.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import DataError, ModelError
from ..types import CHARACTERS, Conversation, Message, Rows

MESSAGES = 256
"""that are rendered at all, of as many characters as are read of any text: what a record costs must not grow with what
is cut off anyway"""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DAY = "{%- macro strftime_now(format) %}01 Jan 2025{% endmacro %}"
_QUESTION, _ANSWER = "qqone", "aatwo"
_PROBE: Conversation = (
    ("user", _QUESTION),
    ("assistant", _ANSWER),
    ("user", f"{_QUESTION}x"),
    ("assistant", f"{_ANSWER}x"),
)


class _NotAlignedError(Exception):
    """Prefixes of a conversation are no beginnings of its text."""


@dataclass(frozen=True)
class Encoded:
    """One conversation."""

    ids: list[int]
    """(T,) tokens"""
    learned: np.ndarray
    """(T,) bool: whether the loss counts a token"""
    cut: bool
    """whether something of it was left out for want of room"""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer with a template that was looked at; made by `chat_template`."""

    tokenizer: PreTrainedTokenizerBase
    source: str
    """Jinja"""
    marks: bool
    """whether it has generation blocks"""
    header: str = ""
    """what stands in a turn of the assistant before its content, and not in what asks for one"""
    ending: str = ""
    """the special token that ends a turn of the assistant"""
    trailer: str = ""
    """the special token that ends a whole text, and is not there when another message follows"""

    def render(self, turns: Conversation, *, asks: bool = False) -> str:
        """The text. asks: with the header that an answer follows. Raises what the template raises."""
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": asks}
        return str(self.tokenizer.apply_chat_template(_messages(turns), chat_template=self.source, **options))

    def tokens(self, turns: Conversation) -> tuple[list[int], np.ndarray]:
        """(T,) tokens, and (T,) bool: which of them are learned. Raises as `render`, and _NotAlignedError."""
        text, spans = self._marked(turns) if self.marks else self._between(turns)
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        where = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)  # (T, 2) characters
        learned = np.zeros(len(where), dtype=bool)
        for first, last in spans:
            learned |= (where[:, 1] > first) & (where[:, 0] < last)
        return found["input_ids"], learned

    def _marked(self, turns: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where its generation blocks are, each with the token that ends the turn."""
        given: dict[str, Any] = {"conversations": [_messages(turns)], "return_assistant_tokens_mask": True}
        given |= self.tokenizer.special_tokens_map
        found: Any = render_jinja_template(chat_template=self.source, **given)
        (text,), (blocks,) = found
        spans = []
        for first, last in blocks:
            if self.ending and text.startswith(self.ending, last):
                last += len(self.ending)
            spans.append((first, self._end(text[:last])))
        return text, spans

    def _between(self, turns: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The text, and what lies between its beginnings without and with each turn of the assistant."""
        text = self.render(turns)
        return text, [self.span(text, turns, place) for place, (role, _) in enumerate(turns) if role == "assistant"]

    def span(self, text: str, turns: Conversation, place: int) -> tuple[int, int]:
        """Of one turn of the assistant: where it begins and ends in the text of all. Raises _NotAlignedError."""
        before = self.render(turns[:place], asks=True) + self.header
        after = (text if place == len(turns) - 1 else self.render(turns[: place + 1])).removesuffix(self.trailer)
        if not (text.startswith(after) and after.startswith(before)):
            raise _NotAlignedError
        return len(before), self._end(after)

    def _end(self, text: str) -> int:
        """Where a turn ends that a text ends with: blanks after its last token begin the next one."""
        closed = self.ending and text.rstrip().endswith(self.ending)
        return len(text.rstrip()) if closed else len(text)

    def encode(self, turns: Conversation, max_length: int) -> Encoded:
        """Raises as `tokens`."""
        last = max(place for place, (role, _) in enumerate(turns) if role == "assistant")
        begin, exchanges = _exchanges(turns[: last + 1])
        kept = _affordable(exchanges, CHARACTERS * max_length)
        begin = tuple((role, content[-CHARACTERS * max_length :]) for role, content in begin)
        whole = begin + _flat(kept) == turns[: last + 1]

        def tokens(first: int) -> tuple[list[int], np.ndarray]:
            return self.tokens(begin + _flat(kept[first:]))

        first, (ids, learned) = _longest_that_fits(tokens, len(kept), max_length)
        found = shortened(ids, learned, max_length)
        return Encoded(found.ids, found.learned, found.cut or not whole or first > 0)


def _messages(turns: Conversation) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def shortened(ids: list[int], learned: np.ndarray, max_length: int) -> Encoded:
    """At most `max_length` tokens: what is before the first that is learned, the prompt, loses its beginning, so that
    half of the length stays for what follows, which loses its end."""
    prompt = int(np.argmax(learned)) if learned.any() else len(ids)
    answer = min(len(ids) - prompt, max(max_length // 2, max_length - prompt))
    kept = slice(max(0, prompt + answer - max_length), prompt + answer)
    return Encoded(ids[kept], learned[kept], len(ids) > max_length)


def _exchanges(turns: Conversation) -> tuple[Conversation, list[Conversation]]:
    """The system's message at the beginning, and what a user began each time."""
    first = int(turns[0][0] == "system")
    starts, answered = [first], False
    for place in range(first, len(turns)):
        if answered and turns[place][0] == "user":  # before an answer, as of a user who says something twice: the same
            starts.append(place)
            answered = False
        answered = answered or turns[place][0] == "assistant"
    return turns[:first], [turns[a:b] for a, b in pairwise([*starts, len(turns)])]


def _flat(parts: list[Conversation]) -> Conversation:
    return tuple(message for part in parts for message in part)


def _affordable(exchanges: list[Conversation], characters: int) -> list[Conversation]:
    """The last exchanges, of so many characters and of `MESSAGES` at most; of the very last one what there is room
    for."""
    kept: list[Conversation] = []
    left, messages = characters, MESSAGES
    for part in reversed(exchanges):
        left, messages = left - sum(len(content) for _, content in part), messages - len(part)
        if left < 0 or messages < 0:
            return kept or [_part(part, characters)]
        kept.insert(0, part)
    return kept


def _part(part: Conversation, characters: int) -> Conversation:
    """An exchange with the beginning of its last answer and the end of what is before it."""
    (role, answer), left = part[-1], characters
    before: list[Message] = []
    for other, content in reversed(part[-MESSAGES:-1]):
        size = min(left, len(content))
        before.insert(0, (other, content[len(content) - size :]))
        left -= size
    return (*before, (role, answer[:characters]))


def _longest_that_fits(
    tokens: Callable[[int], tuple[list[int], np.ndarray]], count: int, max_length: int
) -> tuple[int, tuple[list[int], np.ndarray]]:
    """The first of `count` exchanges from which on all fit, or the last one, and its tokens; by bisection, since fewer
    exchanges have fewer tokens."""
    found = tokens(0)
    if len(found[0]) <= max_length or count == 1:
        return 0, found
    low, high, found = 1, count - 1, tokens(count - 1)
    best = high
    while low < high and len(found[0]) <= max_length:
        middle = (low + high) // 2
        tried = tokens(middle)
        if len(tried[0]) <= max_length:
            high = best = middle
            found = tried
        else:
            low = middle + 1
    return best, found


def chat_template(tokenizer: PreTrainedTokenizerBase, given: str | None = None) -> ChatTemplate:
    """given: `data.template`; None: the tokenizer's own. Raises ModelError, in one line, where there is neither, or one
    that does not tell which tokens are the assistant's."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"data.messages: the tokenizer {type(tokenizer).__name__} does not tell where its tokens stand in a text; "
            "choose a backbone with a fast tokenizer (tokenizer.json)"
        )
    name = "data.template" if given else "model.backbone: its chat template"
    source = given or _own(tokenizer)
    if "strftime_now" in source:
        source = _DAY + source
    plain = ChatTemplate(tokenizer, source, marks=_GENERATION.search(source) is not None)
    try:
        return _examined(plain, name)
    except ModelError:
        raise
    except Exception as error:  # a template is somebody's program
        raise ModelError(
            f"{name}: cannot be rendered ({_said(error, source)}); correct it, or set another data.template"
        ) from None


def _own(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        raise ModelError(
            "data.messages: the tokenizer of model.backbone has no chat template; set data.template, or choose a "
            "backbone that was made for conversations"
        ) from None


def _examined(plain: ChatTemplate, name: str) -> ChatTemplate:
    """The template with the header and the ending of an assistant's turn, as a conversation of two exchanges shows."""
    text = plain.render(_PROBE)
    place = text.rfind(f"{_ANSWER}x")
    if place < 0 or _QUESTION not in text:
        raise ModelError(f"{name}: leaves out what a message says; it must write message['content'] of every role")
    ending = next(iter(_specials(plain.tokenizer, text[place:])), "")
    if plain.marks:
        return replace(plain, ending=ending)
    try:
        plain = replace(plain, trailer=_trailer(plain, text))
        headers = {_header(plain, text, place) for place in (1, 3)}
        examined = replace(plain, header=headers.pop(), ending=ending)
        if headers:
            raise _NotAlignedError
        examined.tokens(_PROBE)
    except _NotAlignedError:
        raise ModelError(
            f"{name}: the text of a conversation does not begin with the text of its first messages, so that nothing "
            "tells which tokens are the assistant's; put {% generation %} … {% endgeneration %} around them, or set "
            "another data.template"
        ) from None
    return examined


def _trailer(plain: ChatTemplate, text: str) -> str:
    """The special token that the text of the first exchange ends with, where without it that begins the whole text."""
    first = plain.render(_PROBE[:2])
    last = [token for token in _specials(plain.tokenizer, first) if first.endswith(token)]
    return last[0] if last and not text.startswith(first) and text.startswith(first.removesuffix(last[0])) else ""


def _header(plain: ChatTemplate, text: str, place: int) -> str:
    """What stands before the content of a turn and is not in the text that asks for one."""
    first, last = plain.span(text, _PROBE, place)
    found = text[first:last].find(_PROBE[place][1])
    if found < 0:
        raise _NotAlignedError
    return text[first : first + found]


def _specials(tokenizer: Any, text: str) -> list[str]:
    """The special tokens that stand in a text, in its order."""
    known = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    found = sorted((text.find(token), -len(token), token) for token in known if token.strip() and token in text)
    return [token for _, _, token in found]


def _said(error: Exception, source: str) -> str:
    """What a template says of a failure, where that is a text of its own and nothing that it was given."""
    said = " ".join(str(error).split()) if isinstance(error, TemplateError) else ""
    return said if said and said in " ".join(source.split()) else type(error).__name__


def encode_conversations(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Encoded]:
    """(N,) Each by itself. Raises ModelError as `chat_template`, DataError for a conversation that the template does
    not take: by its place, with nothing of what it holds."""
    template = chat_template(tokenizer, rows.template)
    return [_encoded(template, rows, place, turns, max_length) for place, turns in enumerate(rows.turns or [])]


def _encoded(template: ChatTemplate, rows: Rows, place: int, turns: Conversation, max_length: int) -> Encoded:
    try:
        encoded = template.encode(turns, max_length)
        if encoded.learned[1:].any():
            return encoded
        problem = "nothing is learned of it: model.max_length is too short, or the template marks nothing"
    except _NotAlignedError:
        problem = "the chat template rewrites an earlier turn of it, so that nothing tells which tokens are learned"
    except Exception as error:  # whatever it is, its text may quote the record
        problem = f"the chat template does not take its roles or their order ({_said(error, template.source)})"
    raise DataError(f"{rows.where(place)}: {problem}; correct the row, or set data.template")
