"""Memory is planned from configurations alone: what is counted without numbers is what a real pass keeps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from confide.common.config.run import RunConfig
from confide.common.errors import ModelError
from confide.common.model import memory
from confide.common.model.loading import model_of, outline
from confide.common.model.memory import batch_tokens, plan_of, planned, with_plan
from confide.common.model.shapes import Shapes
from confide.tests.architectures import save_architecture

TARGETS = {"vit": ["q_proj", "v_proj"], "distilbert": ["q_lin"], "modernbert": ["Wqkv"]}
KINDS = [
    ("bert", "sequence-classification"),
    ("bert", "masked-lm"),
    ("roberta", "token-classification"),
    ("distilbert", "sequence-classification"),
    ("llama", "causal-lm"),
    ("gemma3", "causal-lm"),
    ("gpt2", "causal-lm"),
    ("modernbert", "sequence-classification"),
    ("vit", "image-classification"),
]


def run_of(folder: Path, name: str, task: str, **changes: dict) -> RunConfig:
    content: dict[str, dict] = {
        "model": {"backbone": str(save_architecture(name, folder)), "task": task, "max_length": 24},
        "data": {"train": "train.csv", "test": "test.csv", "labels": ["a", "b", "c"], "partition": {"clients": 3}},
        "privacy": {"mode": "local", "epsilon": 8, "sampling_rate": 0.1, "declared_examples": 100},
    }
    if name in TARGETS:
        content["model"]["lora"] = {"targets": TARGETS[name]}
    for table, more in changes.items():
        content[table] = {**content.get(table, {}), **more}
    return RunConfig.parse(content, "test")


@pytest.mark.parametrize(("name", "task"), KINDS)
def test_a_plan_without_numbers_is_that_of_the_real_model(tmp_path: Path, name: str, task: str) -> None:
    config = run_of(tmp_path, name, task)
    without, real = plan_of(config, outline(config), 1), plan_of(config, model_of(config), 1)
    assert without.activations > 0
    # other kernels of attention keep other things; without numbers a language model's loss counts all positions
    assert real.activations <= without.activations + without.in_flight / 3 * 2
    assert without.activations <= 1.15 * real.activations
    same = {"activations": 0, "in_flight": 0, "recomputed": None}
    assert replace(without, **same) == replace(real, **same)


def test_a_plan_grows_with_what_it_is_made_of(tmp_path: Path) -> None:
    config = run_of(tmp_path, "llama", "causal-lm")
    plan = planned(config)
    longer = planned(config.model_copy(update={"model": config.model.model_copy(update={"max_length": 48})}))
    assert longer.activations >= 2 * plan.activations  # attention grows faster than length
    assert plan.gradients > 0
    assert planned(run_of(tmp_path / "none", "llama", "causal-lm", privacy={"mode": "none"})).gradients == 0
    assert plan.sites == memory.sites_at_once(config)
    assert planned(run_of(tmp_path / "four", "llama", "causal-lm", engine={"workers": 3})).sites == 3
    real_site = run_of(tmp_path / "five", "llama", "causal-lm", data={"train": None})
    assert planned(real_site).sites == 1


def test_batches_are_cut_to_what_fits(tmp_path: Path) -> None:
    plan = planned(run_of(tmp_path, "llama", "causal-lm"))
    for rows in (1, 3, 8, 100):
        usable = plan.peak(rows) + plan.sites * plan.row // 2
        tokens = batch_tokens(plan, usable, gpu=False)
        assert plan.peak(tokens // plan.length) <= usable
        assert tokens == plan.length * 2 ** int(np.log2(rows))
    assert batch_tokens(plan, 2**50, gpu=False) <= 4096
    assert batch_tokens(plan, 2**50, gpu=True) == plan.length * 256


def test_no_draw_of_any_size_is_above_the_plan() -> None:
    """Ten thousand draws of records of any length, from none to hundreds."""
    rng, longest, tokens = np.random.default_rng(4), 128, 2048
    for _ in range(10_000):
        shapes = Shapes(longest, tokens // longest, float(rng.choice([3, 50, 400, 1e6])))
        drawn = rng.integers(1, longest + 1, rng.poisson(rng.choice([1, 40, 200])))
        seen = [0]
        for _, rows, length in shapes.batches(drawn):
            assert len(rows) * min(length, longest) <= tokens
            seen.append(len(rows))
        assert max(seen) <= tokens // longest


def test_a_run_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_of(tmp_path, "llama", "causal-lm")
    monkeypatch.setattr(memory, "free_memory", lambda: 2**29)
    with pytest.raises(ModelError, match=r"^memory: a step on one record of 24 tokens takes 0\.\d+ GiB, and 0\.40 GiB"):
        with_plan(config)
    given = config.model_copy(update={"training": config.training.model_copy(update={"batch_tokens": 48})})
    assert with_plan(given).training == given.training


def test_at_a_real_site_no_data_that_are_in_memory_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free may depend on rows that were read before; a threshold would carry that into every gradient."""
    run, real_site = (run_of(tmp_path / name, "llama", "causal-lm", data={"train": name}) for name in ("a", "b"))
    real_site = real_site.model_copy(update={"data": real_site.data.model_copy(update={"train": None})})
    monkeypatch.setattr(memory, "total_memory", lambda: 2**34)
    found = []
    for free in (2**31, 2**33):
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        found.append((memory.usable_memory(run), memory.usable_memory(real_site)))
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1] == 2**33


def test_a_model_that_cannot_be_followed_without_numbers_is_followed_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise NotImplementedError("no meta kernel")

    config = run_of(tmp_path, "llama", "causal-lm")
    monkeypatch.setattr(memory, "outline", fails)
    tokens = with_plan(config).training.tokens
    assert tokens == 24 * 128


def test_activations_are_computed_again_where_few_records_would_fit(tmp_path: Path) -> None:
    plan = planned(run_of(tmp_path, "llama", "causal-lm", model={"max_length": 60}))
    assert plan.recomputed is not None
    assert plan.recomputed < 0.8 * plan.activations  # of two layers one is kept
    much, little = plan.peak(0) + 9 * plan.sites * plan.row, plan.peak(0) + 7 * plan.sites * plan.row
    assert plan.within(much, "auto") == plan.within(little, False) == plan
    assert plan.within(little, "auto") == plan.within(much, True) == replace(plan, activations=plan.recomputed)


def test_what_is_planned_stands_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_of(tmp_path, "llama", "causal-lm")
    assert with_plan(config).model.checkpointing is False
    plan = planned(config)
    monkeypatch.setattr(memory, "usable_memory", lambda _: plan.peak(0) + 3 * plan.sites * plan.row)
    assert with_plan(config).model.checkpointing is True
    assert with_plan(run_of(tmp_path, "llama", "causal-lm", training={"batch_tokens": 64})).model.checkpointing is False


def test_on_the_way_up_everything_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adversarial training asks for a gradient that layers which are computed again do not give."""
    plan = planned(run_of(tmp_path, "llama", "causal-lm"))
    monkeypatch.setattr(memory, "usable_memory", lambda _: plan.peak(0) + 3 * plan.sites * plan.row)
    config = run_of(tmp_path, "llama", "causal-lm", training={"adversarial": 0.1})
    assert with_plan(config).model.checkpointing is False


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_few_bits_are_planned_as_they_are_held(tmp_path: Path, weights: str) -> None:
    """Of the linear layers; the real model's own count is the reference."""
    config = run_of(tmp_path, "wide llama", "causal-lm", model={"weights": weights, "dtype": "float32"})
    full = planned(run_of(tmp_path, "wide llama", "causal-lm", model={"dtype": "float32"}))
    model = model_of(config)
    held = sum(p.nbytes for p in [*model.module.parameters(), *model.module.buffers()])
    assert planned(config).weights == pytest.approx(held, rel=0.1)
    assert planned(config).weights < full.weights
    assert planned(config).activations >= full.activations
