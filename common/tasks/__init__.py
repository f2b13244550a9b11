"""One file a task: what is built, how rows become tokens, the loss of one record, the metrics.

A task is a module here that offers the members of `Task`; its name in a configuration is the file's, with hyphens.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    BatchEncoding,
    PreTrainedModel,
)

from ..config.tables import ModelSection
from ..errors import ConfigError
from ..model.backbones import DEMO_VIT
from ..model.demo_vit import demo_vit
from ..model.weights import read_weights
from ..types import IGNORED, Metrics, Reads, Records, Rows

Export = Literal["logits", "text"] | None
"""what a finished model is asked for: logits of one pass, which a variant on onnxruntime gives, too; the text that
follows; None: nothing"""


class Main(NamedTuple):
    """The metric that a model is judged by."""

    name: str
    """in words"""
    key: str
    """in `Task.metrics`"""
    higher: bool = True
    """whether more of it is better"""


class Counted(NamedTuple):
    """What a site may tell of a held-out record in counts: a mean of values between 0 and a bound."""

    measure: Main
    most: float = 1.0
    """the bound; another than 1 is that of losses and errors, which `evaluation.bound` may change"""


ACCURACY, LOSS = Main("accuracy", "accuracy"), Main("loss", "loss", higher=False)
_UNREAD = ("pooler", "contact_head", "head")
"""what makes another answer of a backbone's last vectors: of a BERT, an ESM, a SigLIP tower"""
Batch = dict[str, torch.Tensor]
"""input_ids and attention_mask (B, T) of text, token_type_ids (B, T) of two that are told apart, pixel_values
(B, C, H, W) of images, or features (B, F) in place of these; targets (B,), (B, K) or (B, T), of pairs (B, 2, T) and
beta (B,); with class weights or label smoothing also class_shares (B, K) or (B, T, K), see `model.class_loss`."""
_ANSWERS = ("targets", "class_shares")
"""of a batch what no model reads"""


class Task(Protocol):
    """What a module of this package offers. The encoding is that of `transformers` tokenizers."""

    HEAD: list[str]
    """names of modules that are trained whole, beside LoRA; PEFT's modules_to_save"""
    CLASSES: bool
    """whether rows, or their words, carry one of a fixed set of classes"""
    VARIANTS: int
    """encodings of a record, of which a training step draws one; mostly 1"""
    READS: Reads
    """what of a row"""
    EXPORT: Export
    PIPELINE: str | None
    """of the hub, which `pipeline_tag` names; None: it has none for this"""
    MAIN: Main
    COUNTED: tuple[Counted, ...]
    """what sites count of held-out records, the first of them in front of others"""

    def build(self, path: str, model: ModelSection, classes: int) -> nn.Module:
        """The base model with its head.

        path, and `model.image_backbone` where there is one: local folders.
        """
        ...

    def encode(self, rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
        """Tokenises once; nothing is padded. tokenizer: None where no text is read. variant: below VARIANTS."""
        ...

    def targets(self, records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
        """What the loss compares with, for records padded to `length` tokens."""
        ...

    def record_losses(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """(B,) losses, each a function of its own record alone."""
        ...

    def score(self, module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        """Per-record arrays of one batch that `metrics` needs, concatenated over batches; includes `loss` (B,)."""
        ...

    def metrics(self, scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
        """Metrics of all scores, and the (K, K) confusion matrix (row: true) where there is one."""
        ...

    def parts(self, scores: dict[str, np.ndarray], classes: int) -> np.ndarray:
        """(N, S) float64: of each record, the numbers that `MAIN` is a function of once they are added up."""
        ...

    def main(self, sums: np.ndarray) -> np.ndarray:
        """`MAIN` of sums (…, S) of `parts`: of all records what `metrics` says, of a resample its own."""
        ...

    def counted(self, scores: dict[str, np.ndarray]) -> np.ndarray:
        """(N, len(COUNTED)) float64 values of each record, from 0 on; NaN for one that says nothing."""
        ...

    def constant(self, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """The scores of the best answer that is the same for every record; None where there is none."""
        ...


def task_names() -> list[str]:
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def tasks_where(wanted: Callable[[Task], bool]) -> list[str]:
    return [name for name in task_names() if wanted(load_task(name))]


def load_task(name: str) -> Task:
    """Raises ConfigError for a name that has no file."""
    if name not in task_names():
        raise ConfigError(f"model.task: received '{name}'; allowed: {', '.join(task_names())}")
    return cast(Task, importlib.import_module(f".{name.replace('-', '_')}", __package__))


def collate(
    task: Task, records: Records, indices: np.ndarray, pad: int, device: torch.device, length: int | None = None
) -> Batch:
    """A batch of the named records, padded to `length` tokens; omitted: to its own longest."""
    lengths = records.lengths(indices)
    longest = int(lengths.max()) if length is None else length
    batch = {"targets": task.targets(records, indices, longest)}
    if records.features is not None:
        batch["features"] = torch.from_numpy(records.features[indices])
    elif records.images is not None:
        batch["pixel_values"] = torch.from_numpy(records.images[indices]).float()
    if records.features is None and longest:
        ids = _padded(records.tokens, records, indices, longest, pad)  # (B, T)
        mask = np.arange(longest)[None, :] < lengths[:, None]  # (B, T)
        batch["input_ids"] = torch.from_numpy(ids)
        batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        if records.segments is not None:
            batch["token_type_ids"] = torch.from_numpy(_padded(records.segments, records, indices, longest))
    return {name: values.to(device) for name, values in batch.items()}


def _padded(values: np.ndarray, records: Records, indices: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """(B, T) int64 of numbers that stand one for each token."""
    result = np.full((len(indices), length), fill, dtype=np.int64)
    for row, index in enumerate(indices):
        start, end = records.offsets[index], records.offsets[index + 1]
        result[row, : end - start] = values[start:end]
    return result


def inputs_of(batch: Batch) -> Batch:
    """What a model reads of a batch."""
    return {name: values for name, values in batch.items() if name not in _ANSWERS}


def answers_of(batch: Batch) -> Batch:
    """What a loss compares with."""
    return {name: values for name, values in batch.items() if name in _ANSWERS}


def class_losses(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy, (B,) of logits (B, K) and (B, T) of (B, T, K), by the class weights and the smoothing that a run
    has; 0 where no class is wanted."""
    if "class_shares" in batch:
        return -(batch["class_shares"] * logits.log_softmax(-1)).sum(-1)
    by_class = logits if logits.dim() == 2 else logits.transpose(1, 2)
    return F.cross_entropy(by_class, batch["targets"], reduction="none", ignore_index=IGNORED)


def load_backbone(path: str, model: ModelSection) -> PreTrainedModel:
    """A backbone without the parts that no task here reads: LoRA must not be put where no loss reaches."""
    backbone = demo_vit() if path == DEMO_VIT else read_weights(_kind_of(path), path, model)
    for inner in (backbone, *(child for name, child in backbone.named_children() if name.endswith("_model"))):
        for part in _UNREAD:
            found = getattr(inner, part, None)
            if isinstance(found, nn.Module) and next(found.parameters(), None) is not None:
                setattr(inner, part, nn.Identity())
    return backbone


def _kind_of(path: str) -> type:
    """Of a model with a decoder (T5), the encoder alone where transformers has a class for it."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    saved_alone = any(name.endswith("EncoderModel") for name in getattr(config, "architectures", None) or ())
    halves = saved_alone or getattr(config, "is_encoder_decoder", False)
    return AutoModelForTextEncoding if halves and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel


def token_targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    """(B, T) of `records.wanted`, padded with `IGNORED`."""
    wanted = np.full_like(records.tokens, IGNORED) if records.wanted is None else records.wanted
    return torch.from_numpy(_padded(wanted, records, indices, length, IGNORED))


def record_means(losses: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(B,): the mean of each record's own losses (B, T). One without a wanted position has loss 0, not 0/0."""
    return losses.sum(1) / (wanted != IGNORED).sum(1).clamp(min=1)


def token_score(losses: torch.Tensor, hits: torch.Tensor, wanted: torch.Tensor) -> dict[str, np.ndarray]:
    """`Task.score` of tasks that guess tokens. losses, hits, wanted: (B, T)."""
    return {
        "loss": record_means(losses, wanted).cpu().numpy(),
        "token_loss": losses.sum(1).double().cpu().numpy(),
        "hits": hits.sum(1).cpu().numpy(),
        "tokens": (wanted != IGNORED).sum(1).cpu().numpy(),
    }


def mean_of(sums: np.ndarray) -> np.ndarray:
    """`Task.main` of parts that are a value and how much it counts."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def hits_counted(scores: dict[str, np.ndarray]) -> np.ndarray:
    """`Task.counted` of tasks that are right or wrong about a record."""
    return (scores["predicted"] == scores["true"]).astype(np.float64)[:, None]


TOKENS_COUNTED = (Counted(LOSS, 8.0), Counted(Main("right tokens", "tokens")))


def tokens_counted(scores: dict[str, np.ndarray]) -> np.ndarray:
    """`Task.counted` of tasks that guess tokens: the loss of a record, and the share of its tokens that are right."""
    tokens = scores["tokens"].astype(np.float64)
    found = np.stack([scores["loss"], scores["hits"] / np.maximum(tokens, 1)], axis=1).astype(np.float64)
    return np.where(tokens[:, None] > 0, found, np.nan)


def loss_parts(scores: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """(N, 2) for `mean_of`: the loss of each record."""
    return np.stack([scores["loss"], np.ones(len(scores["loss"]))], axis=1).astype(np.float64)


def f1_of(hits: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
    """(…, K) → (…): the mean F1 = 2·hits / (true + predicted) of the classes that occur in either; 1 without any."""
    there = occurrences > 0
    f1 = np.where(there, 2 * hits / np.maximum(occurrences, 1), 0.0).sum(-1)
    return np.where(there.any(-1), f1 / np.maximum(there.sum(-1), 1), 1.0)


def no_constant(scores: dict[str, np.ndarray]) -> None:
    """`Task.constant` where no one answer suits all records."""


def token_metrics(scores: dict[str, np.ndarray]) -> Metrics:
    """`Task.metrics` of tasks that guess tokens: the share guessed, and the perplexity over all."""
    tokens = max(1, int(scores["tokens"].sum()))
    return {
        "accuracy": float(scores["hits"].sum() / tokens),
        "loss": float(scores["loss"].mean()),
        "perplexity": float(np.exp(scores["token_loss"].sum() / tokens)),
    }


def subword_ids(rows: Rows, tokenizer, max_length: int) -> list[list[int]]:
    """The token ids of each text, cut to `max_length`."""
    return read_by(tokenizer, rows.text, truncation=True, max_length=max_length)["input_ids"]


def read_by(tokenizer, texts: Sequence[str], pair: Sequence[str] | None = None, **options: Any) -> BatchEncoding:
    """Texts, each beside that of `pair`, of which there may be none: tokenizers raise an error for that."""
    if not texts:
        return BatchEncoding({name: [] for name in tokenizer.model_input_names})
    return tokenizer(list(texts), None if pair is None else list(pair), padding=False, **options)


def marks_after(tokenizer) -> int:
    """How many marks, such as an end token, a tokenizer puts after a text."""
    marks = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return next((number for number, mark in enumerate(reversed(marks)) if not mark), 0)


def beginnings(texts: Sequence[str], tokenizer) -> list[list[int]]:
    """The token ids of each text as something that goes on: with what the tokenizer puts before a text, without an end
    token or other marks that some put after it, which would stand between a prompt and its response."""
    after = marks_after(tokenizer)
    found = read_by(tokenizer, texts, truncation=False, add_special_tokens=True)["input_ids"]
    return [ids[: len(ids) - after] for ids in found]


def texts(rows: Rows, tokenizer, max_length: int, targets: np.ndarray) -> Records:
    """Records of one text, or two, and one target each."""
    found = read_by(tokenizer, rows.text, rows.pair, truncation=True, max_length=max_length)
    return replace(ragged(found["input_ids"], targets), cut=was_cut(found), segments=segments_of(found, rows))


def segments_of(found: BatchEncoding, rows: Rows) -> np.ndarray | None:
    """(Σ T_i,) int8; None where there are no two texts, or the tokenizer does not tell them apart."""
    if rows.pair is None or "token_type_ids" not in found:
        return None
    return np.concatenate([np.empty(0), *found["token_type_ids"]]).astype(np.int8)


def was_cut(found: BatchEncoding) -> np.ndarray | None:
    """(N,) bool: whether a text has more tokens than were taken; None for a tokenizer that does not tell."""
    return None if found.encodings is None else np.array([bool(one.overflowing) for one in found.encodings], dtype=bool)


def ragged(
    token_lists: Sequence[Sequence[int] | np.ndarray], targets: np.ndarray, wanted: list[np.ndarray] | None = None
) -> Records:
    """Records from one list of token ids each; wanted: as many targets each."""
    lengths = np.fromiter((len(ids) for ids in token_lists), dtype=np.int64, count=len(token_lists))
    tokens = np.fromiter((t for ids in token_lists for t in ids), dtype=np.int32, count=int(lengths.sum()))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if wanted is not None:
        return Records(tokens, offsets, targets, np.concatenate([np.empty(0), *wanted]).astype(np.int32))
    return Records(tokens, offsets, targets)
