"""A finished run's model that continues texts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ...common.data.chat_template import ChatTemplate
from ...common.errors import DataError
from ...common.model.generation import Generator
from ...common.tasks import beginnings, marks_after
from ...common.types import Conversation, Reads, Rows
from .finished import FinishedRun, NextLogits

CONTINUED = 64
"""tokens that a text is continued by, at most, unless somebody says otherwise"""
Told = Callable[[str], None]
"""gets each part of a text as it is written; what it raises ends the writing"""


@dataclass(frozen=True)
class Written:
    """A continuation."""

    text: str
    prompt_tokens: int
    tokens: int
    ended: bool
    """by a token that ends texts or turns, rather than by the number of tokens"""


class Writer:
    """Continues each text with its likeliest next tokens (greedy), until the end token or `tokens` of them; fewer where
    the backbone has positions for fewer than twice as many. Of a model that learned conversations a text is what a user
    says, and its continuation the answer."""

    form = None
    reads = Reads(label=None)
    two_texts = False

    def __init__(self, run: FinishedRun, tokens: int = CONTINUED) -> None:
        self.task = run.config.model.task
        self.labels: list[str] = []
        self.scale: tuple[float, float] | None = None
        model = run.classifier()
        self.module: nn.Module = NextLogits(model)
        self.tokenizer, self.pad = run.tokenizer, run.model.pad
        read = run.config.model.max_length
        self.generator = Generator.of(model, run.tokenizer, run.config.data, read, tokens)
        self.tokens = self.generator.tokens
        self.positions: int | None = run.model.positions
        """tokens of a prompt and its continuation together; None: no bound is stated"""

    def answers(self, rows: Rows) -> list[dict[str, Any]]:
        """For each row: continuation. A long text loses its beginning, as in training."""
        return [{"continuation": text} for text in self.generator.written([self._asked(text) for text in rows.text])]

    def tell(self, text: str, told: Told) -> None:
        """The same continuation as `answers` gives, in parts."""
        ids = self._asked(text)[-self.generator.longest :]
        if ids:
            self.write(ids, self.tokens, told=told)

    def write(self, prompt: list[int], tokens: int, temperature: float = 0.0, told: Told | None = None) -> Written:
        """Continues (T,) tokens, T > 0, by at most `tokens`. temperature: 0 for the likeliest token each time, or of
        the distribution that tokens are drawn from."""
        ids, streamer = np.array([prompt], dtype=np.int64), None if told is None else _Telling(self.tokenizer, told)
        (made,) = self.generator.tokens_after(ids, np.ones_like(ids), tokens, temperature, streamer)
        ended = len(made) > 0 and int(made[-1]) in self.generator.ends
        return Written(str(self.tokenizer.decode(made, skip_special_tokens=True)), len(prompt), len(made), ended)

    def prompt(self, turns: Conversation) -> list[int]:
        """(T,) tokens of a conversation whose answer is asked for. A model that learned texts reads one message of a
        user as the text. Raises DataError, one line, for what the model does not take."""
        if self.generator.chat is None:
            if [role for role, _ in turns] != ["user"]:
                raise DataError("this model learned texts, not conversations; give one message, of role 'user'")
            return self._asked(turns[0][1])
        try:
            return self._rendered(self.generator.chat, turns)
        except Exception:  # a template is somebody's program, and its failures may quote the messages
            raise DataError("the model's chat template does not take these roles, or their order") from None

    def _asked(self, text: str) -> list[int]:
        """(T,) tokens of what is to be continued."""
        chat = self.generator.chat
        return beginnings([text], self.tokenizer)[0] if chat is None else self._rendered(chat, (("user", text),))

    def _rendered(self, chat: ChatTemplate, turns: Conversation) -> list[int]:
        header = chat.header if chat.header.strip() else ""  # a blank is a part of the first word's token
        asked = chat.render(turns, asks=True) + header
        return self.tokenizer(asked, add_special_tokens=False)["input_ids"]

    def as_read(self, text: str) -> str:
        return text

    def encoded(self, text: str) -> tuple[list[int], list[int | None], list[tuple[int, int]]]:
        """Of one text: token ids, the number of each one's word, and its letters; see `goals.Asked`."""
        found = self.tokenizer(text, return_offsets_mapping=True)
        ids, numbers, spans = found["input_ids"], found.word_ids(), found["offset_mapping"]
        count = len(ids) - marks_after(self.tokenizer)
        kept = slice(max(0, count - self.generator.longest), count)
        return ids[kept], numbers[kept], spans[kept]


class _Telling(BaseStreamer):
    """Tells a text's parts while its tokens come, a character only when all of its bytes are there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, told: Told) -> None:
        self._tokenizer, self._told = tokenizer, told
        self._tokens: list[int] | None = None  # the first that comes is the prompt
        self._said = ""

    def put(self, value: torch.Tensor) -> None:
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += value.tolist()
        text = str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
        self._tell(self._said if text.endswith("\ufffd") else text)

    def end(self) -> None:
        self._tell(str(self._tokenizer.decode(self._tokens or [], skip_special_tokens=True)))

    def _tell(self, text: str) -> None:
        """Something with every token, be it nothing: whoever listens may want no more."""
        more = text[len(self._said) :] if text.startswith(self._said) else ""
        self._told(more)
        self._said += more
