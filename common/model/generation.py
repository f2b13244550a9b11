"""What a language model writes after prompts: in batches, padded in front, with the keys and values of earlier tokens
kept (transformers' `generate`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..config.tables import DataSection
from ..data.chat_template import ChatTemplate, chat_template
from .limits import positions
from .loading import pad_of

TOKENS = 4096
"""of prompts, with what is written after them, that are in memory at once; one prompt may have more"""


@dataclass(frozen=True)
class Generator:
    """A model that is asked to go on; made by `of`."""

    module: Any
    """of transformers"""
    tokenizer: PreTrainedTokenizerBase
    chat: ChatTemplate | None
    """of a model that learned conversations"""
    tokens: int
    """that are written at most"""
    longest: int
    """tokens of a prompt that are read: its last ones"""
    temperature: float | None = None
    """tokens are drawn at it, by the seed; None: the likeliest one each time (greedy)"""
    seed: int = 0

    @classmethod
    def of(
        cls, module: Any, tokenizer: PreTrainedTokenizerBase, data: DataSection, max_length: int, tokens: int
    ) -> Self:
        """tokens: fewer are written where the backbone has positions for fewer than twice as many. Raises ModelError
        as `chat_template`."""
        most = positions(module) or max_length + tokens
        tokens = min(tokens, most // 2)
        chat = None if data.messages is None else chat_template(tokenizer, data.template)
        return cls(module, tokenizer, chat, tokens, min(max_length, most - tokens))

    def drawing(self, temperature: float | None, seed: int) -> Self:
        return replace(self, temperature=temperature, seed=seed)

    @property
    def ends(self) -> list[int]:
        """Tokens after which nothing more is written: those that end a text, and the one that ends a turn."""
        known = self.module.generation_config.eos_token_id
        found = [self.tokenizer.eos_token_id, *([known] if isinstance(known, int) else known or [])]
        if self.chat is not None and self.chat.ending:
            found.append(self.tokenizer.get_vocab()[self.chat.ending])
        return sorted({one for one in found if one is not None})

    @torch.no_grad()
    def written(
        self, prompts: Sequence[Sequence[int] | np.ndarray], progress: Callable[[int, int], None] | None = None
    ) -> list[str]:
        """What follows each prompt of tokens, in their order; nothing after an empty one. Greedily the same in any
        company, but for what rounding decides. progress: called with done, of how many."""
        asked = [np.asarray(prompt[-self.longest :], dtype=np.int64) for prompt in prompts]
        order = sorted((i for i, ids in enumerate(asked) if len(ids)), key=lambda i: len(asked[i]))
        found = [""] * len(asked)
        device = self.module.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            while order:
                rows = max(1, TOKENS // (len(asked[order[-1]]) + self.tokens))
                part, order = order[-rows:], order[:-rows]
                for i, text in zip(part, self._after([asked[i] for i in part]), strict=True):
                    found[i] = text
                if progress is not None:
                    progress(len(asked) - len(order), len(asked))
        return found

    def _after(self, prompts: list[np.ndarray]) -> list[str]:
        """Of one batch."""
        longest = max(map(len, prompts))
        ids = np.full((len(prompts), longest), pad_of(self.tokenizer), dtype=np.int64)  # (B, T)
        for row, prompt in zip(ids, prompts, strict=True):
            row[longest - len(prompt) :] = prompt
        mask = np.arange(longest)[None, :] >= longest - np.array([[len(prompt)] for prompt in prompts])
        return [self._text(row) for row in self.tokens_after(ids, mask, self.tokens, self.temperature)]

    @torch.no_grad()
    def tokens_after(
        self, ids: np.ndarray, mask: np.ndarray, tokens: int, temperature: float | None, streamer: Any = None
    ) -> np.ndarray:
        """(B, ≤ tokens) that follow prompts (B, T), padded in front. streamer: of transformers, of one prompt."""
        with _in_one_piece(self.module):
            written = self.module.generate(
                input_ids=torch.from_numpy(ids).to(self.module.device),
                attention_mask=torch.from_numpy(mask.astype(np.int64)).to(self.module.device),
                max_new_tokens=tokens,
                eos_token_id=self.ends or None,
                pad_token_id=pad_of(self.tokenizer),
                streamer=streamer,
                **choice(temperature),
            )
        return written[:, ids.shape[1] :].cpu().numpy()

    def _text(self, ids: np.ndarray) -> str:
        ended = np.isin(ids, self.ends)
        kept = ids[: ended.argmax()] if ended.any() else ids
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))


def choice(temperature: float | None) -> dict[str, Any]:
    """How `generate` chooses a token, whatever the backbone's own settings are: the likeliest one, or one drawn of the
    whole distribution at a temperature."""
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "remove_invalid_values": True}
    return {**(drawn if temperature else {"do_sample": False}), "repetition_penalty": 1.0}


@contextmanager
def _in_one_piece(module: Any) -> Iterator[None]:
    """Within, the output layer reads the last positions as an array of their own: for a slice of all positions torch
    copies a frozen layer's weights once for every row, which took Gemma's 262,144 words 2.6 s a row."""
    end = module.get_output_embeddings()
    hook = end.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()
