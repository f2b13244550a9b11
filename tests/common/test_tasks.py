"""Encoding, per-record losses and metrics against hand-checked numbers and Hugging Face's own."""

import copy
import importlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.tasks import causal_lm, collate, preference, sequence_classification
from confide.common.types import Rows

LORA = LoraSection(rank=2, alpha=4)


@pytest.fixture
def lm(llama: Path) -> FineTuneModel:
    return load_model(ModelSection(backbone=str(llama), task="causal-lm", lora=LORA), 0, 0)


def test_padding_goes_to_the_longest_of_the_batch(bert: Path) -> None:
    model = load_model(ModelSection(backbone=str(bert), lora=LORA), 2, 0)
    rows = Rows("x", ["good", "good fine lovely", "bad awful"], labels=np.array([1, 1, 0]))
    records = model.task.encode(rows, model.tokenizer, 32)
    batch = collate(model.task, records, np.array([0, 2]), model.pad, model.device)
    assert batch["input_ids"].shape == (2, 2)
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["targets"].tolist() == [1, 0]
    assert model.task.encode(rows, model.tokenizer, 2).lengths(np.arange(3)).tolist() == [1, 2, 2]


def test_padding_changes_no_logit(bert: Path) -> None:
    for pooling in ("mean", "first", "last"):
        model = load_model(ModelSection.model_validate({"backbone": str(bert), "pooling": pooling, "lora": LORA}), 2, 0)
        ids = torch.tensor([[5, 6, 7]])
        padded, mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
        with torch.no_grad():
            short = model.module(input_ids=ids).logits
            long = model.module(input_ids=padded, attention_mask=mask).logits
        torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-6)


def test_classification_metrics_by_hand() -> None:
    scores = {
        "true": np.array([0, 0, 1, 1, 2]),
        "predicted": np.array([0, 1, 1, 1, 0]),
        "loss": np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
    }
    scores["probabilities"] = np.zeros((5, 4))
    scores["probabilities"][np.arange(5), scores["predicted"]] = [0.8, 0.61, 0.61, 0.9, 0.5]
    metrics, confusion = sequence_classification.metrics(scores, 4)
    # F1: class 0: 2·1/(2+2), class 1: 2·2/(2+3), class 2: 0; class 3 does not occur
    # bins of confidence: |1 − 0.8|, |(0 + 1) − 2 · 0.61|, |1 − 0.9|, |0 − 0.5|, each over 5 records
    by_hand = {"worst_class": 0.0, "calibration_error": (0.2 + 0.22 + 0.1 + 0.5) / 5}
    assert metrics == pytest.approx({"accuracy": 0.6, "macro_f1": (0.5 + 0.8 + 0) / 3, "loss": 3.0, **by_hand})
    assert confusion is not None
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_rows_without_labels_cannot_be_classified(bert: Path) -> None:
    model = load_model(ModelSection(backbone=str(bert), lora=LORA), 2, 0)
    with pytest.raises(ValueError, match="without labels"):
        model.task.encode(Rows("x", ["good"]), model.tokenizer, 8)


def test_the_loss_of_a_record_is_the_mean_over_its_own_tokens(lm: FineTuneModel) -> None:
    """Alone, it is Hugging Face's loss; in a batch, it is the same number."""
    rows = Rows("x", ["good fine lovely bright", "bad", "the film was quite awful and cold"])
    records = lm.task.encode(rows, lm.tokenizer, 32)
    together = lm.task.record_losses(lm.module, collate(lm.task, records, np.arange(3), lm.pad, lm.device))
    for index in range(3):
        batch = collate(lm.task, records, np.array([index]), lm.pad, lm.device)
        reference = lm.module(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        torch.testing.assert_close(together[index], reference, rtol=1e-4, atol=1e-5)


def test_instructions_learn_the_response_only(lm: FineTuneModel) -> None:
    rows = Rows("x", ["the film was", "it"], response=["good fine", "bad"])
    records = lm.task.encode(rows, lm.tokenizer, 32)
    targets = causal_lm.targets(records, np.arange(2), 6)

    def ids(*words: str) -> list[int]:
        return [lm.tokenizer.get_vocab()[word] for word in words]

    assert targets[0].tolist() == [-100, -100, -100, *ids("good", "fine", "[EOS]")]
    assert targets[1].tolist() == [-100, *ids("bad", "[EOS]"), -100, -100, -100]


def test_marks_after_a_text_do_not_stand_between_prompt_and_response(lm: FineTuneModel) -> None:
    plain: Any = copy.deepcopy(lm.tokenizer)
    eos, cls = ((token, plain.convert_tokens_to_ids(token)) for token in ("[EOS]", "[CLS]"))
    ending = copy.deepcopy(plain)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [EOS]", special_tokens=[eos, cls]
    )
    rows = Rows("x", ["the film was", ""], response=["very good", "bad"], rejected=["bad", "very bad"])
    for task, given in ((causal_lm, rows), (causal_lm, replace(rows, response=None)), (preference, rows)):
        marked, bare = task.encode(given, ending, 32), task.encode(given, plain, 32)
        wanted = np.concatenate([np.r_[[cls[1]], bare.tokens[start:end]] for start, end in pairwise(bare.offsets)])
        if task is preference:  # it begins an empty prompt itself
            wanted = np.delete(wanted, marked.offsets[1] + 1)
        assert marked.tokens.tolist() == wanted.tolist()


def test_a_long_prompt_leaves_room_for_the_answer(lm: FineTuneModel) -> None:
    rows = Rows("x", ["the " * 50], response=["good " * 50])
    records = lm.task.encode(rows, lm.tokenizer, 8)
    assert records.lengths(np.array([0])).tolist() == [8]
    assert records.targets.tolist() == [4]


def test_a_record_with_nothing_to_predict_has_loss_zero(lm: FineTuneModel) -> None:
    records = lm.task.encode(Rows("x", ["good"]), lm.tokenizer, 1)
    batch = collate(lm.task, records, np.array([0]), lm.pad, lm.device)
    losses = lm.task.record_losses(lm.module, batch)
    assert losses.tolist() == [0.0]


def test_language_model_metrics(lm: FineTuneModel) -> None:
    scores = {
        "loss": np.array([1.0, 3.0]),
        "token_loss": np.array([2.0, 9.0]),
        "hits": np.array([1, 2]),
        "tokens": np.array([2, 3]),
    }
    metrics, confusion = lm.task.metrics(scores, 0)
    assert metrics == pytest.approx({"accuracy": 0.6, "loss": 2.0, "perplexity": np.exp(11 / 5)})
    assert confusion is None
    records = lm.task.encode(Rows("x", ["good fine", "bad"]), lm.tokenizer, 8)
    with torch.no_grad():
        found = lm.task.score(lm.module, collate(lm.task, records, np.arange(2), lm.pad, lm.device))
    assert found["tokens"].tolist() == [2, 1]


@pytest.mark.parametrize(
    "name", ["sequence_classification", "regression", "token_classification", "causal_lm", "preference"]
)
def test_no_rows_are_no_records(lm: FineTuneModel, name: str) -> None:
    """As at a site none of whose rows can be used; a tokenizer raises an error for no text."""
    task = importlib.import_module(f"confide.common.tasks.{name}")
    rows = Rows("x", [], response=[], labels=np.zeros(0, dtype=np.int64), tags=[], rejected=[])
    assert len(task.encode(rows, lm.tokenizer, 8)) == 0
