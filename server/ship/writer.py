"""A finished run's model that continues texts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ...common.data.chat_template import ChatTemplate, chat_template
from ...common.errors import DataError
from ...common.types import Conversation, Reads, Rows
from .finished import FinishedRun, NextLogits

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

    def __init__(self, run: FinishedRun, tokens: int = 64, module: nn.Module | None = None) -> None:
        """module: the run's merged model, where it was made already."""
        self.task = run.config.model.task
        self.labels: list[str] = []
        self.scale: tuple[float, float] | None = None
        self._model: Any = run.classifier() if module is None else module
        self.module: nn.Module = NextLogits(self._model)
        self.tokenizer, self.pad = run.tokenizer, run.model.pad
        data = run.config.data
        self._chat = None if data.messages is None else chat_template(self.tokenizer, data.template)
        positions: int = getattr(self._model.config, "max_position_embeddings", None) or 4 * tokens
        self.tokens = min(tokens, positions // 2)
        self._longest = min(run.config.model.max_length, positions - self.tokens)
        self.positions: int | None = run.model.positions
        """tokens of a prompt and its continuation together; None: no bound is stated"""

    @torch.no_grad()
    def answers(self, rows: Rows) -> list[dict[str, Any]]:
        """For each row: continuation. A long text loses its beginning, as in training."""
        return [{"continuation": self._continued(text)} for text in rows.text]

    def _continued(self, text: str) -> str:
        ids = self._asked(text)[:, -self._longest :]  # (1, T)
        return self.write(ids, self.tokens).text if ids.shape[1] else ""

    def tell(self, text: str, told: Told) -> None:
        """The same continuation as `answers` gives, in parts."""
        ids = self._asked(text)[:, -self._longest :]  # (1, T)
        if ids.shape[1]:
            self.write(ids, self.tokens, told=told)

    @torch.no_grad()
    def write(self, ids: torch.Tensor, tokens: int, temperature: float = 0.0, told: Told | None = None) -> Written:
        """Continues (1, T) tokens, T > 0, by at most `tokens`. temperature: 0 for the likeliest token each time, or of
        the distribution that tokens are drawn from."""
        end = self.tokenizer.eos_token_id
        made = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            **({"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}),
            pad_token_id=0 if end is None else end,
            streamer=None if told is None else _Telling(self.tokenizer, told),
            **self.stops(),
        )[0, ids.shape[1] :]
        ends = {"eos_token_id": self._model.generation_config.eos_token_id, **self.stops()}["eos_token_id"]
        ended = len(made) > 0 and int(made[-1]) in (ends if isinstance(ends, list) else [ends])
        text = str(self.tokenizer.decode(made, skip_special_tokens=True))
        return Written(text, ids.shape[1], len(made), ended)

    def prompt(self, turns: Conversation) -> torch.Tensor:
        """(1, T) tokens of a conversation whose answer is asked for. A model that learned texts reads one message of a
        user as the text. Raises DataError, one line, for what the model does not take."""
        if self._chat is None:
            if [role for role, _ in turns] != ["user"]:
                raise DataError("this model learned texts, not conversations; give one message, of role 'user'")
            return self._asked(turns[0][1])
        try:
            return self._rendered(self._chat, turns)
        except Exception:  # a template is somebody's program, and its failures may quote the messages
            raise DataError("the model's chat template does not take these roles, or their order") from None

    def stops(self) -> dict[str, list[int]]:
        """Of conversations, the token that ends a turn beside those that end a text."""
        if self._chat is None or not self._chat.ending:
            return {}
        known = self._model.generation_config.eos_token_id
        ends: list[int] = [known] if isinstance(known, int) else list(known or ())
        return {"eos_token_id": [*ends, self.tokenizer.get_vocab()[self._chat.ending]]}

    def _asked(self, text: str) -> torch.Tensor:
        """(1, T) tokens of what is to be continued."""
        if self._chat is None:
            return self.tokenizer(text, return_tensors="pt")["input_ids"]
        return self._rendered(self._chat, (("user", text),))

    def _rendered(self, chat: ChatTemplate, turns: Conversation) -> torch.Tensor:
        """(1, T)."""
        header = chat.header if chat.header.strip() else ""  # a blank is a part of the first word's token
        asked = chat.render(turns, asks=True) + header
        return self.tokenizer(asked, add_special_tokens=False, return_tensors="pt")["input_ids"]

    def as_read(self, text: str) -> str:
        return text

    def encoded(self, text: str) -> tuple[list[int], list[int | None], list[tuple[int, int]]]:
        """Of one text: token ids, the number of each one's word, and its letters; see `goals.Asked`."""
        found = self.tokenizer(text, return_offsets_mapping=True)
        ids, numbers, spans = found["input_ids"], found.word_ids(), found["offset_mapping"]
        return ids[-self._longest :], numbers[-self._longest :], spans[-self._longest :]


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
        if not text.endswith("\ufffd"):
            self._tell(text)

    def end(self) -> None:
        self._tell(str(self._tokenizer.decode(self._tokens or [], skip_special_tokens=True)))

    def _tell(self, text: str) -> None:
        if len(text) > len(self._said) and text.startswith(self._said):
            self._told(text[len(self._said) :])
            self._said = text
