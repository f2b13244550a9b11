"""Recipes of many runs: active learning and ways to learn."""

import json
from pathlib import Path

import numpy as np
import pytest

from confide.cli.progress import watch
from confide.common.config.resolve import resolve
from confide.common.data.active import SCORED
from confide.common.errors import ConfigError, DataError
from confide.common.ledger.verify import audit, find_ledgers
from confide.common.model.loading import model_of
from confide.common.model.zero_shot import as_text, embeddings, zero_shot
from confide.common.types import Rows
from confide.simulations.studies import active, compare, runner, sweep
from confide.tests.tiny import LOCAL, merged, write_conll

ACTIVE = {"strategies": ["margin", "badge"], "start": 4, "add": 5, "rounds": 2, "seeds": 2}


@pytest.fixture
def recipe(content: dict) -> dict:
    return merged(content, {"run": {"rounds": 1}, "model": {"train": "head"}, "active": ACTIVE})


def test_every_strategy_meets_random_choice_on_the_same_number_of_labels(recipe: dict) -> None:
    folder = active.play(recipe, None, watch)
    report = json.loads((folder / "report.json").read_text())
    assert report["labels"] == [16, 36, 56]
    assert [row["strategy"] for row in report["strategies"]] == ["random", "margin", "badge"]
    assert report["seeds"] == [3, 4]
    assert report["goal"] == report["strategies"][0]["accuracy"][-1]
    rows = (folder / "runs" / "margin-3-2.csv").read_text().splitlines()[1:]
    assert len({*rows}) == len(rows) == 56
    assert all(sum(row.endswith(f"site-{site}") for row in rows) == 14 for site in range(1, 5))
    earlier = {*(folder / "runs" / "margin-3-1.csv").read_text().splitlines()}
    assert earlier - {"text,label,site"} < {*rows}
    page = (folder / "report.html").read_text()
    assert "Which rows a site chose was decided there" in page
    assert 'id="curves"' in page
    before = (folder / "results.jsonl").read_text()
    active.play(recipe, None, watch)  # nothing is left to play
    assert (folder / "results.jsonl").read_text() == before


def test_labels_for_an_accuracy_are_read_between_two_points() -> None:
    assert active.labels_for(0.8, [100, 200, 300], [0.5, 0.7, 0.9]) == 250
    assert active.labels_for(0.7, [100, 200, 300], [0.5, 0.7, 0.9]) == 200
    assert active.labels_for(0.4, [100, 200], [0.5, 0.7]) == 100
    assert active.labels_for(0.8, [100, 200], [0.5, 0.7]) is None


def test_under_privacy_every_run_is_charged_and_the_pool_counts_twice(recipe: dict) -> None:
    content = merged(recipe, {"privacy": LOCAL, "active": {"strategies": ["entropy"], "seeds": 1, "rounds": 1}})
    folder = active.play(content, None, watch)
    report = json.loads((folder / "report.json").read_text())
    row = report["strategies"][1]
    ledgers = [audit(path) for path in find_ledgers(folder / "runs" / "ledgers-entropy-3")]
    assert all(found.holds and len(found.datasets[0]["runs"]) == 2 for found in ledgers)
    assert row["epsilon"] == max(found.datasets[0]["epsilon_spent"] for found in ledgers)
    assert LOCAL["epsilon"] < row["epsilon"] <= 2 * LOCAL["epsilon"]
    assert row["pool"][0] == 2 * row["epsilon"]
    assert "A record of the pool counts twice" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"privacy": LOCAL}, "active.strategies: 'badge' received for mode 'local'"),
        ({"active": {"start": 100}}, "and one site has"),
        ({"active": {"rounds": 0}}, "active: rounds: received 0"),
        ({"active": {"strategies": ["best"]}}, "active: strategies.0: received 'best'"),
        ({"data": {"partition": {"kind": "natural", "column": "label"}}}, "deals rows out itself"),
        ({"model": {"task": "masked-lm", "train": "lora"}}, "labels are asked for one class a text"),
        ({"engine": {"ledger": "there"}}, "ledgers of their own"),
    ],
)
def test_what_cannot_be_played_is_refused(recipe: dict, changes: dict, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        active.play(merged(recipe, changes), None, watch)
    assert text in str(caught.value)
    assert SCORED[0] == "random"


def test_ways_to_learn_are_compared(content: dict) -> None:
    names = {"negative": "bad gloomy dull", "positive": "good lovely bright"}
    content = merged(content, {"run": {"rounds": 2}, "compare": {"seeds": 2, "names": names}})
    folder = compare.play(content, None, watch)
    report = json.loads((folder / "report.json").read_text())
    ways = {row["way"]: row for row in report["ways"]}
    assert [*ways] == ["zero-shot", "head only", "LoRA", "full"]
    assert ways["zero-shot"]["trained"] == 0
    assert ways["head only"]["trained"] < ways["LoRA"]["trained"] < ways["full"]["trained"] < ways["full"]["total"]
    assert ways["head only"]["kilobytes"] < ways["LoRA"]["kilobytes"] < ways["full"]["kilobytes"]
    assert all(len(ways[name]["rounds"]) == 2 for name in ("head only", "LoRA", "full"))
    assert len(report["runs"]) == 1 + 2 * 3
    assert 'id="ways"' in (folder / "report.html").read_text()


def test_ways_and_sweeps_are_judged_by_the_main_figure_of_the_task(
    content: dict, wordpiece: Path, tmp_path: Path, real_plots: None
) -> None:
    """Of tags span F1; accuracy counts words without an entity, which are most."""
    data = {name: str(write_conll(tmp_path / f"{name}.conll", 60, i)) for i, name in enumerate(("train", "test"))}
    model = {"backbone": str(wordpiece), "task": "token-classification"}
    content = merged(content, {"run": {"rounds": 1}, "model": model, "data": data})
    ways = {"seeds": 1, "zero_shot": False, "ways": {"LoRA": []}}
    folder = compare.play(merged(content, {"compare": ways}), tmp_path / "ways", watch)
    report, (one,) = json.loads((folder / "report.json").read_text()), folder.glob("runs/*/report.json")
    (way,), run = report["ways"], json.loads(one.read_text())
    assert report["main"]["name"] == "span F1"
    assert way["value"] == run["after"]["span_f1"] != run["after"]["accuracy"]
    assert way["rounds"] == [run["rounds"][0]["span_f1"]]
    page = (folder / "report.html").read_text()
    assert "Span F1 on the public test set" in page
    assert "span F1 on rows of the test set" in page
    cells = {"seeds": 1, "settings": {"all": []}, "defences": {"mean": []}, "attacks": {"none": []}}
    folder = sweep.play(merged(content, {"sweep": cells}), tmp_path / "swept", watch)
    (row,) = json.loads((folder / "report.json").read_text())["settings"][0]["rows"]
    assert row["clean"] == way["value"]
    assert "Each cell is the span F1" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"compare": {"ways": {"zero-shot": []}}}, "compare.ways: 'zero-shot' received"),
        ({"compare": {"ways": {"odd": ["model.train=half"]}}}, "compare.ways.odd: model.train: received 'half'"),
        ({"compare": {"names": {"nobody": "x"}}}, "compare.names: 'nobody' received"),
        ({"model": {"task": "masked-lm"}, "compare": {}}, "compare.zero_shot: true received for task 'masked-lm'"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(content: dict, changes: dict, text: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        compare.play(merged(content, changes), None, watch)
    assert text in str(caught.value)


def test_zero_shot_finds_the_class_whose_name_is_the_text(make_config) -> None:
    """The text of a class and its name are one point: cosine 1."""
    model = model_of(resolve(make_config()))
    names = ["the good film", "a dark story", "quite lovely"]
    rows = Rows("test", [names[2], names[0], names[1]], labels=np.zeros(3, dtype=np.int64))
    np.testing.assert_array_equal(zero_shot(model, model.encode(rows), np.arange(3), names), [2, 0, 1])
    np.testing.assert_allclose(np.linalg.norm(embeddings(model, names), axis=1), 1, rtol=1e-5)
    assert as_text("card_arrival-late ") == "card arrival late"


def test_a_comparison_goes_on_where_it_was_stopped(content: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    content = merged(content, {"run": {"rounds": 1}, "compare": {"seeds": 1, "zero_shot": False}})
    real, played = runner.simulate, []

    def stops(config, **more):
        played.append(config.model.train)
        if len(played) == 2:
            raise KeyboardInterrupt
        return real(config, **more)

    monkeypatch.setattr(runner, "simulate", stops)
    with pytest.raises(KeyboardInterrupt):
        compare.play(content, None, watch)
    folder = compare.play(content, None, watch)
    assert played == ["head", "lora", "lora", "full"]
    assert Path(folder / "report.html").is_file()
