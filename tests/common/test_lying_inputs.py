"""Noise, checks and attackers on texts: what they change, what they leave, and that they find what is there."""

import numpy as np
import pytest
import torch

from confide.common.data.perturbations import (
    EDITS,
    PERTURBATIONS,
    characters,
    drop_words,
    names_swapped,
    negated,
    with_edits,
)
from confide.common.model.embeddings import ascended, embedding_layer, moved
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.tasks import collate
from confide.common.types import Rows
from confide.simulations.attacks import blackbox

TEXT = "the quick brown fox is jumping over the lazy dog , and nobody was looking"
every = pytest.mark.parametrize("name", sorted(PERTURBATIONS))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@every
def test_noise_of_strength_nothing_changes_nothing_and_the_same_seed_the_same(name: str) -> None:
    perturb = PERTURBATIONS[name]
    assert perturb(TEXT, 0.0, rng()) == TEXT
    assert perturb(TEXT, 0.2, rng(3)) == perturb(TEXT, 0.2, rng(3))
    assert perturb("", 0.5, rng()) == ""
    assert perturb(TEXT, 1.0, rng()) != TEXT


def test_about_as_many_letters_are_hit_as_asked() -> None:
    text, hits = "abcdefghij" * 500, []
    for seed in range(5):
        changed = with_edits(text, 0.1, rng(seed), ("homoglyph", "neighbour"))
        hits.append(sum(a != b for a, b in zip(text, changed, strict=True)))
    assert np.mean(hits) == pytest.approx(5000 * 0.1 * (0.5 + 0.5 * 0.5), rel=0.15)  # half of the letters have a twin


def test_each_edit_is_one_edit() -> None:
    for name, edit in EDITS.items():
        for place in range(6):
            changed = edit("yellow", place, rng())
            assert abs(len(changed) - 6) <= (name == "drop")
            if name in ("homoglyph", "neighbour"):
                assert sum(a != b for a, b in zip("yellow", changed, strict=True)) <= 1
            if name == "swap":
                assert sorted(changed) == sorted("yellow")
    assert EDITS["drop"]("a", 0, rng()) == "a"
    assert EDITS["swap"]("a", 0, rng()) == "a"


def test_a_text_never_loses_all_its_words() -> None:
    assert all(drop_words(TEXT, 1.0, rng(seed)) for seed in range(20))


def test_checks() -> None:
    assert negated("it was good") == "it was not good"
    assert negated("good film") is None
    one, other = names_swapped(TEXT, rng())
    assert one != other
    assert one.endswith(TEXT)
    assert other.endswith(TEXT)


def counts_bad(texts: list[str]) -> np.ndarray:
    """A model that only sees whether the word "bad" is there: class 1."""
    seen = np.array([0.9 if "bad" in text.split() else 0.1 for text in texts])
    return np.stack([1 - seen, seen], 1)


def test_the_attacker_finds_the_word_that_matters_within_its_budget() -> None:
    asked: list[int] = []

    def ask(texts: list[str]) -> np.ndarray:
        asked.append(len(texts))
        return counts_bad(texts)

    text = "this was a rather bad evening"
    found = blackbox.attack(text, 1, ask, 100, rng())
    assert found.success
    assert found.queries == sum(asked) == 6 + 4
    assert found.changed.split()[:4] == text.split()[:4]  # nothing else was touched
    pieces = blackbox.marked(text, found.changed)
    assert "".join(piece for piece, _ in pieces).replace("·", "").split() == found.changed.split()
    assert any(changed for _, changed in pieces)
    asked.clear()
    assert not blackbox.attack(text, 1, ask, 3, rng()).success
    assert sum(asked) <= 3
    assert not blackbox.attack("123 456", 1, ask, 100, rng()).success


def test_many_attackers_in_one_batch_find_what_each_finds_alone() -> None:
    texts = ["this was a rather bad evening", "bad", "123 456", "nothing of that kind", "so bad a day , and bad food"]
    sizes: list[int] = []

    def ask(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return counts_bad(texts)

    ended: list[int] = []
    together = blackbox.attack_all(texts, [1] * 5, ask, 30, [rng() for _ in texts], ended.append)
    assert together == [blackbox.attack(text, 1, counts_bad, 30, rng()) for text in texts]
    assert sum(sizes) == sum(attempt.queries for attempt in together)
    assert sizes[0] == 6 + 1 + 4 + 7  # the first question of all that have one
    assert ended[-1] == 5


@pytest.fixture
def model(make_config) -> FineTuneModel:
    return load_model(make_config().model, 2, 0)


def test_embeddings_move_within_their_radius_and_uphill(model: FineTuneModel) -> None:
    texts = ["the film was good", "a gloomy story of the actor and the film"]
    records = model.encode(Rows("t", texts, labels=np.array([1, 0])))
    batch = collate(model.task, records, np.arange(2), model.pad, model.device)
    layer = embedding_layer(model)
    norms = layer(batch["input_ids"]).norm(dim=2)
    before = model.task.record_losses(model.module, batch).detach()
    found = ascended(model, batch, 0.3, 5)
    assert len(found) == 5
    for delta in found:
        assert (delta.norm(dim=2) <= 0.3 * norms * (1 + 1e-5)).all()
        assert (delta[batch["attention_mask"] == 0] == 0).all()
    with moved(layer, found[-1]):
        after = model.task.record_losses(model.module, batch).detach()
    assert (after > before).all()
    torch.testing.assert_close(model.task.record_losses(model.module, batch).detach(), before)  # the hook is gone
    alone = collate(model.task, records, np.array([0]), model.pad, model.device)
    torch.testing.assert_close(  # each record is attacked by itself
        ascended(model, alone, 0.3, 5)[-1][0, :4], found[-1][0, :4], rtol=1e-3, atol=1e-5
    )
    assert characters("a", 1.0, rng())
