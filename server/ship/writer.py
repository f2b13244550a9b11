"""A finished run's model that continues texts."""

from typing import Any

from torch import nn

from ...common.model.generation import Generator
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
        model: Any = run.classifier()
        self.module: nn.Module = NextLogits(model)
        self.tokenizer, self.pad = run.tokenizer, run.model.pad
        self.generator = Generator.of(model, run.tokenizer, run.config.data, run.config.model.max_length, tokens)

    def answers(self, rows: Rows) -> list[dict[str, Any]]:
        """For each row: continuation. A long text loses its beginning, as in training."""
        return [{"continuation": text} for text in self.generator.written([self._asked(text) for text in rows.text])]

    def _asked(self, text: str) -> list[int]:
        """(T,) tokens of what is to be continued."""
        chat = self.generator.chat
        if chat is None:
            return self.tokenizer(text)["input_ids"]
        header = chat.header if chat.header.strip() else ""  # a blank is a part of the first word's token
        asked = chat.render((("user", text),), asks=True) + header
        return self.tokenizer(asked, add_special_tokens=False)["input_ids"]

    def as_read(self, text: str) -> str:
        return text

    def encoded(self, text: str) -> tuple[list[int], list[int | None], list[tuple[int, int]]]:
        """Of one text: token ids, the number of each one's word, and its letters; see `goals.Asked`."""
        found = self.tokenizer(text, return_offsets_mapping=True)
        ids, numbers, spans = found["input_ids"], found.word_ids(), found["offset_mapping"]
        kept = slice(-self.generator.longest, None)
        return ids[kept], numbers[kept], spans[kept]
