"""Runs on two texts a record, and on several classes a record, from a file to `pipeline()`."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from transformers import pipeline

import confide
from confide.client.check.run import check_source
from confide.client.labelling import import_labels
from confide.common.errors import ConfigError, DataError
from confide.common.types import Rows
from confide.server.ship.compress import make_student, make_variants, measure
from confide.server.ship.distil import DistillationConfig
from confide.server.ship.plain import export_plain
from confide.server.ship.predict import Columns, columns_of, load, predict, predict_file, read
from confide.server.ship.requests import Bounds
from confide.server.ship.runtime import OnnxModel
from confide.server.ship.serve import make_app
from confide.simulations.run import simulate
from confide.tests.rings import slow
from confide.tests.tiny import BAD, GOOD, NEUTRAL, save_wordpiece, with_types, write_csv

TASK = {"task": "multi-label-classification"}


def pairs(path: Path, count: int, seed: int) -> Path:
    """Whether two texts are of one mood."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(count):
            one, other = rng.integers(2, size=2)
            texts = (" ".join([*rng.choice(GOOD if mood else BAD, 2), rng.choice(NEUTRAL)]) for mood in (one, other))
            file.write(
                json.dumps({"premise": next(texts), "hypothesis": next(texts), "label": int(one == other)}) + "\n"
            )
    return path


def lists(path: Path, count: int, seed: int) -> Path:
    """Both moods, one, or none."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(count):
            labels = [mood for mood in ("good", "bad") if rng.integers(2)]
            words = [
                *rng.choice(NEUTRAL, 3),
                *(word for m in labels for word in rng.choice(GOOD if m == "good" else BAD, 2)),
            ]
            file.write(json.dumps({"text": " ".join(rng.permutation(words)), "label": labels}) + "\n")
    return path


@pytest.fixture
def two_texts(make_config, tmp_path: Path):
    backbone = with_types(save_wordpiece(tmp_path / "typed"))

    def make(**changes):
        sources = {
            "train": str(pairs(tmp_path / "train.jsonl", 120, 1)),
            "test": str(pairs(tmp_path / "test.jsonl", 40, 2)),
        }
        columns = {"text": "premise", "text_pair": "hypothesis", "label": "label"}
        return make_config(**{"data": sources | columns, "model": {"backbone": str(backbone)}} | changes)

    return make


@pytest.fixture
def several(make_config, tmp_path: Path):
    def make(**changes):
        sources = {
            "train": str(lists(tmp_path / "train.jsonl", 160, 1)),
            "test": str(lists(tmp_path / "test.jsonl", 60, 2)),
        }
        return make_config(**{"data": sources} | changes)

    return make


@pytest.mark.parametrize("mode", ["none", "distributed", *slow("local", "client")])
@pytest.mark.parametrize("kind", ["two_texts", "several"])
def test_every_mode_plays(request: pytest.FixtureRequest, kind: str, mode: str, local: dict) -> None:
    rate = {"sampling_rate": 1.0} if mode == "client" else {}
    privacy = {"mode": "none"} if mode == "none" else {**local, "mode": mode} | rate
    if mode == "client":
        privacy = {"mode": mode, "epsilon": 20.0, "clip": 1.0, "sampling_rate": 1.0}
    run = simulate(request.getfixturevalue(kind)(privacy=privacy))
    report = json.loads((run / "report.json").read_text())
    assert all(not line["failed"] for line in report["rounds"])
    assert report["model"]["task"] == ("sequence-classification" if kind == "two_texts" else TASK["task"])
    assert report["after"].keys() >= {"accuracy", "macro_f1"}


def test_several_classes_are_learned(several) -> None:
    run = simulate(several(run={"rounds": 40}, training={"local_steps": 4, "learning_rate": 0.03}))
    after = json.loads((run / "report.json").read_text())["after"]
    assert after["macro_f1"] > 0.9
    assert after["micro_f1"] > 0.9
    found = confide.load(run).predict(texts=[" ".join([*GOOD[:2], *NEUTRAL[:3]]), " ".join([*BAD[:2], *NEUTRAL[:3]])])
    assert [one["labels"] for one in found] == [["good"], ["bad"]]


def test_two_texts_are_asked_served_and_shipped(two_texts, tmp_path: Path) -> None:
    run = simulate(two_texts(model={"backbone": two_texts().model.backbone, "pooling": "model"}, run={"rounds": 2}))
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()][:6]
    asked = {"texts": [row["premise"] for row in rows], "text_pairs": [row["hypothesis"] for row in rows]}
    wanted = confide.load(run).predict(**asked)
    with pytest.raises(ConfigError, match="text_pairs: 0 received"):
        confide.load(run).predict(texts=asked["texts"])
    model, _ = load(run)
    out = io.StringIO()
    predict(model, read(str(tmp_path / "test.jsonl"), "jsonl"), out, "csv", columns=Columns("premise", "hypothesis"))
    assert columns_of(run, ["premise", "hypothesis", "text"]) == Columns("premise", "hypothesis")
    assert columns_of(run, ["text", "hypothesis"]) == Columns("text", "hypothesis")
    assert columns_of(run, ["body"]) == Columns("premise", "hypothesis")  # which the refusal names
    answers = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["predicted"] for row in answers[:6]] == [one["label"] for one in wanted]
    with TestClient(make_app(model, "a", "torch", Bounds())) as client:
        assert client.post("/predict", json=asked).json()["predictions"] == wanted
        assert client.post("/predict", json={"texts": ["a"]}).status_code == 422
        assert client.post("/predict", json=asked | {"text_pairs": ["a"]}).status_code == 422
        assert client.get("/").status_code == 404  # the page has one field
    export_plain(run, tmp_path / "plain")
    assert 'answer({"text": "a text", "text_pair": "another"})' in (tmp_path / "plain" / "README.md").read_text()
    piped = pipeline("text-classification", str(tmp_path / "plain"))
    found: Any = piped([{"text": row["premise"], "text_pair": row["hypothesis"]} for row in rows])
    assert [one["label"] for one in found] == [one["label"] for one in wanted]
    np.testing.assert_allclose([one["score"] for one in found], [one["probability"] for one in wanted], atol=1e-5)
    make_variants(run)
    exact = OnnxModel(run / "variants" / "onnx").answers(model_rows := read_pairs(asked))
    np.testing.assert_allclose(
        [one["probability"] for one in exact],
        [one["probability"] for one in wanted],
        atol=1e-3,
        err_msg=str(model_rows),
    )
    assert measure(run, limit=20)["variants"]
    with pytest.raises(ConfigError, match="two texts a record; this is for models of one"):
        make_student(run, "1", ["a"], DistillationConfig(steps=1))


def read_pairs(asked: dict[str, list[str]]):
    return Rows("rows", asked["texts"], pair=asked["text_pairs"])


@pytest.mark.slow
def test_several_classes_are_asked_and_shipped(several, tmp_path: Path) -> None:
    backbone = several().model.backbone
    run = simulate(several(model={"backbone": backbone, "pooling": "model"}, run={"rounds": 2}))
    texts = [json.loads(line)["text"] for line in (tmp_path / "test.jsonl").read_text().splitlines()][:6]
    wanted = confide.load(run).predict(texts=texts)
    model, _ = load(run)
    predict_file(model, str(tmp_path / "test.jsonl"), tmp_path / "answers.csv", "jsonl")
    answers = list(csv.DictReader(io.StringIO((tmp_path / "answers.csv").read_text())))
    assert [json.loads(row["predicted"]) for row in answers[:6]] == [one["labels"] for one in wanted]
    export_plain(run, tmp_path / "plain")
    assert 'pipeline("text-classification", ".", top_k=None)' in (tmp_path / "plain" / "README.md").read_text()
    piped: Any = pipeline("text-classification", str(tmp_path / "plain"), top_k=None)
    for one, answer in zip(piped(texts), wanted, strict=True):
        assert {row["label"]: row["score"] for row in one} == pytest.approx(answer["probabilities"], abs=1e-5)
    make_variants(run)
    exact = OnnxModel(run / "variants" / "onnx")
    assert exact.reads.label == "classes"
    assert [one["labels"] for one in exact.answers(Rows("rows", texts))] == [one["labels"] for one in wanted]


def test_the_check_of_rows_compares_both_texts(tmp_path: Path) -> None:
    """A premise with three hypotheses is no copy."""
    rows = [(f"premise {i // 3} {i // 3}", f"hypothesis {i}", ("no", "yes")[i % 2]) for i in range(60)]
    source = write_csv(tmp_path / "rows.csv", [*rows, rows[4], ("alone", "", "no")], ("text", "b", "label"))
    alone = check_source(str(source), tmp_path / "alone", backbone=None)
    both = check_source(str(source), tmp_path / "both", backbone=None, pair="b")
    assert len(alone.left_out) > 30
    assert len(both.left_out) == 2  # a copy of both, and a row without a second text
    with (tmp_path / "both" / "cleaned.csv").open() as file:
        assert csv.DictReader(file).fieldnames == ["text", "b", "label"]
    with pytest.raises(DataError, match="column 'nosuch' is missing"):
        check_source(str(source), tmp_path / "none", backbone=None, pair="nosuch")


def test_labels_that_come_back_keep_the_other_columns(tmp_path: Path) -> None:
    pool = write_csv(tmp_path / "pool.csv", [("a", "b"), ("c", "d")], ("text", "second"))
    answers = write_csv(tmp_path / "answers.csv", [("1", "a", "yes")], ("row", "text", "label"))
    import_labels(answers, str(pool), tmp_path / "out")
    assert (tmp_path / "out" / "train.csv").read_text().splitlines() == ["text,second,label", "a,b,yes"]


def test_a_plain_folder_gives_no_types_that_the_run_did_not_have(make_config, gpt2: Path, tmp_path: Path) -> None:
    """GPT-2 adds the embedding of a token for each type; its tokenizer may be BERT's."""
    backbone = with_types(Path(shutil.copytree(gpt2, tmp_path / "typed")))
    card = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(card | {"pad_token_id": 0}))
    run = simulate(make_config(model={"backbone": str(backbone), "pooling": "model"}, run={"rounds": 1}))
    texts = ["good film", "a story was bad"]
    wanted = confide.load(run).predict(texts=texts)
    export_plain(run, tmp_path / "plain")
    piped: Any = pipeline("text-classification", str(tmp_path / "plain"), top_k=None)
    for one, answer in zip(piped(texts), wanted, strict=True):
        assert {row["label"]: row["score"] for row in one} == pytest.approx(answer["probabilities"], abs=1e-5)
