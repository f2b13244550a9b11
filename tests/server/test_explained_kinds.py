"""Maps of tags, numbers and continuations: complete, right where the answer is known, shown and served."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from torch import nn

from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.common.types import Reads, Rows
from confide.server.report import read_report
from confide.server.ship.attribute import TOLERANCE, Explainer, explain_run, explainer_of
from confide.server.ship.finished import FinishedRun, NextLogits
from confide.server.ship.goals import HIGHER, LOWER, Asked, goals, split, tag_of
from confide.server.ship.runtime import padded
from confide.server.ship.serve import Bounds, make_app
from confide.server.ship.writer import Writer
from confide.simulations.run import simulate
from confide.tests.tiny import BAD, GOOD, VOCABULARY, run_content, sentences, write_conll, write_csv

TAGS, NUMBERS, WRITES = "token-classification", "regression", "causal-lm"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, bert: Path, wordpiece: Path, gpt2: Path) -> dict[str, Path]:
    """A run of each task that has learned it."""
    runs = {}
    for task, backbone in ((TAGS, wordpiece), (NUMBERS, bert), (WRITES, gpt2)):
        place = tmp_path_factory.mktemp(task)
        content = run_content(backbone, place, place / "run")
        content["model"] |= {"task": task, "train": "full"}
        content["run"]["rounds"] = 15
        rate = 0.003 if task == WRITES else 0.01
        content["training"] = {"learning_rate": rate, "local_steps": 4, "batch_size": 32}
        for name, count in (("train", 240), ("test", 40)):
            texts = [text for text, _ in sentences(count, count)]
            if task == TAGS:
                path = write_conll(place / f"{name}.conll", count, count)
            elif task == NUMBERS:  # ten for a good word, minus five for a bad one
                worth = {**dict.fromkeys(GOOD, 10), **dict.fromkeys(BAD, -5)}
                rows = [(text, 50 + sum(worth.get(word, 0) for word in text.split())) for text in texts]
                path = write_csv(place / f"{name}.csv", rows)
            else:  # what follows hangs on the first word alone
                rng = np.random.default_rng(count)
                rows = [
                    (f"{first}{' film' * int(rng.integers(1, 4))} was {last}",)
                    for first, last in rng.choice([("good", "warm"), ("bad", "cold")], count)
                ]
                path = write_csv(place / f"{name}.csv", rows, ("text",))
            content["data"][name] = str(path)
        runs[task] = simulate(RunConfig.parse(content, "test"))
    return runs


@pytest.fixture(scope="module")
def explainers(folders: dict[str, Path]) -> dict[str, Explainer]:
    return {task: explainer_of(FinishedRun(folder, task)) for task, folder in folders.items()}


def test_a_number_is_explained_in_its_own_unit(folders, explainers: dict[str, Explainer]) -> None:
    """Completeness against the numbers that the model answers, with the empty text made by hand."""
    explainer, text = explainers[NUMBERS], f"the {GOOD[0]} film and {BAD[0]} story"
    found = explainer.explain(text)
    model = FinishedRun(folders[NUMBERS], NUMBERS).merged()
    answer = model.answers(Rows("texts", [text]))[0]["number"]
    tokens, mask = map(torch.from_numpy, padded([[model.pad] * len(model.pieces([text])[0][0])], model.pad))
    mean, deviation = model.scale or (0.0, 1.0)
    with torch.no_grad():
        empty = float(model.module(tokens, torch.ones_like(mask))[0, 0]) * deviation + mean
    assert sum(found.scores) == pytest.approx(answer - empty, rel=TOLERANCE)
    assert found.value == pytest.approx(answer, rel=1e-5)
    assert found.title == f"{answer:.6g}"
    assert found.label == HIGHER
    assert found.words[int(np.argmax(found.scores))] == GOOD[0]
    assert found.words[int(np.argmin(found.scores))] == BAD[0]


def test_each_tag_has_a_map_and_a_word_may_be_named(explainers: dict[str, Explainer]) -> None:
    explainer, text = explainers[TAGS], "ann sees new york"
    maps = explainer.maps(text)
    assert [(m.goal.word, m.label) for m in maps] == [(0, "B-per"), (2, "B-loc"), (3, "I-loc")]
    assert all(not m.refused and m.words == text.split() for m in maps)
    assert maps[0].words[int(np.argmax(maps[0].scores))] == "ann"
    assert maps[2].title.startswith("I-loc for “york” (")
    alone = explainer.explain("ann sees york", word=2)
    assert alone.label == "B-loc"  # after "new" it was another: that word speaks for the tag of the next
    assert maps[2].scores[2] > max(maps[2].scores[:2])
    assert explainer.explain(text, word=1).label == "O"
    assert explainer.explain(text).goal == maps[0].goal
    with pytest.raises(ConfigError, match="allowed: 0 to 3"):
        explainer.explain(text, word=4)
    (nearly,) = explainer.maps("sees it from")  # no entity: the likeliest tag of one
    assert nearly.label != "O"
    assert nearly.value < 0.5


def test_the_next_token_is_explained_by_the_words_before(explainers: dict[str, Explainer]) -> None:
    explainer = explainers[WRITES]
    for first, last in (("good", "warm"), ("bad", "cold")):
        found = explainer.explain(f"{first} film film was")
        assert found.label == last
        assert found.title.startswith(f"next: “{last}” (")
        assert not found.refused
    ids, mask = map(torch.from_numpy, padded([explainer.model.encoded("good film was")[0]], explainer.model.pad))
    with torch.no_grad():
        there, empty = (explainer.model.module(t, mask)[0] for t in (ids, torch.full_like(ids, explainer.model.pad)))
    chosen = int(there.argmax())
    assert sum(explainer.explain("good film was").scores) == pytest.approx(
        float(there[chosen] - empty[chosen]), rel=TOLERANCE
    )
    long = explainer.explain(" ".join(["film"] * 200 + ["was"]))  # loses its beginning, as in training
    assert len(long.words) < 200
    assert long.words[-1] == "was"


class Bag(nn.Module):
    """Logits of the next token that are linear in the embeddings of those before."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(len(VOCABULARY), 6)
        self.weights = nn.Linear(6, len(VOCABULARY), bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.weights(self.table(input_ids).cumsum(1)))


def test_of_a_linear_model_the_score_of_a_word_is_known(explainers: dict[str, Explainer]) -> None:
    torch.manual_seed(3)
    bag, real = Bag(), cast(Writer, explainers[WRITES].model)
    asked = SimpleNamespace(
        **{
            name: getattr(real, name) for name in ("labels", "pad", "scale", "reads", "tokenizer", "as_read", "encoded")
        },
        module=NextLogits(bag),
    )
    found = Explainer(cast(Asked, asked)).explain("good film bad was")
    ids = [VOCABULARY.index(word) for word in found.words]
    with torch.no_grad():
        best = int(bag(torch.tensor([ids])).logits[0, -1].argmax())
        exact = (bag.table.weight[ids] - bag.table.weight[real.pad]) @ bag.weights.weight[best]
    assert found.label == VOCABULARY[best]
    np.testing.assert_allclose(found.scores, exact.numpy(), rtol=1e-4, atol=1e-5)


def test_a_word_without_a_token_keeps_its_place() -> None:
    """A page asks for words by their place between blanks."""

    def encoded(text: str) -> tuple:
        return [2, 7, 8, 9, 3], [None, 0, 2, 3, None], [(0, 0), (0, 3), (0, 3), (0, 4), (0, 0)]

    asked = cast(Asked, SimpleNamespace(reads=Reads(label="tags"), labels=["B-x", "O"], as_read=str, encoded=encoded))
    read = split(asked, "ann \u200b new york unread")
    assert read.words == ["ann", "\u200b", "new", "york"]
    row = np.array([[0, 0], [9, 0], [0, 9], [9, 0], [0, 0]], dtype=np.float32)
    assert [(goal.word, goal.place) for goal in goals(asked, row, read)] == [(0, (1, 0)), (3, (3, 0))]
    assert tag_of(asked, row, read, 2).label == "O"
    for word in (1, 4, -1):
        with pytest.raises(ConfigError, match="allowed: 0 to 3"):
            tag_of(asked, row, read, word)


@pytest.mark.parametrize("task", [TAGS, NUMBERS, WRITES])
def test_taking_words_by_score_changes_the_answer_sooner_than_at_random(folders, task: str) -> None:
    facts = explain_run(FinishedRun(folders[task], task), [], sample=20)
    assert facts["held"] > 0.9
    assert facts["sample"] >= 20
    assert facts["areas"]["deletion"] < facts["areas"]["deletion_random"]
    assert facts["areas"]["insertion"] > facts["areas"]["insertion_random"]
    if task == NUMBERS:
        assert {word for word, _ in facts["words"][HIGHER][:3]} <= {*GOOD}
        assert {word for word, _ in facts["words"][LOWER][:3]} <= {*BAD}
    if task == TAGS:
        assert facts["words"]["B-per"][0][0] in ("ann", "bob", "eve")
        assert "O" not in facts["words"]


def test_the_command_prints_them_and_fills_the_report(folders, confide) -> None:
    texts = {TAGS: "ann sees <b>", NUMBERS: f"{GOOD[0]} film", WRITES: "bad film was"}
    for task, folder in folders.items():
        code, out, err = confide("explain-model", folder, texts[task], "--sample", "6")
        assert code == 0, err
        facts = read_report(folder)["explanation"]
        assert f"{facts['texts'][0]['title']}: " in out
        page = (folder / "report.html").read_text()
        assert facts["texts"][0]["title"] in page
        assert f"Mean {facts['measure']} while words" in page
        assert "<b>:" not in page
    code, _, err = confide("explain-model", folders[TAGS], "a", "--against", folders[NUMBERS])
    assert code != 0
    assert "this is for 'token-classification'" in err


def test_tags_are_explained_over_http_by_word(folders, explainers: dict[str, Explainer]) -> None:
    model = FinishedRun(folders[TAGS], TAGS).merged()
    with TestClient(make_app(model, "a/tagger", "torch", Bounds(), explainers[TAGS].as_json)) as client:
        found = client.post("/explain", json={"text": "ann sees new york", "word": 3}).json()
        assert found["label"] == "I-loc"
        assert found["word"] == 3
        assert json.loads(json.dumps(found)) == found
        assert client.post("/explain", json={"text": "ann sees it"}).json()["word"] == 0
        for word in (9, -1, True, "1", 1.5):
            assert client.post("/explain", json={"text": "ann sees it", "word": word}).status_code == 422
    number = FinishedRun(folders[NUMBERS], NUMBERS).merged()
    with TestClient(make_app(number, "a", "torch", Bounds(), explainers[NUMBERS].as_json)) as client:
        assert client.post("/explain", json={"text": "a film", "word": 0}).status_code == 422
        assert client.post("/explain", json={"text": "a film"}).json()["label"] == HIGHER
