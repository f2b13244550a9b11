"""A record's randomness is its own: one record more changes nothing about any other."""

import numpy as np
import pytest

from confide.common.config.tables import DataSection
from confide.common.data.augmentation import POOL, encode_with_copies
from confide.common.data.record_keys import choices, in_order, mixed, record_keys, rows_digest
from confide.common.data.sources import reference_draw, shuffled_limit
from confide.common.model.loading import model_of
from confide.common.types import Rows
from confide.tests.tiny import sentences


def some_rows(count: int, seed: int = 3) -> Rows:
    found = dict(sentences(3 * count, seed))
    texts = list(found)[:count]
    return Rows("x", texts, labels=np.array([int(found[text] == "positive") for text in texts]))


def test_a_key_is_of_the_record_and_the_secret() -> None:
    rows = some_rows(50)
    keys = record_keys(rows, b"one")
    assert len(set(keys.tolist())) == 50
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(record_keys(rows.take(order), b"one"), keys[order])
    assert not np.intersect1d(record_keys(rows, b"two"), keys).size
    other = Rows("x", rows.text, labels=1 - np.asarray(rows.labels))
    assert not np.intersect1d(record_keys(other, b"one"), keys).size
    assert rows_digest(rows) == rows_digest(rows.take(order))
    assert rows_digest(rows) != rows_digest(rows.take(order[1:]))


def test_what_is_drawn_by_keys_is_uniform_and_new_for_another_salt() -> None:
    """χ² over 40 cells, false-alarm rate below 1e-6 each (mean 39, limit 39 + 5.5·√78 ≈ 88)."""
    keys = np.arange(40_000, dtype=np.uint64)  # the hardest keys: one after the other
    for salt in (0, 1, 2**63):
        drawn = choices(keys, salt, 40)
        assert ((np.bincount(drawn, minlength=40) - 1000) ** 2 / 1000).sum() < 95
        joint = choices(keys, salt, 6) * 6 + choices(keys, salt + 1, 6)
        expected = 40_000 / 36
        assert ((np.bincount(joint, minlength=36) - expected) ** 2 / expected).sum() < 95
    assert len(np.unique(mixed(keys, 5))) == len(keys)


def test_an_order_loses_at_most_one_of_its_first() -> None:
    keys = record_keys(some_rows(80), b"s")
    whole = keys[in_order(keys)]
    for gone in range(80):
        left = np.delete(keys, gone)
        np.testing.assert_array_equal(left[in_order(left)], whole[whole != keys[gone]])
        assert len(set(whole[:20].tolist()) - set(left[in_order(left)][:20].tolist())) <= 1


def test_a_limit_displaces_at_most_one_record() -> None:
    """`data.limit`: a permutation of row numbers displaced most of them."""
    rows = some_rows(60)
    kept = set(shuffled_limit(rows, 20, 7).text)
    for gone in range(60):
        left = rows.take(np.delete(np.arange(60), gone))
        assert len(kept ^ set(shuffled_limit(left, 20, 7).text)) <= 2
    data = DataSection(train="x", test="x", limit=20, reference=0)
    pool, drawn = reference_draw(rows, data, 7)
    assert set(rows.take(pool[:20]).text) == kept
    chosen = set(rows.take(pool[drawn]).text)
    for gone in range(60):  # the draw of a reference run: one more row moved half of it
        left = rows.take(np.delete(np.arange(60), gone))
        pool, drawn = reference_draw(left, data, 7)
        assert len(chosen ^ set(left.take(pool[drawn]).text)) <= 2


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"augmentation": 0.3, "views": 3}},
        {"data": {"augmentation": {"swap": 0.3, "delete": 0.2, "insert": 0.2, "punctuation": 0.2}}},
    ],
)
def test_copies_of_a_record_are_the_same_whoever_is_there(make_config, changes: dict) -> None:
    """docs/explanation/pitfalls.md: copies came from one generator in file order."""
    changes = {**changes, "data": {"labels": ["negative", "positive"], **changes.get("data", {})}}
    config = make_config(**changes)
    model, rows = model_of(config), some_rows(12)
    whole = encode_with_copies(config, model, rows, b"secret")
    for gone in (0, 5, 11):
        left = np.delete(np.arange(12), gone)
        part = encode_with_copies(config, model, rows.take(left), b"secret")
        for copy in range(1 + POOL):
            for there, here in enumerate(left):
                assert part.digest(np.array([there + 11 * copy])) == whole.digest(np.array([here + 12 * copy]))
    other = encode_with_copies(config, model, rows, b"another")
    assert any(other.digest(np.array([i])) != whole.digest(np.array([i])) for i in range(12, 60))
