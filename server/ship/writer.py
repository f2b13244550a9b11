"""A finished run's model that continues texts."""

from typing import Any

import torch
from torch import nn

from ...common.data.chat_template import chat_template
from ...common.types import Reads, Rows
from .finished import FinishedRun, NextLogits


class Writer:
    """Continues each text with its likeliest next tokens (greedy), until the end token or `tokens` of them; fewer where
    the backbone has positions for fewer than twice as many. Of a model that learned conversations a text is what a user
    says, and its continuation the answer."""

    form = None
    reads = Reads(label=None)

    def __init__(self, run: FinishedRun, tokens: int = 64) -> None:
        self.task = run.config.model.task
        self.labels: list[str] = []
        self.scale: tuple[float, float] | None = None
        self._model: Any = run.classifier()
        self.module: nn.Module = NextLogits(self._model)
        self.tokenizer, self.pad = run.tokenizer, run.model.pad
        data = run.config.data
        self._chat = None if data.messages is None else chat_template(self.tokenizer, data.template)
        positions: int = getattr(self._model.config, "max_position_embeddings", None) or 4 * tokens
        self.tokens = min(tokens, positions // 2)
        self._longest = min(run.config.model.max_length, positions - self.tokens)

    @torch.no_grad()
    def answers(self, rows: Rows) -> list[dict[str, Any]]:
        """For each row: continuation. A long text loses its beginning, as in training."""
        return [{"continuation": self._continued(text)} for text in rows.text]

    def _continued(self, text: str) -> str:
        ids = self._asked(text)[:, -self._longest :]  # (1, T)
        if not ids.shape[1]:
            return ""
        end = self.tokenizer.eos_token_id
        written = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.tokens,
            do_sample=False,
            pad_token_id=0 if end is None else end,
            **self._stops(),
        )
        return str(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))

    def _stops(self) -> dict[str, list[int]]:
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
        header = self._chat.header if self._chat.header.strip() else ""  # a blank is a part of the first word's token
        asked = self._chat.render((("user", text),), asks=True) + header
        return self.tokenizer(asked, add_special_tokens=False, return_tensors="pt")["input_ids"]

    def as_read(self, text: str) -> str:
        return text

    def encoded(self, text: str) -> tuple[list[int], list[int | None], list[tuple[int, int]]]:
        """Of one text: token ids, the number of each one's word, and its letters; see `goals.Asked`."""
        found = self.tokenizer(text, return_offsets_mapping=True)
        ids, numbers, spans = found["input_ids"], found.word_ids(), found["offset_mapping"]
        return ids[-self._longest :], numbers[-self._longest :], spans[-self._longest :]
