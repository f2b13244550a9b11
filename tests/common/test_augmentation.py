"""Views of a record: averaged before clipping, so that a record counts once; privacy is what it was."""

import time

import numpy as np
import pytest
import torch

from confide.common.config.run import RunConfig
from confide.common.data.augmentation import POOL, Draw, encode_with_copies, view_losses
from confide.common.data.perturbations import reworded, with_edits
from confide.common.data.record_keys import choices
from confide.common.errors import ConfigError
from confide.common.model.embeddings import ascended, embedding_layer, moved
from confide.common.model.loading import FineTuneModel, model_of
from confide.common.model.per_sample import clipped_sum, hooked
from confide.common.privacy.plan import privacy_plan
from confide.common.tasks import collate
from confide.common.types import CHARACTERS, Records, RoundTask, Rows
from confide.server.report.render import read_report
from confide.simulations.run import simulate
from confide.simulations.sites import SimulatedSites, simulated_worker
from confide.tests.rings import slow

TEXTS = ["the film was good and warm", "a gloomy story", "quite a bad actor and a dark film", "lovely"]
LABELS = np.array([1, 0, 0, 1])
SECRET = b"a site's own"
ROWS = Rows("test", TEXTS, labels=LABELS)
AUGMENTED = {"augmentation": 0.3, "views": 3}
PGD = {"adversarial": 0.2}
FREELB = {"adversarial": 0.2, "adversarial_kind": "freelb", "adversarial_steps": 2}
options = pytest.mark.parametrize("training", [AUGMENTED, PGD, FREELB])
ALL = np.arange(len(TEXTS))
DRAW = Draw.of(np.random.default_rng(5))


@pytest.fixture
def prepared(make_config):
    def make(training: dict, **changes) -> tuple[RunConfig, FineTuneModel, Records]:
        config = make_config(data={"labels": ["negative", "positive"]}, training=training, **changes)
        model = model_of(config)
        model.set(model.initial)
        return config, model, encode_with_copies(config, model, ROWS, SECRET)

    return make


def gradient(model: FineTuneModel, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.trained.values()))])


def test_what_cannot_become_tokens_is_not_read(prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of millions of characters cost a site its round, and so all records of it."""
    config, model, _ = prepared({"augmentation": 0.2})
    seen: list[int] = []
    real = model.task.encode

    def encode(rows: Rows, *rest):
        seen.extend(len(text) for text in rows.text)
        return real(rows, *rest)

    monkeypatch.setattr(model.task, "encode", encode)
    rows = Rows("x", ["good " * 800_000, "bad"], labels=np.zeros(2, dtype=np.int64))
    records = encode_with_copies(config, model, rows, b"secret")
    assert max(seen) <= CHARACTERS * model.max_length
    assert records.lengths(np.arange(2)).tolist() == [model.max_length, model.encode(rows).lengths(np.array([1]))[0]]
    answer = Rows("x", ["a" * 99 + "b"], response=["c" + "d" * 99]).within(2)
    assert (answer.text, answer.response) == (["ab"], ["cd"])


def test_copies_stand_behind_the_records_as_they_are(prepared) -> None:
    _, model, records = prepared(AUGMENTED)
    plain = model.encode(ROWS)
    assert len(records) == len(TEXTS) * (1 + POOL)
    assert records.digest(ALL) == plain.digest(ALL)
    np.testing.assert_array_equal(records.targets.reshape(1 + POOL, -1), np.tile(LABELS, (1 + POOL, 1)))
    copies = {records.digest(ALL + len(TEXTS) * (1 + copy)) for copy in range(POOL)}
    assert len(copies) > 1
    assert plain.digest(ALL) not in copies


@options
def test_a_records_views_are_averaged_before_clipping(prepared, training: dict) -> None:
    """Against each record alone, without Opacus: mean over views, then clipped."""
    config, model, records = prepared(training)
    clip = 0.05
    with hooked(model):
        together, norms = clipped_sum(model, view_losses(config, model, records, ALL, 1, DRAW), clip)
    expected = torch.zeros_like(together)
    for i in range(len(TEXTS)):
        if "augmentation" in training:
            copies = [i + 4 * (1 + int(choices(records.keys[[i]], DRAW.salt + view, POOL)[0])) for view in range(2)]
            losses = [model.losses(records, np.array([index]))[0] for index in (i, *copies)]
            mean = torch.stack([gradient(model, loss) for loss in losses]).mean(0)
        else:
            batch = collate(model.task, records, np.array([i]), model.pad, model.device)
            climbed = ascended(model, batch, 0.2, config.training.adversarial_steps)
            deltas = climbed if training is FREELB else climbed[-1:]
            parts = [gradient(model, model.task.record_losses(model.module, batch).sum())]
            for delta in deltas:
                with moved(embedding_layer(model), delta):
                    parts.append(gradient(model, model.task.record_losses(model.module, batch).sum()))
            mean = torch.stack(parts).mean(0)
        assert float(norms[i]) == pytest.approx(float(mean.norm()), rel=1e-2)
        expected += mean.double() * min(1.0, clip / float(mean.norm()))
    torch.testing.assert_close(together, expected, rtol=2e-2, atol=2e-4)


@options
def test_privacy_is_unchanged(prepared, local, training: dict) -> None:
    """One record changes the clipped sum by at most C, whatever its views; noise and ε are those of the plain run."""
    config, model, records = prepared(training, privacy=local)
    plain, _, _ = prepared({}, privacy=local)
    assert privacy_plan(config, 100) == privacy_plan(plain, 100)
    clip = 0.05
    for i in range(len(TEXTS)):
        with hooked(model):
            losses = view_losses(config, model, records, ALL[i : i + 1], 1, DRAW)
            alone, norms = clipped_sum(model, losses, clip)
        assert float(norms[0]) > clip
        assert float(alone.norm()) <= clip


def test_plain_training_until_the_warm_up_is_over(prepared) -> None:
    config, model, records = prepared({**PGD, "adversarial_warmup": 2})
    assert len(view_losses(config, model, records, ALL, 2, DRAW)) == 1
    assert len(view_losses(config, model, records, ALL, 3, DRAW)) == 2


@options
@pytest.mark.parametrize("mode", ["distributed", *slow("none", "local", "client")])
def test_whole_runs_in_every_mode(make_config, local, training: dict, mode: str) -> None:
    privacy = {} if mode == "none" else {**local, "mode": mode}
    report = read_report(simulate(make_config(run={"rounds": 2}, privacy=privacy, training=training)))
    assert all("void" not in row for row in report["rounds"])
    assert report["privacy"]["epsilon_spent"] == (None if mode == "none" else pytest.approx(8.0, abs=0.05))


@options
def test_a_site_trains_on_its_own_records_only(make_config, training: dict) -> None:
    """Views come from the site's records: another site's data does not change its update."""
    config = make_config(run={"id": "r"}, data={"labels": ["negative", "positive"]}, training=training)
    w = simulated_worker(config)
    task = RoundTask(1, w.model.initial)
    first = w.train(0, task, w.account(SimulatedSites(config).site(0), 0, 0))
    records = w.data.records
    blind = records.tokens.copy()
    size = records.targets.size // (1 + POOL) if "augmentation" in training else records.targets.size
    for other in w.data.parts[1]:
        for copy in range(records.targets.size // size):
            index = other + size * copy
            blind[records.offsets[index] : records.offsets[index + 1]] = 1
    w._records = Records(blind, records.offsets, records.targets, keys=records.keys)
    again = w.train(0, task, w.account(SimulatedSites(config).site(0), 0, 0))
    for name, array in first.delta.items():
        np.testing.assert_array_equal(array, again.delta[name])


def test_two_kinds_of_views_at_once_are_refused(make_config) -> None:
    with pytest.raises(ConfigError, match="choose one"):
        make_config(training={**AUGMENTED, **PGD})
    with pytest.raises(ConfigError, match="perturbed text would be learned"):
        make_config(training=AUGMENTED, model={"task": "causal-lm"})


def test_rewording_does_what_it_is_told_and_nothing_else() -> None:
    rng, text = np.random.default_rng(0), "one two three four five six"
    assert reworded(text, 0.0, 0.0, 0.0, 0.0, rng) == text
    assert sorted(reworded(text, 1.0, 0.0, 0.0, 0.0, rng).split()) == sorted(text.split())
    assert reworded(text, 0.0, 1.0, 0.0, 0.0, rng) == "one"  # never nothing
    assert sorted(reworded(text, 0.0, 0.0, 1.0, 0.0, rng).split()) == sorted(text.split() * 2)
    marked = reworded(text, 0.0, 0.0, 0.0, 1.0, rng).split()
    assert marked[1::2] == text.split()
    assert not any(mark.isalnum() for mark in marked[::2])
    shorter = [len(reworded(text, 0.0, 0.5, 0.0, 0.0, rng).split()) for _ in range(2000)]
    assert abs(np.mean(shorter) - 3) < 0.25  # more than nine standard errors


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"task": "causal-lm"}, "data": {"augmentation": {"swap": 0.1}}}, "would be learned as text"),
        ({"data": {"augmentation": {"flip": True}}}, "reads no images"),
        ({"data": {"augmentation": {"delete": 0.1}}, "training": {"adversarial": 0.1}}, "choose one"),
    ],
)
def test_augmentation_that_does_not_fit_is_refused(make_config, changes: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_config(**changes)


def test_mixed_losses_are_those_of_mixed_features(prepared) -> None:
    """By hand: the head on λ·h_i + (1 − λ)·h_j, and the loss mixed alike."""
    config, model, records = prepared({}, privacy={"mode": "none"})
    config = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"augmentation": config.data.augmentation.model_copy(update={"mix": 0.4})}
            )
        }
    )
    losses = view_losses(config, model, records, ALL, 1, Draw.of(np.random.default_rng(3)))
    rng = np.random.default_rng(3)
    rng.integers(2**63)  # the salt
    share = torch.from_numpy(rng.beta(0.4, 0.4, size=len(ALL)).astype(np.float32))
    other = torch.from_numpy(rng.permutation(len(ALL)))
    batch = model.batch(records, ALL)
    read = model.represent(batch)
    logits = model.module(features=share[:, None] * read + (1 - share)[:, None] * read[other]).logits
    by_hand = torch.nn.functional.cross_entropy
    wanted = share * by_hand(logits, batch["targets"], reduction="none")
    wanted += (1 - share) * by_hand(logits, batch["targets"][other], reduction="none")
    torch.testing.assert_close(losses[0], wanted)
    assert gradient(model, losses.sum()).norm() > 0


def test_mixing_is_refused_where_records_are_clipped(make_config, local) -> None:
    mixing = {"augmentation": {"mix": 0.2}}
    with pytest.raises(ConfigError, match="belongs to two records, and neither could be clipped"):
        make_config(data=mixing, privacy=local)
    with pytest.raises(ConfigError, match="own head reads more than one vector"):
        make_config(data=mixing, model={"pooling": "model"})
    with pytest.raises(ConfigError, match="needs one answer a record"):
        make_config(data=mixing, model={"task": "causal-lm"})
    with pytest.raises(ConfigError, match=r"received with training\.adversarial"):
        make_config(data=mixing, training={"adversarial": 0.1})
    assert read_report(simulate(make_config(data=mixing)))["after"]["accuracy"] > 0
    heads = simulate(
        make_config(data=mixing, model={"train": "head"}, run={"output": make_config().run.output + "-head"})
    )
    assert read_report(heads)["after"]["accuracy"] > 0


def test_what_a_copy_costs_grows_with_the_text_and_not_with_its_square() -> None:
    """The server chooses the copies: one endless word took minutes a copy, and the site missed its deadline."""
    rng = np.random.default_rng(0)
    started = time.process_time()
    assert len(with_edits("a" * 2**18, 1.0, rng)) > 2**16
    assert len(reworded("a " * 2**17, 0.5, 0.0, 1.0, 0.5, rng)) > 2**18
    assert time.process_time() - started < 20
