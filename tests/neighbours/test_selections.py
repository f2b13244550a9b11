"""Copies, choices and subsets of a site's rows: each follows from the record itself, whatever other rows there are."""

from dataclasses import replace

import numpy as np
import pytest

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.config.tables import DataSection
from confide.common.data.active import SCORED, Strategy, choose
from confide.common.data.augmentation import encode_with_copies, encodings
from confide.common.data.record_keys import record_keys
from confide.common.data.sources import training_rows
from confide.common.model.loading import FineTuneModel, model_of
from confide.common.model.personal_head import head_inputs
from confide.common.types import Adapter, Records, Rows
from confide.tests.architectures import save_architecture
from confide.tests.neighbours.rows import words
from confide.tests.tiny import merged, sentences

SECRET = b"of one site"
ROUNDS, EACH = 3, 4


def rows_of(count: int, images: bool = False) -> Rows:
    """Of all lengths, two of them the same."""
    texts = [text for text, _ in sentences(count - 3, 4)] + ["film", words(80, 1), "film"]
    labels = np.arange(count) % 2
    labels[-3] = labels[-1]
    pixels = np.random.default_rng(1).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8) if images else None
    return Rows("test", [""] * count if images else texts, labels=labels, images=pixels)


def without(rows: Rows, place: int) -> Rows:
    return rows.take(np.delete(np.arange(len(rows)), place))


def alike(whole: Records, i: int, smaller: Records, j: int) -> bool:
    """Bit for bit."""
    features = whole.features is None or smaller.features is None or (whole.features[i] == smaller.features[j]).all()
    return bool(features) and whole.digest(np.array([i])) == smaller.digest(np.array([j]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: str(save_architecture(name, root / name)) for name in ("bert", "llama", "vit")}


_COPIES = {
    "characters": {"training": {"augmentation": 0.3}},
    "words": {"data": {"augmentation": {"swap": 0.4, "delete": 0.3, "insert": 0.4, "punctuation": 0.4}}},
    "images": {"data": {"augmentation": {"flip": True, "shift": 2, "noise": 0.2}}},
    "maskings": {"model": {"task": "masked-lm"}},
    "none": {},
    "features": {"model": {"train": "head"}, "training": {"augmentation": 0.3}},
}


@pytest.mark.parametrize("kind", _COPIES)
def test_copies_are_each_records_own(make_config, folders: dict[str, str], kind: str) -> None:
    """One row less: bit for bit the same encodings, keys and copies of all others; another secret: other copies."""
    images = kind == "images"
    changes = {"model": {"backbone": folders["vit" if images else "bert"], "max_length": 24}}
    if images:
        changes["model"] |= {"task": "image-classification", "train": "head"}
    config: RunConfig = make_config(**merged(merged(_COPIES[kind], changes), {"data": {"labels": ["no", "yes"]}}))
    model, rows = model_of(config), rows_of(14, images)
    many, whole = encodings(config, model), encode_with_copies(config, model, rows, SECRET)
    assert many == {"maskings": 4, "none": 1}.get(kind, 5)
    for place in range(len(rows)):
        smaller = encode_with_copies(config, model, without(rows, place), SECRET)
        kept = np.delete(np.arange(len(rows)), place)
        for copy in range(many):
            for j, i in enumerate(kept):
                one, other = copy * len(rows) + int(i), copy * len(kept) + j
                assert alike(whole, one, smaller, other), f"row {place} removed: copy {copy} of row {i} is another"
                assert whole.keys is not None
                assert smaller.keys is not None
                assert whole.keys[one] == smaller.keys[other]
    if kind in ("characters", "words", "images"):
        changed = encode_with_copies(config, model, rows, b"of another site")
        copies = range(len(rows), many * len(rows))
        assert not all(alike(whole, i, changed, i) for i in copies)
        assert all(alike(whole, i, changed, i) for i in range(len(rows)))


@pytest.fixture(scope="module")
def pools() -> dict[str, tuple[FineTuneModel, Adapter, Records]]:
    return {}


def pool_of(make_config, folder: str, name: str) -> tuple[FineTuneModel, Adapter, Records]:
    section = {"backbone": folder, "max_length": 48, "pooling": "last" if name == "llama" else "mean"}
    config = resolve(make_config(model=section, run={"seed": 5}))
    model, rows = model_of(config), rows_of(26)
    rng = np.random.default_rng(5)
    adapter = {key: (a + 0.3 * rng.normal(size=a.shape)).astype(np.float32) for key, a in model.initial.items()}
    return model, adapter, replace(model.encode(rows), keys=record_keys(rows, SECRET))


def labelled_after(
    strategy: Strategy, model: FineTuneModel, adapter: Adapter, pool: Records, there: np.ndarray
) -> list[set[int]]:
    """What is labelled after each of some rounds. there: the rows that the site has."""
    labelled, found = there[:4], []
    for number in range(ROUNDS):
        unlabelled = np.setdiff1d(there, labelled)
        rng = np.random.default_rng([9, number])
        chosen = choose(strategy, EACH, model, adapter, pool, unlabelled, labelled, rng)
        labelled = np.concatenate([labelled, chosen])
        found.append({*labelled.tolist()})
    return found


@pytest.mark.parametrize("name", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", SCORED)
def test_a_row_of_the_pool_displaces_at_most_one_other(
    make_config, folders: dict[str, str], pools, strategy: Strategy, name: str
) -> None:
    """Over several rounds, with scores of the model itself. The review found 14 (random) and 36 (bald) of 50."""
    if name not in pools:
        pools[name] = pool_of(make_config, folders[name], name)
    model, adapter, pool = pools[name]
    everybody = np.arange(len(pool))
    whole = labelled_after(strategy, model, adapter, pool, everybody)
    displaced = 0
    for place in [*everybody[4:-3:2], *everybody[-3:]]:
        smaller = labelled_after(strategy, model, adapter, pool, np.delete(everybody, place))
        for one, other in zip(whole, smaller, strict=True):
            if place not in one:
                assert one == other, f"row {place} was not chosen, and changes the choice"
            assert one - other <= {place}
            assert len(other - one) == (place in one)
            displaced += len(other - one)
    assert displaced > ROUNDS


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_what_a_head_reads_is_each_records_own(make_config, folders: dict[str, str], pools, name: str) -> None:
    """Also where a long text is alone, or among long ones only."""
    if name not in pools:
        pools[name] = pool_of(make_config, folders[name], name)
    model, adapter, pool = pools[name]
    everybody = np.arange(len(pool))
    read, _ = head_inputs(model, adapter, pool, everybody)
    for which in (everybody[::-1], everybody[::3], everybody[-2:-1], everybody[-1:], np.repeat(everybody[-2:], 9)):
        again, _ = head_inputs(model, adapter, pool, which)
        assert np.array_equal(again.numpy(), read.numpy()[which])


@pytest.mark.parametrize("limit", [1, 7, 19, 20])
def test_a_row_displaces_at_most_one_other_from_a_limit(limit: int) -> None:
    """`data.limit`: one that was not taken changes nothing."""
    for seed in range(5):
        rows, data = rows_of(20), DataSection(test="x", limit=limit)
        taken = training_rows(rows, data, seed).text
        for place, text in enumerate(rows.text):
            smaller = training_rows(without(rows, place), data, seed).text
            gone = _difference(taken, smaller)
            assert gone in ([], [text])
            assert len(_difference(smaller, taken)) == len(gone) - (limit == len(rows))
            if not gone:
                assert sorted(smaller) == sorted(taken)


def _difference(many: list[str], fewer: list[str]) -> list[str]:
    left = list(fewer)
    return [text for text in many if text not in left or left.remove(text)]
