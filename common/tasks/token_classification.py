"""A tag for every word (named entities): cross-entropy on a linear head over the first piece of each word.

Tags are BIO; `data.labels` holds B-x of every type, then I-x, then O, which is their alphabetical order. Words beyond
`model.max_length` are neither learned nor counted.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from ..config.tables import ModelSection
from ..data.words import with_blanks, word_numbers
from ..types import IGNORED, Metrics, Reads, Records, Rows
from . import (
    Batch,
    Counted,
    Main,
    class_losses,
    load_backbone,
    no_constant,
    ragged,
    read_by,
    record_means,
    token_targets,
    was_cut,
)

HEAD = ["head"]
CLASSES, VARIANTS, READS = True, 1, Reads(label="tags")
EXPORT, PIPELINE, MAIN = "logits", "token-classification", Main("span F1", "span_f1")
COUNTED = (Counted(Main("right words", "words")),)
constant = no_constant  # without entities the F1 is 0


class WordClassifier(nn.Module):
    """A backbone and a linear head over every position."""

    def __init__(self, backbone: PreTrainedModel, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        self.head = nn.Linear(int(backbone.config.hidden_size), classes)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: object
    ) -> TokenClassifierOutput:
        """input_ids, attention_mask: (B, T). Returns logits (B, T, K)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.backbone(input_ids=input_ids, attention_mask=mask).last_hidden_state  # (B, T, h)
        return TokenClassifierOutput(logits=self.head(hidden.float()))


def build(path: str, model: ModelSection, classes: int) -> nn.Module:
    return WordClassifier(load_backbone(path, model), classes)


def encode(rows: Rows, tokenizer, max_length: int, variant: int = 0) -> Records:
    """Words are split into pieces; the first piece of each carries its tag."""
    if rows.tags is None:
        raise ValueError("rows without tags cannot be learned word by word")
    texts = [with_blanks(text) for text in rows.text]
    encoded = read_by(tokenizer, texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
    targets = []
    for number, tags in enumerate(rows.tags):
        pieces, before = np.full(len(encoded["input_ids"][number]), IGNORED, dtype=np.int32), None
        for position, word in enumerate(word_numbers(encoded["offset_mapping"][number], texts[number])):
            if word is not None and word != before:
                pieces[position] = tags[word]
            before = word
        targets.append(pieces)
    records = ragged(encoded["input_ids"], np.zeros(len(targets), dtype=np.int64), targets)
    return replace(records, cut=was_cut(encoded))


def targets(records: Records, indices: np.ndarray, length: int) -> torch.Tensor:
    """(B, T): the tag's index on the first piece of a word, −100 elsewhere."""
    return token_targets(records, indices, length)


def _logits(module: nn.Module, batch: Batch) -> torch.Tensor:
    """(B, T, K)."""
    return module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()


def record_losses(module: nn.Module, batch: Batch) -> torch.Tensor:
    return record_means(class_losses(_logits(module, batch), batch), batch["targets"])


def score(module: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    logits, wanted = _logits(module, batch), batch["targets"]
    true = wanted.cpu().numpy()
    return {
        "loss": record_means(class_losses(logits, {"targets": wanted}), wanted).cpu().numpy(),
        "predicted": _ragged(logits.argmax(-1).cpu().numpy(), true != IGNORED),
        "true": _ragged(true, true != IGNORED),
    }


def _ragged(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(B,) of objects: the values of each row where the mask is set."""
    rows = np.empty(len(values), dtype=object)
    for i, (row, there) in enumerate(zip(values, mask, strict=True)):
        rows[i] = row[there]
    return rows


def metrics(scores: dict[str, np.ndarray], classes: int) -> tuple[Metrics, np.ndarray | None]:
    """accuracy over words; precision, recall and F1 over spans: right only with the same borders and type."""
    words = sum(map(len, scores["true"]))
    hits = sum(int((p == t).sum()) for p, t in zip(scores["predicted"], scores["true"], strict=True))
    right, found, there = parts(scores, classes).sum(0).tolist()
    precision, recall = right / found if found else 0.0, right / there if there else 0.0
    return {
        "accuracy": hits / max(1, words),
        "span_f1": 2 * precision * recall / (precision + recall) if right else 0.0,
        "span_precision": precision,
        "span_recall": recall,
        "loss": float(scores["loss"].mean()),
    }, None


def parts(scores: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """(N, 3): spans that are right, that were found, and that are there."""
    counts = np.zeros((len(scores["true"]), 3))
    for row, predicted, true in zip(counts, scores["predicted"], scores["true"], strict=True):
        guessed, wanted = spans(predicted, classes), spans(true, classes)
        row[:] = len(guessed & wanted), len(guessed), len(wanted)
    return counts


def counted(scores: dict[str, np.ndarray]) -> np.ndarray:
    """The share of a record's words whose tag is right; spans of one record have no bounded share."""
    pairs = zip(scores["predicted"], scores["true"], strict=True)
    return np.array([[np.nan if not len(t) else float((p == t).mean())] for p, t in pairs]).reshape(-1, 1)


def main(sums: np.ndarray) -> np.ndarray:
    right, found, there = np.moveaxis(sums, -1, 0)
    return 2 * right / np.maximum(found + there, 1)


def spans(tags: np.ndarray, classes: int) -> set[tuple[int, int, int]]:
    """(first word, word after the last, type) of each entity, as conlleval reads BIO (Tjong Kim Sang 2002): I-x after
    another type or after O begins one, too.

    tags: (W,) indices among B-x of every type, I-x of every type, O.
    """
    types = (classes - 1) // 2
    result, start, kind = set(), 0, -1
    for place, tag in enumerate([*tags.tolist(), 2 * types]):
        inside = tag < 2 * types
        if kind >= 0 and not (inside and tag >= types and tag - types == kind):
            result.add((start, place, kind))
            kind = -1
        if inside and kind < 0:
            start, kind = place, tag % types
    return result
