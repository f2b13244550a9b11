"""A finished run's model as one plain module: LoRA merged into the backbone in float32, no PEFT left."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ...common.config.run import RunConfig, load
from ...common.data.sources import shuffled_limit
from ...common.data.spelling import Spelling
from ...common.data.words import with_blanks, word_numbers
from ...common.errors import ConfigError
from ...common.model.adapter import plain, read_arrays
from ...common.model.loading import FineTuneModel, model_of
from ...common.run_folder import CONFIG
from ...common.tasks import load_task, tasks_where
from ...common.types import DEFAULT_TASK, Adapter, Reads, Rows
from ..report import read_report
from .runtime import Answering, padded


def exported() -> list[str]:
    """Tasks whose models give logits, and so become variants."""
    return tasks_where(lambda task: task.EXPORT == "logits")


def exported_texts() -> list[str]:
    """Those of text alone with one answer a text or word, whose models can be cut, explained and taught to students."""
    return tasks_where(lambda task: task.EXPORT == "logits" and not task.READS.images and task.READS.label != "classes")


def writers() -> list[str]:
    """Tasks whose models continue texts."""
    return tasks_where(lambda task: task.EXPORT == "text")


class FinishedRun:
    """A run whose model can be used."""

    def __init__(self, folder: Path, *tasks: str, two_texts: bool = False) -> None:
        """tasks: those that are wanted; none: one class for a text. two_texts: whether records may have a second one.
        Raises ConfigError for a folder without a finished run, or of another kind."""
        wanted = tasks or tasks_where(lambda task: Reads() == task.READS)
        self.folder = folder
        self.report: dict[str, Any] = read_report(folder)
        self.config: RunConfig = _for_use(load(folder / CONFIG))
        if self.config.model.task not in wanted:
            allowed = ", ".join(f"'{task}'" for task in wanted)
            raise ConfigError(f"{folder}: a run of task '{self.config.model.task}'; this is for {allowed}")
        if self.config.data.text_pair is not None and not two_texts:
            raise ConfigError(
                f"{folder}: a run on two texts a record; this is for models of one; see predict and export"
            )
        self.adapter: Adapter = read_arrays(folder / "adapter")
        self.model: FineTuneModel = model_of(self.config)

    @property
    def labels(self) -> list[str]:
        return list(self.config.data.labels or [])

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    def rows(self, limit: int | None = None) -> Rows:
        """Of the public test set; the same ones each time."""
        rows = self.model.rows(self.config.data.test, self.config.data)
        return rows if limit is None else shuffled_limit(rows, limit, self.config.run.seed)

    def classifier(self) -> nn.Module:
        """A copy of its own, on the CPU."""
        return plain(self.model, self.adapter).cpu().eval()

    def merged(self) -> "TorchModel":
        """The same, with what it takes to ask it."""
        model, config = self.model, self.config
        form = model.image
        return TorchModel(
            self.classifier(),
            model.reader,
            config.model.max_length,
            self.labels,
            model.pad,
            config.model.task,
            None if form is None else (form.channels, form.height, form.width),
            config.data.scale,
            model.spelling,
            model.two_texts,
            model.segments,
        )


class Logits(nn.Module):
    """A classifier that takes arrays and returns logits alone: what is exported, explained and distilled."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T), (B, T) → (B, K), or (B, T, K) for tags."""
        return self.classifier(input_ids=input_ids, attention_mask=attention_mask).logits


class TwoTextLogits(Logits):
    """Of two texts that are told apart."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """(B, T) each → (B, K)."""
        return self.classifier(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits


class NextLogits(Logits):
    """Of the token that comes next."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T), (B, T), all of one length → (B, V)."""
        return self.classifier(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=1).logits[:, -1]


class ImageLogits(Logits):
    """The same for images."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, C, H, W), 0 to 255 → (B, K)."""
        return self.classifier(pixel_values=pixel_values).logits


class ImageTextLogits(Logits):
    """The same for both."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """(B, T), (B, T), (B, C, H, W) → (B, K)."""
        return self.classifier(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values).logits


_MODULES = {(True, False): Logits, (False, True): ImageLogits, (True, True): ImageTextLogits}
"""by whether a task reads text, and images"""


class TorchModel(Answering):
    """Rows → logits by torch."""

    def __init__(
        self,
        classifier: nn.Module,
        reader: PreTrainedTokenizerBase | None,
        max_length: int,
        labels: list[str],
        pad: int,
        task: str = DEFAULT_TASK,
        size: tuple[int, int, int] | None = None,
        scale: tuple[float, float] | None = None,
        spelling: Spelling | None = None,
        two_texts: bool = False,
        segments: bool = False,
    ) -> None:
        self.task, self.labels, self.pad, self.size, self.scale = task, labels, pad, size, scale
        self.reads = load_task(task).READS
        kind: type[Logits] = TwoTextLogits if segments else _MODULES[self.reads.text, self.reads.images]
        self.module: nn.Module = kind(classifier).eval()
        self.reader, self.spelling = reader, spelling
        self.two_texts, self.segments = two_texts, segments
        self.max_length = max_length

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises ConfigError for a model of images alone."""
        if self.reader is None:
            raise ConfigError("a model that reads images alone has no tokenizer")
        return self.reader

    def copy(self) -> "TorchModel":
        classifier = copy.deepcopy(self.module.get_submodule("classifier"))
        asked = self.reader, self.max_length, self.labels, self.pad, self.task, self.size, self.scale, self.spelling
        return TorchModel(classifier, *asked)

    def pieces(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int | None]]]:
        tags, given = self.reads.label == "tags", self.given(texts)
        found = self.tokenizer(
            given, truncation=True, max_length=self.max_length, padding=False, return_offsets_mapping=tags
        )
        return found["input_ids"], list(map(word_numbers, found["offset_mapping"], given)) if tags else []

    def joined(self, texts: Sequence[str], pair: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        both = self.given(texts), self.given(pair)
        found = self.tokenizer(*both, truncation=True, max_length=self.max_length, padding=False)
        return found["input_ids"], found["token_type_ids"] if self.segments else []

    def encoded(self, text: str) -> tuple[list[int], list[int | None], list[tuple[int, int]]]:
        """Of one text as read: token ids, the number of each one's word, and its letters; see `goals.Asked`."""
        tags = self.reads.label == "tags"
        text = with_blanks(text) if tags else text
        found = self.tokenizer(text, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        spans = found["offset_mapping"]
        return found["input_ids"], word_numbers(spans, text) if tags else found.word_ids(), spans

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.pieces(texts)[0]

    def batch(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) tokens and mask."""
        tokens, mask = padded(ids, self.pad)
        return torch.from_numpy(tokens), torch.from_numpy(mask)

    @torch.no_grad()
    def run(self, inputs: list[np.ndarray]) -> np.ndarray:
        return self.module(*map(torch.from_numpy, inputs)).numpy()


def _for_use(config: RunConfig) -> RunConfig:
    """As variants and answers are made of it: few bits are for training, and bfloat16 for that and for models that
    write text."""
    whole = {"weights": "full"} | ({} if load_task(config.model.task).EXPORT == "text" else {"dtype": "float32"})
    return config.model_copy(update={"model": config.model.model_copy(update=whole)})
