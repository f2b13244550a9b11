"""A finished `causal-lm` run's model, which continues texts."""

from typing import Any

import torch

from ...common.types import Reads, Rows
from .finished import FinishedRun

TASK = "causal-lm"


class Writer:
    """Continues each text with its likeliest next tokens (greedy), until the end token or `tokens` of them; fewer where
    the backbone has positions for fewer than twice as many."""

    task, labels, form = TASK, [], None
    reads = Reads(label=None)

    def __init__(self, run: FinishedRun, tokens: int = 64) -> None:
        self.module = run.classifier()
        self.tokenizer = run.tokenizer
        positions: int = getattr(self.module.config, "max_position_embeddings", None) or 4 * tokens
        self.tokens = min(tokens, positions // 2)
        self._longest = min(run.config.model.max_length, positions - self.tokens)

    @torch.no_grad()
    def answers(self, rows: Rows) -> list[dict[str, Any]]:
        """For each row: continuation. A long text loses its beginning, as in training."""
        return [{"continuation": self._continued(text)} for text in rows.text]

    def _continued(self, text: str) -> str:
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"][:, -self._longest :]  # (1, T)
        if not ids.shape[1]:
            return ""
        end = self.tokenizer.eos_token_id
        written = self.module.generate(  # pyright: ignore[reportCallIssue]  # of transformers
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.tokens,
            do_sample=False,
            pad_token_id=0 if end is None else end,
        )
        return str(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
