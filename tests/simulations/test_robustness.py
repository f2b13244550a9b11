"""`confide evaluate robustness` on a finished run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from confide.cli.main import main
from confide.common.errors import ConfigError
from confide.common.types import Rows
from confide.server.evaluation import probabilities
from confide.server.ship.finished import FinishedRun
from confide.simulations.attacks.robustness import Extent, Subject, evaluate_robustness
from confide.simulations.run import simulate


@pytest.fixture
def finished(make_config) -> Path:
    return simulate(make_config(run={"rounds": 15}))


def test_the_command_adds_to_the_report(finished: Path, monkeypatch, capsys) -> None:
    options = ["--rows", "40", "--attacked", "10", "--budget", "60", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["confide", "evaluate", "robustness", str(finished), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    report = json.loads((finished / "report.json").read_text())
    facts = report["robustness"]
    assert facts["rows"] == 40
    assert {row["name"] for row in facts["perturbations"]} >= {"characters", "homoglyph", "word drop", "casing"}
    perturbed = {row["strength"]: row["accuracy"] for row in facts["perturbations"] if row["name"] == "characters"}
    assert perturbed[0.2] < facts["clean"]  # unknown words tell nothing
    assert 0 < facts["blackbox"]["success"] <= 1
    assert facts["blackbox"]["queries"] <= 60
    successes = [row["success"] for row in facts["embeddings"]]
    assert successes == sorted(successes)  # a larger radius holds the smaller
    assert [row["name"] for row in facts["sites"]] == ["site-1", "site-2", "site-3", "site-4"]
    assert sum(row["records"] for row in facts["sites"]) == 240
    classes = {row["name"]: row for row in facts["slices"] if row["name"].startswith("class")}
    assert sum(row["rows"] for row in classes.values()) == 40
    right = sum(row["accuracy"] * row["rows"] for row in classes.values())
    assert right / 40 == pytest.approx(facts["clean"])
    html = (finished / "report.html").read_text()
    assert "Perturbed inputs" in html
    assert "<mark>" in html
    assert "attack by queries" in out


def test_misspelled_words_that_are_read_as_known_ones_cost_less(make_config, tmp_path: Path) -> None:
    facts = []
    for words in ("none", "vocabulary"):
        out = str(tmp_path / words)
        folder = simulate(make_config(model={"spelling": words}, run={"rounds": 15, "output": out}))
        facts.append(evaluate_robustness(folder, lambda *_: None, Extent(rows=100, attacked=10, budget=60)))
    plain, spelled = facts
    noisy = [next(row["accuracy"] for row in f["perturbations"] if row["strength"] == 0.2) for f in facts]
    assert spelled["clean"] == plain["clean"]  # every word of these texts is known
    assert plain["clean"] - noisy[0] > 2 * (spelled["clean"] - noisy[1])
    assert spelled["blackbox"]["success"] < plain["blackbox"]["success"]
    assert plain["spelling"] is None
    assert spelled["spelling"] == {"words": "vocabulary", "changed": 0.0}
    page = (tmp_path / "vocabulary" / "report.html").read_text()
    assert "Misspelled words are read as known ones (vocabulary)" in page


def test_the_model_is_the_one_of_the_report(finished: Path) -> None:
    subject = Subject(finished)
    rows = subject.rows(1000)
    accuracy = (subject.ask(rows.text).argmax(1) == np.asarray(rows.labels)).mean()
    assert accuracy == pytest.approx(json.loads((finished / "report.json").read_text())["after"]["accuracy"])


def test_the_merged_model_and_known_texts_answer_as_the_run_s_own(finished: Path) -> None:
    subject, run = Subject(finished), FinishedRun(finished)
    texts = [*subject.rows(20).text, subject.rows(20).text[0].upper()]
    records = run.model.encode(Rows("texts", texts, labels=np.zeros(len(texts), dtype=np.int64)))
    wanted = probabilities(run.model, run.adapter, records)
    np.testing.assert_allclose(subject.ask(texts), wanted, atol=1e-5)
    np.testing.assert_array_equal(subject.ask(texts), subject.ask(texts))  # which are read once


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finished run"):
        evaluate_robustness(tmp_path, lambda *_: None)
