"""Maps of words: complete, faithful where the answer is known beforehand, and withheld when they do not add up."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.server.report import amend_report, read_report
from confide.server.ship import attribute
from confide.server.ship.attribute import TOLERANCE, Explainer, explain_run
from confide.server.ship.finished import FinishedRun, TorchModel
from confide.simulations.run import simulate
from confide.tests.tiny import BAD, GOOD, run_content, save_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    place = tmp_path_factory.mktemp("explained")
    content = run_content(bert, save_data(place), place / "run")
    content["run"]["rounds"] = 60
    content["model"]["train"] = "full"
    content["training"]["learning_rate"] = 0.01
    return simulate(RunConfig.parse(content, "test"))


@pytest.fixture(scope="module")
def explainer(folder: Path) -> Explainer:
    assert read_report(folder)["after"]["accuracy"] > 0.9
    return Explainer(FinishedRun(folder).merged())


def test_scores_add_up_to_the_logits_difference_from_padding(explainer: Explainer) -> None:
    """Completeness (Sundararajan et al. 2017, proposition 1), with the baseline made by hand."""
    model, text = cast(TorchModel, explainer.model), f"the {GOOD[0]} film"
    found = explainer.explain(text)
    tokens, mask = model.batch(model.ids([text]))
    marks = torch.isin(tokens, torch.tensor(model.tokenizer.all_special_ids))
    empty = torch.where(marks, tokens, model.pad)
    with torch.no_grad():
        difference = (model.module(tokens, mask) - model.module(empty, mask))[0, model.labels.index(found.label)]
    assert sum(found.scores) == pytest.approx(float(difference), rel=TOLERANCE)
    assert found.delta <= TOLERANCE
    assert not found.refused


def test_the_word_that_decides_has_the_highest_score(explainer: Explainer) -> None:
    for words, label in ((GOOD, "positive"), (BAD, "negative")):
        for word in words:
            found = explainer.explain(f"the film and {word} story")
            assert found.label == label
            assert found.words == ["the", "film", "and", word, "story"]
            assert int(np.argmax(found.scores)) == 3
    other = explainer.explain(f"the film and {GOOD[0]} story", target=explainer.model.labels.index("negative"))
    assert other.label == "negative"
    assert min(other.scores) == other.scores[3]


def test_words_are_those_of_the_text_and_pieces_count_together(explainer: Explainer) -> None:
    found = explainer.explain("  The   GOOD film, unwatchable ")
    assert found.words[0].lower() == "the"
    assert len(found.words) == len(found.scores)
    with pytest.raises(ConfigError, match="give a text"):
        explainer.explain("   ")


def test_taking_words_by_score_lowers_the_answer_sooner_than_at_random(explainer: Explainer) -> None:
    text = f"the film and {GOOD[0]} story of this"
    found = explainer.explain(text)
    curves = explainer.curves(text, found, np.random.default_rng(0))
    assert curves["deletion"][0] == pytest.approx(found.value, rel=1e-4)
    assert curves["deletion"][-1] == pytest.approx(curves["insertion"][0], rel=1e-4)
    assert curves["insertion"][-1] == pytest.approx(found.value, rel=1e-4)
    assert curves["deletion"].mean() < curves["deletion_random"].mean()


def test_a_map_that_does_not_add_up_is_withheld(explainer: Explainer, monkeypatch, folder: Path, tmp_path) -> None:
    monkeypatch.setattr(attribute, "_STEPS", (1,))
    monkeypatch.setattr(attribute, "TOLERANCE", 1e-9)
    facts = explain_run(FinishedRun(folder), ["a good film"], sample=4)
    assert facts["texts"][0]["refused"]
    assert facts["held"] < 1
    amend_report(folder, "explanation", facts)
    assert "withheld: the scores miss" in (folder / "report.html").read_text()


def test_two_models_stand_side_by_side_in_the_report(folder: Path, make_config, wordpiece: Path) -> None:
    other = simulate(make_config(run={"rounds": 1, "name": "other"}, model={"backbone": str(wordpiece)}))
    facts = explain_run(FinishedRun(folder), ["a <b>good</b> film"], against=FinishedRun(other), sample=12)
    assert facts["against"] == "other"
    assert len(facts["texts"][0]["nearest"]) == 3
    assert facts["texts"][0]["nearest"][0]["cosine"] >= facts["texts"][0]["nearest"][1]["cosine"]
    assert facts["held"] > 0.9
    assert facts["areas"]["deletion"] < facts["areas"]["deletion_random"]
    positive = {word for word, _ in facts["words"]["positive"]}
    assert not positive & {*BAD}
    amend_report(folder, "explanation", facts)
    page = (folder / "report.html").read_text()
    assert 'id="explanation"' in page
    assert 'id="faithfulness"' in page
    assert "other says" in page
    assert "<b>good</b>" not in page  # a text is no HTML
