"""Strategies of active learning against closed forms and answers known beforehand."""

import numpy as np
import pytest

from confide.common.config.resolve import resolve
from confide.common.data.active import (
    SCORED,
    STRATEGIES,
    choose,
    disagreement,
    entropy,
    farthest,
    gradients_apart,
    margin,
    pool_epsilon,
)
from confide.common.errors import ModelError
from confide.common.model.loading import model_of
from confide.common.types import Rows
from confide.tests.tiny import sentences

RNG = np.random.default_rng(5)
PROBABILITIES = RNG.dirichlet(np.ones(4), size=60)


def test_entropy_and_margin_are_those_of_the_books() -> None:
    assert entropy(np.array([0.25] * 4)) == pytest.approx(np.log(4))
    assert entropy(np.array([1.0, 0, 0, 0])) == pytest.approx(0)
    np.testing.assert_allclose(margin(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])), [0.2, 0.7])
    np.testing.assert_allclose(margin(np.ones((3, 1))), 0)


def test_bald_is_zero_where_models_agree_and_largest_where_sure_models_differ() -> None:
    agree = np.tile([[0.5, 0.5], [0.9, 0.1]], (8, 1, 1))
    np.testing.assert_allclose(disagreement(agree), 0, atol=1e-12)
    differ = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert disagreement(differ)[0] == pytest.approx(np.log(2))


def test_core_set_covers_within_twice_the_best_radius() -> None:
    """The greedy rule is a 2-approximation (Gonzalez 1985): against all choices of three of twelve."""
    from itertools import combinations

    vectors = RNG.normal(size=(12, 2))

    def radius(centres) -> float:
        return np.linalg.norm(vectors[:, None] - vectors[list(centres)][None], axis=2).min(1).max()

    best = min(radius(chosen) for chosen in combinations(range(12), 3))
    chosen = farthest(vectors[1:], vectors[:1], 2) + 1
    assert radius([0, *chosen]) <= 2 * min(radius([0, *pair]) for pair in combinations(range(1, 12), 2)) + 1e-9
    assert len({*farthest(vectors, vectors[:0], 3)}) == 3
    assert best > 0


def test_badge_draws_by_the_distance_of_whole_gradients() -> None:
    """k-means++ over (p − e_ŷ) ⊗ h written out: the second row is drawn in proportion to squared distance."""
    vectors = RNG.normal(size=(60, 5))
    errors = PROBABILITIES - np.eye(4)[PROBABILITIES.argmax(1)]
    whole = (errors[:, :, None] * vectors[:, None, :]).reshape(60, -1)
    first = int((whole**2).sum(1).argmax())
    weights = ((whole - whole[first]) ** 2).sum(1)
    rng, trials, counts = np.random.default_rng(1), 6000, np.zeros(60)
    for _ in range(trials):
        chosen = gradients_apart(PROBABILITIES, vectors, 2, rng)
        assert chosen[0] == first
        counts[chosen[1]] += 1
    wanted = weights / weights.sum()
    # each count is binomial; by Bernstein and a union over 60 rows, a false alarm is below 1e-6
    slack = np.sqrt(2 * trials * wanted * (1 - wanted) * np.log(2 * 60 / 1e-6)) + np.log(2 * 60 / 1e-6)
    assert (np.abs(counts - trials * wanted) <= slack).all()
    assert len({*gradients_apart(PROBABILITIES, np.zeros((60, 5)), 20, rng)}) == 20


def test_one_record_more_in_the_pool_swaps_at_most_one_of_those_that_are_labelled() -> None:
    """What the claim for a pool's record rests on, over rounds: scores differ from round to round and are each
    record's own."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        scores = rng.random((4, 30))  # round × record; the last record is the one more
        labelled: list[set[int]] = []
        for records in (range(29), range(30)):
            chosen: set[int] = set()
            for of_round in scores:
                rest = [i for i in records if i not in chosen]
                chosen |= set(sorted(rest, key=lambda i: -of_round[i])[:4])
            labelled.append(chosen)
        assert len(labelled[0] - labelled[1]) <= 1
        assert labelled[1] - labelled[0] <= {29} or len(labelled[1] - labelled[0]) <= 1
    assert pool_epsilon(1.0, 1e-6) == pytest.approx((2.0, (1 + np.e) * 1e-6))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_takes_different_rows_of_the_unlabelled(make_config, strategy) -> None:
    config = resolve(make_config())
    model = model_of(config)
    rows = sentences(50, 9)
    records = model.encode(Rows("test", [text for text, _ in rows], labels=np.zeros(50, dtype=np.int64)))
    unlabelled, labelled = np.arange(10, 50), np.arange(10)
    chosen = choose(strategy, 12, model, model.initial, records, unlabelled, labelled, np.random.default_rng(0))
    assert len({*chosen}) == 12
    assert {*chosen} <= {*unlabelled}
    assert (
        len(choose(strategy, 99, model, model.initial, records, unlabelled, labelled, np.random.default_rng(0))) == 40
    )


def test_a_task_without_classes_is_refused(make_config, wordpiece) -> None:
    config = resolve(make_config(model={"task": "masked-lm", "pooling": "mean", "backbone": str(wordpiece)}))
    model = model_of(config)
    records = model.encode(Rows("test", ["a film", "a story"]))
    with pytest.raises(ModelError, match="one vector each"):
        choose("margin", 1, model, model.initial, records, np.arange(2), np.arange(0), np.random.default_rng(0))
    assert "badge" not in SCORED
