"""Models of tags, numbers, images and continuations: exported, measured, asked from a file and over HTTP."""

import base64
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from confide.common.errors import ConfigError, DataError
from confide.common.model.backbones import DEMO_VIT
from confide.common.types import Rows
from confide.server.evaluation import evaluate
from confide.server.ship.compress import make_variants, measure
from confide.server.ship.finished import FinishedRun
from confide.server.ship.predict import Format, load, predict, predict_file, read, written_as
from confide.server.ship.runtime import UNREAD, VARIANTS, OnnxModel, by_word
from confide.server.ship.serve import Bounds, make_app
from confide.server.ship.writer import Writer
from confide.simulations.run import simulate
from confide.tests.simulations.test_image_tasks import write_images
from confide.tests.tiny import sentences, write_conll, write_csv

IMAGES, BOTH, TAGS, NUMBERS = (
    *("image-classification", "image-text-classification", "token-classification", "regression"),
)


@pytest.fixture
def finished(make_config, bert: Path, wordpiece: Path, gpt2: Path, tmp_path: Path):
    """A short run of a task."""

    def make(task: str, rounds: int = 3) -> Path:
        model = {"task": task, "backbone": str({TAGS: wordpiece, "causal-lm": gpt2}.get(task, bert))}
        data = {}
        for name, count in (("train", 160), ("test", 60)):
            if task == TAGS:
                path = write_conll(tmp_path / f"{name}.conll", count, count)
            elif task == NUMBERS:
                rows = [(text, 10 + len(text)) for text, _ in sentences(count, count)]
                path = write_csv(tmp_path / f"{name}.csv", rows)
            elif task in (IMAGES, BOTH):
                path = write_images(tmp_path / name, count, count)
            else:
                path = write_csv(tmp_path / f"{name}.csv", [*sentences(count, count)])
            data[name] = str(path)
        if task == IMAGES:
            model |= {"backbone": DEMO_VIT, "train": "full"}
        if task == BOTH:
            model |= {"image_backbone": DEMO_VIT, "lora": {"rank": 2, "modules_to_save": ["image_encoder"]}}
        return simulate(make_config(model=model, data=data, run={"rounds": rounds}))

    return make


def answered(model, source: str, format_: Format = "csv") -> list[dict]:
    out = io.StringIO()
    predict(model, read(source, format_), out, written_as(format_, None))
    text = out.getvalue()
    if format_ == "jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text)))


def renamed(source: str) -> str:
    """The same rows without their answers."""
    path = Path(source).with_name("asked.csv")
    with Path(source).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "label"]
    write_csv(path, [tuple(row[name] for name in names) for row in rows], tuple(names))
    return str(path)


def by_the_task(run: FinishedRun) -> dict[str, float]:
    """What the run's own evaluation says of its test set."""
    records = run.model.encode(run.rows())
    return evaluate(run.model, run.adapter, records, np.arange(len(records))).metrics


@pytest.mark.slow
@pytest.mark.parametrize("task", [IMAGES, BOTH, NUMBERS])
def test_variants_answer_a_file_as_the_run_does(finished, task: str) -> None:
    folder = finished(task)
    assert make_variants(folder) == ["onnx", "int8"]
    facts = {row["name"]: row for row in measure(folder)["variants"]}
    assert facts["onnx"]["accuracy"] == pytest.approx(facts["torch"]["accuracy"], abs=1e-3)
    assert facts["onnx"]["noisy"] is None
    run = FinishedRun(folder, task)
    assert load(folder, "onnx")[0].reads == run.model.task.READS  # asked of the graph, without torch
    found = by_the_task(run)
    measured = "r2" if task == NUMBERS else "accuracy"
    assert facts["torch"]["accuracy"] == pytest.approx(found[measured], abs=1e-5)  # the task's own way to ask
    assert ("R²" if task == NUMBERS else "accuracy") in (folder / "report.html").read_text()
    source = renamed(run.config.data.test)
    whole, exact = (answered(load(folder, name)[0], source) for name in ("torch", "onnx"))
    if task == NUMBERS:
        numbers = np.array([[float(row["predicted"]) for row in rows] for rows in (whole, exact)])
        np.testing.assert_allclose(*numbers, rtol=1e-3)
        assert 20 < numbers.mean() < 60  # letters, not standard deviations
        assert "probability" not in whole[0]
    else:
        assert [row["predicted"] for row in whole] == [row["predicted"] for row in exact]
        assert all(0.5 <= float(row["probability"]) <= 1 for row in whole)


@pytest.mark.slow
def test_every_word_gets_a_tag(finished, tmp_path: Path) -> None:
    folder = finished(TAGS)
    make_variants(folder)
    facts = measure(folder)
    assert facts["measure"] == "span F1"
    run = FinishedRun(folder, TAGS)
    assert facts["variants"][0]["accuracy"] == pytest.approx(by_the_task(run)["span_f1"], abs=1e-6)
    texts = ["a b", " ".join(["word"] * 60)]  # one is longer than what is read
    write_csv(tmp_path / "asked.csv", [(text,) for text in texts], ("text",))
    for name in ("torch", "onnx", "int8"):
        rows = answered(load(folder, name)[0], str(tmp_path / "asked.csv"))
        tags = [row["predicted"].split() for row in rows]
        assert [len(one) for one in tags] == [2, 60]
        assert tags[1][0] != UNREAD == tags[1][-1]
        assert set(tags[0]) <= {*run.labels}
    (tmp_path / "asked.jsonl").write_text(json.dumps({"text": "a b"}) + "\n")
    model = load(folder, "onnx")[0]
    assert answered(model, str(tmp_path / "asked.jsonl"), "jsonl")[0]["predicted"] == tags[0]
    with TestClient(make_app(model, "name", "onnx", Bounds())) as client:
        (found,) = client.post("/predict", json={"texts": ["a b"]}).json()["predictions"]
        assert found["words"] == ["a", "b"]
        assert found["tags"] == tags[0]
        assert client.get("/health").json()["task"] == TAGS
        assert client.get("/").status_code == 200


def test_a_word_is_answered_by_its_first_token_and_one_without_tokens_by_none() -> None:
    logits = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = by_word(
        logits, [None, 0, 0, 2, None], 4
    )  # a special token, a word of two pieces, one of none, one, the end
    np.testing.assert_array_equal(found[[0, 2]], logits[[1, 3]])
    assert np.isnan(found[[1, 3]]).all()


def test_images_are_read_without_torch_and_bad_ones_are_named(finished, tmp_path: Path) -> None:
    folder = finished(IMAGES, rounds=1)
    make_variants(folder)
    place = folder / VARIANTS / "int8"
    assert not (place / "tokenizer.json").exists()
    Image.new("L", (20, 10), 90).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    source = write_csv(tmp_path / "asked.csv", [("a.png",), ("b.png",)], ("image",))
    with pytest.raises(DataError, match=r"asked\.csv: row 3, column 'image': not a readable PNG"):
        predict_file(OnnxModel(place), str(source), tmp_path / "out.csv", "csv")
    assert not (tmp_path / "out.csv").exists()
    write_csv(source, [("a.png",)], ("image",))
    script = (
        "import sys; from pathlib import Path; from confide.server.ship.predict import load, predict_file\n"
        f"predict_file(load(Path({str(place)!r}))[0], {str(source)!r}, Path({str(tmp_path / 'out.csv')!r}), 'csv')\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    assert (tmp_path / "out.csv").read_text().startswith("image,predicted,probability\na.png,")


def test_images_over_http(finished, tmp_path: Path) -> None:
    folder = finished(BOTH, rounds=1)
    model, _ = load(folder, "torch")
    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    Image.new("L", (6000, 6000)).save(tmp_path / "vast.png")  # 35 kB
    image, vast = (base64.b64encode((tmp_path / f"{name}.png").read_bytes()).decode() for name in ("a", "vast"))
    with TestClient(make_app(model, "name", "torch", Bounds())) as client:
        found = client.post("/predict", json={"texts": ["good", "bad"], "images": [image, image]}).json()["predictions"]
        assert [{*one["probabilities"]} for one in found] == [{"lying", "upright"}] * 2
        for content, reason in (
            ({"texts": ["good"]}, "images"),
            ({"texts": ["good"], "images": ["a.png"]}, "not valid base64"),
            ({"texts": ["good"], "images": [base64.b64encode(b"no").decode()]}, "not a readable"),
            ({"texts": ["good"], "images": [image, image]}, "1 texts and 2 images"),
            ({"texts": ["good"] * 65, "images": [image] * 65}, "allowed: 64"),
            ({"texts": ["good"] * 2, "images": [image, vast]}, "an image of 6000 × 6000; at most 16,777,216 pixels"),
        ):
            reply = client.post("/predict", json=content)
            assert reply.status_code == 422
            assert reason in reply.json()["error"]
        assert client.get("/").status_code == 404  # the page is for texts
        assert client.post("/predict", content=b"x" * (Bounds().body + 1)).status_code == 400  # images are large
        assert client.post("/predict", content=b"x" * (16 * Bounds().body + 1)).status_code == 413


def test_texts_are_continued(finished) -> None:
    """Greedily, and as the module itself says token by token."""
    import torch

    folder = finished("causal-lm")
    model, _ = load(folder)
    assert isinstance(model, Writer)
    text = sentences(1, 3)[0][0]
    (answer,) = model.answers(Rows("rows", [text]))
    run = FinishedRun(folder, "causal-lm")
    module, tokenizer = run.classifier(), run.tokenizer
    ids = tokenizer(text)["input_ids"]
    wanted: list[int] = []
    with torch.no_grad():
        while len(wanted) < model.generator.tokens:
            wanted.append(int(module(input_ids=torch.tensor([ids + wanted])).logits[0, -1].argmax()))
            if wanted[-1] == tokenizer.eos_token_id:
                break
    assert answer["continuation"] == tokenizer.decode(wanted, skip_special_tokens=True)
    told: list[str] = []
    model.tell(text, told.append)
    assert "".join(told) == answer["continuation"]
    assert len(told) > 1
    prompt = model.prompt((("user", text),))
    written, drawn = model.write(prompt, 3), model.write(prompt, 3, temperature=2.0)
    assert (written.prompt_tokens, written.tokens, written.ended) == (len(ids), 3, False)
    assert answer["continuation"].startswith(written.text)
    assert drawn.tokens <= 3
    with pytest.raises(DataError, match="one message, of role 'user'"):
        model.prompt((("system", "a"), ("user", text)))


def test_what_a_task_has_not_is_refused(finished, tmp_path: Path) -> None:
    folder = finished(BOTH, rounds=1)
    with pytest.raises(
        ConfigError, match="this is for 'regression', 'sequence-classification', 'token-classification'"
    ):
        make_variants(folder, public=["a text"], heads=0.5)
    (tmp_path / "asked.txt").write_text("good\n")
    with pytest.raises(DataError, match=r"column 'image' is missing; the columns are: text; name it with --text"):
        answered(load(folder)[0], str(tmp_path / "asked.txt"), "text")
