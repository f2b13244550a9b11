"""A finished run's model as one plain module: LoRA merged into the backbone in float32, no PEFT left."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from ...common.config import RunConfig, load
from ...common.data import shuffled_limit
from ...common.errors import ConfigError
from ...common.models import FineTuneModel, model_of, plain
from ...common.run_folder import CONFIG
from ...common.types import Adapter, Rows
from ..report import read_report
from .runtime import by_length, padded


class FinishedRun:
    """A run of a task that gives one class for a whole text, or for a picture."""

    def __init__(self, folder: Path, task: str = "sequence-classification") -> None:
        """Raises ConfigError for a folder without a finished run, or of another task."""
        self.folder = folder
        self.report: dict[str, Any] = read_report(folder)
        self.config: RunConfig = load(folder / CONFIG)
        self.model: FineTuneModel = model_of(self.config)
        if self.config.model.task != task:
            raise ConfigError(f"{folder}: a run of task '{self.config.model.task}'; this is for '{task}'")
        self.adapter: Adapter = load_file(folder / "adapter" / "adapter_model.safetensors")

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
        """The same, for texts."""
        return TorchModel(self.classifier(), self.tokenizer, self.config.model.max_length, self.labels, self.model.pad)


class Logits(nn.Module):
    """A classifier that takes ids and mask and returns logits alone: what is exported, explained and distilled."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T), (B, T) → (B, K)."""
        return self.classifier(input_ids=input_ids, attention_mask=attention_mask).logits


class TorchModel:
    """Texts → logits by torch."""

    def __init__(
        self,
        classifier: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        labels: list[str],
        pad: int,
    ) -> None:
        self.module = Logits(classifier).eval()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.labels = labels
        self.pad = pad

    def copy(self) -> "TorchModel":
        classifier = copy.deepcopy(self.module.classifier)
        return TorchModel(classifier, self.tokenizer, self.max_length, self.labels, self.pad)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_length, padding=False)["input_ids"]

    def batch(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) tokens and mask."""
        tokens, mask = padded(ids, self.pad)
        return torch.from_numpy(tokens), torch.from_numpy(mask)

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """(N, K) float32, batched by length."""
        return by_length(self.ids(texts), lambda part: self.module(*self.batch(part)).numpy(), len(self.labels))
