"""DPO: encoding, loss and per-record gradients against plain autograd, one pair at a time."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.model.dummies import dummy_records
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.per_sample import clipped_sum, hooked, record_gradients
from confide.common.model.proof import check_reached, prove
from confide.common.model.shapes import Shapes
from confide.common.tasks import load_task, preference
from confide.common.types import IGNORED, Records, Rows
from confide.tests.architectures import save_architecture
from confide.tests.rings import slow

BETA = 0.3
ROWS = Rows(
    "x",
    ["the film was", "it", "the story of this actor was quite"],
    response=["good fine lovely", "bad", "warm"],
    rejected=["awful", "good and bright", "cold"],
)


def load(folder: Path, name: str = "llama", beta: float = BETA, **changes) -> FineTuneModel:
    lora = LoraSection(rank=2, alpha=4, targets=changes.pop("targets", None))
    backbone = str(save_architecture(name, folder))
    section = ModelSection(backbone=backbone, task="preference", max_length=24, lora=lora, **changes)
    return load_model(section, 0, 0, beta=beta)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FineTuneModel:
    return load(tmp_path_factory.mktemp("llama"))


def filled(model: FineTuneModel) -> None:
    """Weights such as training leaves."""
    rng = np.random.default_rng(0)
    model.set({n: (a + 0.3 * rng.normal(size=a.shape)).astype(np.float32) for n, a in model.initial.items()})


def ids(model: FineTuneModel, text: str) -> list[int]:
    return [model.tokenizer.get_vocab()[word] for word in text.split()]


def test_both_answers_lie_behind_one_prompt(model: FineTuneModel) -> None:
    records = model.encode(ROWS)
    assert records.lengths(np.arange(3)).tolist() == [7, 5, 9]
    wanted = model.task.targets(records, np.array([0, 1]), 8)
    nothing = [IGNORED]
    assert wanted[0, 0].tolist() == [*nothing * 3, *ids(model, "good fine lovely [EOS]"), *nothing]
    assert wanted[0, 1].tolist() == [*nothing * 3, *ids(model, "awful [EOS]"), *nothing * 3]
    assert wanted[1, 0].tolist() == [*nothing, *ids(model, "bad [EOS]"), *nothing * 5]
    assert wanted[1, 1].tolist() == [*nothing, *ids(model, "good and bright [EOS]"), *nothing * 3]
    batch = model.batch(records, np.array([0, 1]), 8)
    (chosen, chosen_mask, _), (rejected, rejected_mask, _) = preference._texts(batch)
    assert chosen[1].tolist() == [*ids(model, "it bad [EOS]"), 0, 0, 0, 0, 0]
    assert chosen_mask[1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert rejected[0].tolist() == [*ids(model, "the film was awful [EOS]"), 0, 0, 0]
    assert rejected_mask[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


def test_a_long_prompt_loses_the_same_beginning_for_both(model: FineTuneModel) -> None:
    rows = Rows("x", ["the " * 30 + "film"], response=["good " * 3], rejected=["bad " * 50])
    records = model.encode(rows)
    assert records.lengths(np.array([0])).tolist() == [24]
    (chosen, mask, _), (rejected, _, _) = preference._texts(model.batch(records, np.array([0])))
    start = int(records.targets[0])
    assert start == 12
    assert torch.equal(chosen[0, :start], rejected[0, :start])
    assert int(mask.sum()) == start + 4


def test_a_prompt_without_tokens_and_rows_without_answers(model: FineTuneModel) -> None:
    records = model.encode(Rows("x", [""], response=["good"], rejected=["bad"]))
    (chosen, _, _), (rejected, _, _) = preference._texts(model.batch(records, np.array([0])))
    assert chosen[0, 0] == rejected[0, 0]
    with pytest.raises(ValueError, match="without two answers"):
        model.task.encode(Rows("x", ["a"], response=["b"]), model.tokenizer, 8)
    with pytest.raises(ValueError, match="without two answers"):
        model.task.targets(Records(np.zeros(1, np.int32), np.array([0, 1]), np.zeros(1, np.int64)), np.array([0]), 1)


def _log_probability(module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of one text alone, token by token, without padding."""
    logits = module(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return torch.stack([logits[place, token] for place, token in zip(places, answer, strict=True)]).sum()


def reference(model: FineTuneModel, folder: Path, rows: Rows, index: int) -> torch.Tensor:
    """Equation 7, with the backbone from its folder as π_ref."""
    frozen = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert rows.response is not None
    assert rows.rejected is not None
    prompt = ids(model, rows.text[index])
    gains = []
    for text in (rows.response[index], rows.rejected[index]):
        answer = ids(model, f"{text} [EOS]")
        with torch.no_grad():
            before = _log_probability(frozen, prompt, answer)
        gains.append(_log_probability(model.module, prompt, answer) - before)
    return -torch.log(torch.sigmoid(BETA * (gains[0] - gains[1])))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_losses_and_gradients_are_those_of_plain_dpo_one_pair_at_a_time(tmp_path: Path, train: str) -> None:
    model = load(tmp_path, train=train)
    filled(model)
    records = model.encode(ROWS)
    with hooked(model):
        losses = model.losses(records, np.arange(3), 16)
        together = torch.cat(record_gradients(model, losses), 1)
    for index in range(3):
        loss = reference(model, tmp_path, ROWS, index)
        alone = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.trained.values()))])
        assert float(losses[index].detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float((together[index] - alone).norm() / alone.norm()) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", *slow("qwen3", "gemma3")])
def test_a_pairs_gradient_is_its_own(tmp_path: Path, name: str) -> None:
    """Proved as for other tasks: the same bits among other mates and in other places."""
    model = load(tmp_path, name)
    check_reached(model)
    found = prove(model, Shapes(24, 8, 30.0)).found
    assert max(found.values()) > 1
    filled(model)
    records = dummy_records(model, [9, 12, 12, 5, 7, 8], 3)
    with hooked(model):
        everyone = record_gradients(model, model.losses(records, np.arange(6), 16))
    with hooked(model):
        turned = record_gradients(model, model.losses(records, np.array([5, 5, 0, 1, 1, 2]), 16))
    for one, other in zip(everyone, turned, strict=True):
        np.testing.assert_allclose(one[[5, 0, 1, 2]], other[[0, 2, 3, 5]], rtol=1e-5, atol=1e-7)


def test_dummy_pairs_have_answers_of_either_length(model: FineTuneModel) -> None:
    records = dummy_records(model, [6, 6, 2, 1])
    answers = (model.task.targets(records, np.arange(4), 6) != IGNORED).sum(2)
    assert answers.tolist() == [[4, 5], [5, 4], [1, 1], [0, 0]]


def test_before_training_nothing_is_preferred(model: FineTuneModel) -> None:
    model.set(model.initial)
    records = model.encode(ROWS)
    scores = model.scores(records, np.arange(3))
    assert scores["margin"].tolist() == [0.0, 0.0, 0.0]
    metrics, confusion = model.task.metrics(scores, 0)
    assert metrics == pytest.approx({"accuracy": 0.5, "margin": 0.0, "loss": math.log(2)})
    assert confusion is None


def test_metrics_by_hand() -> None:
    scores = {"margin": np.array([1.0, -1.0, 2.0, 0.0]), "loss": np.array([1.0, 2.0, 3.0, 4.0])}
    assert preference.metrics(scores, 0)[0] == pytest.approx({"accuracy": 2.5 / 4, "margin": 0.5, "loss": 2.5})


def test_frozen_factors_stay_frozen_after_the_reference(tmp_path: Path) -> None:
    """PEFT switches the gradients of all its layers on when an adapter comes back."""
    section = ModelSection(
        backbone=str(save_architecture("llama", tmp_path)), task="preference", lora=LoraSection(rank=2)
    )
    model = load_model(section, 0, 0, freeze_a=True)
    trained = list(model.trained)
    losses = model.losses(model.encode(ROWS), np.arange(3))
    assert list(model.trained) == trained
    assert not any(".lora_A." in name for name in trained)
    assert losses.requires_grad
    assert model.module.get_model_status().enabled is not False


def test_beta_decides(tmp_path: Path) -> None:
    small, large = load(tmp_path, beta=0.1), load(tmp_path, beta=1.0)
    for model in (small, large):
        filled(model)
    records = small.encode(ROWS)
    one, ten = (model.scores(records, np.arange(3))["margin"] for model in (small, large))
    np.testing.assert_allclose(10 * one, ten, rtol=1e-4)


def test_tokens_without_an_embedding_become_padding_in_both_answers(tmp_path: Path) -> None:
    model = load(tmp_path)
    model.tokenizer.add_tokens(["zebra"])
    records = model.encode(Rows("x", ["the film was"], response=["zebra"], rejected=["good zebra"]))
    assert records.wanted is not None
    assert max(records.tokens.max(), records.wanted.max()) < model.vocabulary
    with hooked(model):
        total, norms = clipped_sum(model, model.losses(records, np.array([0]), 16), 1.0)
    assert torch.isfinite(norms).all()
    assert torch.isfinite(total).all()


def test_it_reads_a_prompt_and_two_answers() -> None:
    task = load_task("preference")
    assert task.READS.pairs
    assert (task.EXPORT, task.MAIN[1]) == ("text", "accuracy")
