"""Every export of every task, and of ten architectures and more, asked by a process without confide: it answers as
`confide predict` does, with the same names, also after saving and loading, and a push would take all files along.

The script is `asked_alone.py`; it says how far each answer is from what was wanted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.common.model.backbones import DEMO_VIT
from confide.common.types import Rows
from confide.server.ship.compress import make_variants
from confide.server.ship.finished import FinishedRun
from confide.server.ship.plain import export_plain
from confide.server.ship.predict import load
from confide.server.ship.sentences import export_sentences
from confide.simulations.run import simulate
from confide.tests import asked_alone
from confide.tests.architectures import save_architecture
from confide.tests.asked_alone import Case
from confide.tests.server.test_plain import TEXTS, coloured, save_vit
from confide.tests.simulations.test_image_tasks import write_images
from confide.tests.simulations.test_two_texts_runs import lists, pairs
from confide.tests.tiny import merged, run_content, save_data, save_wordpiece, sentences, with_types, write_conll
from confide.tests.tiny import write_csv as write_rows

APART = 1e-5
CLASSIFIERS = {
    **dict.fromkeys(("bert", "electra", "albert", "distilbert", "mpnet", "modernbert", "deberta-v3", "gemma3"), "mean"),
    **dict.fromkeys(("roberta", "xlm-r"), "first"),
    **dict.fromkeys(("opt", "llama", "qwen3"), "last"),
}
"""by the pooling of the head that is no auto class's"""
WRITERS = ("gpt2", "gpt-neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3")
ALL = {"lora": {"targets": "all-linear"}}


class Workshop:
    """Runs, exports and cases in one folder."""

    def __init__(self, place: Path) -> None:
        self.place = save_data(place)
        self.cases: list[Case] = []

    def run(self, name: str, backbone: Path, model: dict[str, Any], data: dict[str, Any] | None = None) -> Path:
        content = run_content(backbone, self.place, self.place / name)
        changes = {"run": {"rounds": 1}, "model": model, "data": data or {}}
        return simulate(RunConfig.parse(merged(content, changes), name))

    def backbone(self, name: str) -> Path:
        folder = self.place / "backbones" / name
        return folder if folder.is_dir() else save_architecture(name, folder)

    def plain(self, run: Path, backbone: Path, task: str, kind: str, asked: Case) -> None:
        """A plain folder, and the adapter beside it."""
        folder = str(self.place / f"{run.name}-plain")
        export_plain(run, Path(folder), adapter=True, base="somebody/backbone")
        facts = {"name": run.name, "folder": folder, **asked}
        self.cases.append({**facts, "kind": "piped", "task": task})
        if "images" not in asked:
            facts["given"] = [one["text"] if isinstance(one, dict) else one for one in asked["given"]]
        self.cases.append({**facts, "kind": "peft", "class": f"AutoModelFor{kind}", "base": str(backbone)})

    def sentences(self, run: Path, asked: Case) -> None:
        folder = self.place / f"{run.name}-sentences"
        export_sentences(run, folder)
        self.cases.append({"name": run.name, "kind": "encoded", "folder": str(folder), **asked})

    def onnx(self, run: Path, asked: Case) -> None:
        make_variants(run)
        self.cases.append({"name": run.name, "kind": "onnx", "folder": str(run / "variants" / "onnx"), **asked})

    def answered(self) -> list[dict[str, Any]]:
        """What the script says of all cases."""
        path = self.place / "cases.json"
        path.write_text(json.dumps(self.cases))
        done = subprocess.run(
            [sys.executable, "-I", asked_alone.__file__, str(path)], capture_output=True, text=True, cwd="/"
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    lines = made.answered()
    assert [line for line in lines if not line.get("apart", 1) <= APART] == []
    assert len(lines) == len([case for case in made.cases if case["kind"] != "encoded" or asked_alone.has_sentences()])


def predicted(run: Path, texts: list[str], pair: list[str] | None = None) -> list[dict[str, Any]]:
    return load(run, "torch")[0].answers(Rows("rows", texts, pair=pair))


def classes(run: Path) -> Case:
    return {
        "given": TEXTS,
        "wanted": [one["probabilities"] for one in predicted(run, TEXTS)],
        "link": "softmax",
        "options": {"top_k": None},
    }


@pytest.mark.slow
def test_classes_of_many_architectures(workshop: Workshop) -> None:
    for name, pooling in CLASSIFIERS.items():
        backbone = workshop.backbone(name)
        own = workshop.run(f"{name}-own", backbone, {"pooling": "model", **ALL})
        workshop.plain(own, backbone, "text-classification", "SequenceClassification", classes(own))
        pooled = workshop.run(f"{name}-{pooling}", backbone, {"pooling": pooling, **ALL})
        workshop.sentences(pooled, classes(pooled))
        workshop.onnx(pooled, classes(pooled))


@pytest.mark.slow
def test_texts_of_many_architectures(workshop: Workshop) -> None:
    for name in WRITERS:
        backbone = workshop.backbone(name)
        run = workshop.run(name, backbone, {"task": "causal-lm", "max_length": 24})
        wanted = [{one["continuation"]: 0.0} for one in predicted(run, TEXTS[:4])]
        asked = {"given": TEXTS[:4], "wanted": wanted, "options": {"return_full_text": False}}
        workshop.plain(run, backbone, "text-generation", "CausalLM", asked)


@pytest.mark.slow
def test_several_classes(workshop: Workshop) -> None:
    data = {name: str(lists(workshop.place / f"{name}.jsonl", 80, i)) for i, name in enumerate(("train", "test"))}
    backbone = workshop.backbone("bert")
    for pooling in ("model", "mean"):
        run = workshop.run(pooling, backbone, {"task": "multi-label-classification", "pooling": pooling}, data)
        asked = {**classes(run), "link": "sigmoid"}
        workshop.onnx(run, asked)
        if pooling == "mean":
            workshop.sentences(run, asked)
        else:
            workshop.plain(run, backbone, "text-classification", "SequenceClassification", asked)


@pytest.mark.slow
def test_two_texts(workshop: Workshop) -> None:
    backbone = with_types(save_wordpiece(workshop.place / "typed"))
    data = {name: str(pairs(workshop.place / f"{name}.jsonl", 80, i)) for i, name in enumerate(("train", "test"))}
    data |= {"text": "premise", "text_pair": "hypothesis"}
    first, second = ["ann sees york", "bob in it", "eve"], ["new rome", "oslo from bob it", "it sees"]
    for pooling in ("model", "mean"):
        run = workshop.run(pooling, backbone, {"pooling": pooling}, data)
        wanted = [one["probabilities"] for one in predicted(run, first, second)]
        both = [list(two) for two in zip(first, second, strict=True)]
        asked = {"given": both, "wanted": wanted, "link": "softmax", "options": {"top_k": None}}
        workshop.onnx(run, asked)
        if pooling == "mean":
            workshop.sentences(run, asked)
        else:
            asked["given"] = [{"text": one, "text_pair": other} for one, other in both]
            workshop.plain(run, backbone, "text-classification", "SequenceClassification", asked)


@pytest.mark.slow
def test_numbers(workshop: Workshop) -> None:
    rows = {name: [(text, 10 + len(text)) for text, _ in sentences(80, i)] for i, name in enumerate(("train", "test"))}
    data = {name: str(write_rows(workshop.place / f"n-{name}.csv", some)) for name, some in rows.items()}
    backbone = workshop.backbone("bert")
    for pooling in ("model", "mean"):
        run = workshop.run(pooling, backbone, {"task": "regression", "pooling": pooling}, data)
        numbers = [one["number"] for one in predicted(run, TEXTS)]
        asked = {"given": TEXTS, "link": "none", "options": {}, "wanted": [{"label": one} for one in numbers]}
        workshop.onnx(run, {**asked, "wanted": [{"number": one} for one in numbers]})
        if pooling == "mean":
            workshop.sentences(run, asked)
        else:
            workshop.plain(run, backbone, "text-classification", "SequenceClassification", asked)


@pytest.mark.slow
def test_tags(workshop: Workshop, wordpiece: Path) -> None:
    data = {name: str(write_conll(workshop.place / f"{name}.conll", 80, i)) for i, name in enumerate(("train", "test"))}
    run = workshop.run("tags", wordpiece, {"task": "token-classification"}, data)
    texts, by_word, by_token = ["ann sees new york", "bob goes to rome"], [], []
    for text, one in zip(texts, predicted(run, texts), strict=True):
        starts = [text.index(word) for word in text.split()]
        tagged = zip(starts, one["tags"], one["probabilities"], strict=True)
        by_word.append({f"{start} {tag}": p for start, tag, p in tagged})
        by_token.append({str(i): p for i, p in enumerate(one["probabilities"], start=1)})  # [CLS] before them
    asked = {"given": texts, "wanted": by_word, "options": {"ignore_labels": []}}
    workshop.plain(run, wordpiece, "token-classification", "TokenClassification", asked)
    workshop.onnx(run, {"given": texts, "wanted": by_token})


@pytest.mark.slow
def test_hidden_words(workshop: Workshop, wordpiece: Path) -> None:
    run = workshop.run("hidden", wordpiece, {"task": "masked-lm", "pooling": "model"})
    finished, texts = FinishedRun(run, "masked-lm"), ["ann [MASK] york", "bob goes to [MASK]"]
    wanted = []
    for text in texts:
        read = finished.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = finished.classifier()(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).logits
        best = logits[read["input_ids"] == finished.tokenizer.mask_token_id].softmax(1).topk(5)
        names = finished.tokenizer.convert_ids_to_tokens(best.indices[0])
        wanted.append(dict(zip(names, best.values[0].tolist(), strict=True)))
    asked = {"given": texts, "wanted": wanted, "options": {"top_k": 5}}
    workshop.plain(run, wordpiece, "fill-mask", "MaskedLM", asked)


@pytest.mark.slow
def test_images(workshop: Workshop) -> None:
    vit = save_vit(workshop.place / "vit")
    data = {name: str(coloured(workshop.place / name, count)) for name, count in (("train", 80), ("test", 12))}
    lora = {"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
    run = workshop.run("seen", vit, {"task": "image-classification", "pooling": "first", **lora}, data)
    finished = FinishedRun(run, "image-classification")
    rows = finished.rows()
    assert rows.images is not None
    wanted = [one["probabilities"] for one in finished.merged().answers(rows)]
    files = [str(workshop.place / "test" / f"{i}.png") for i in range(12)]
    asked = {"given": files, "images": rows.images.tolist(), "wanted": wanted, "link": "softmax", "options": {}}
    workshop.plain(run, vit, "image-classification", "ImageClassification", asked)
    workshop.onnx(run, asked)


@pytest.mark.slow
def test_images_with_texts(workshop: Workshop, bert: Path) -> None:
    """Of no auto class: onnxruntime answers."""
    counts = {"train": 80, "test": 12}
    data = {name: str(write_images(workshop.place / name, count, count)) for name, count in counts.items()}
    model: dict[str, Any] = {"task": "image-text-classification", "image_backbone": DEMO_VIT}
    model |= {"lora": {"rank": 2, "modules_to_save": ["image_encoder"]}}
    run = workshop.run("both", bert, model, data)
    finished = FinishedRun(run, "image-text-classification")
    rows = finished.rows()
    assert rows.images is not None
    wanted = [one["probabilities"] for one in finished.merged().answers(rows)]
    workshop.onnx(run, {"given": rows.text, "images": rows.images.tolist(), "wanted": wanted, "link": "softmax"})
    with pytest.raises(ConfigError, match=r"no auto class .*; ship it as ONNX"):
        export_plain(run, workshop.place / "plain")
