"""One model that somebody brings, from its folder to answers: doctor, one round without and one with distributed
privacy, the exported adapter loaded afresh, and what `confide predict` says beside what the run's own model says."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel
from PIL import Image
from safetensors.numpy import load_file

import confide
from confide.common.config.run import RunConfig
from confide.common.errors import ModelError
from confide.common.model.adapter import load_base
from confide.common.model.generation import Generator
from confide.common.model.loading import FineTuneModel, load_model, model_of
from confide.common.tasks import beginnings
from confide.server.report import render
from confide.simulations.doctor import findings
from confide.tests.architectures import save_tokenizer, spread_out
from confide.tests.catalogue import DECODERS, ENCODERS, IMAGES, Entry
from confide.tests.tiny import merged, sentences, write_csv

NO = "no"
PADDING = "its answer to a text changes with the padding behind it, that is, with the texts beside it"
GROUPS: dict[str, dict[str, Entry]] = {"texts": ENCODERS, "writing": DECODERS, "images": IMAGES}
_TASKS = {"texts": "sequence-classification", "writing": "causal-lm", "images": "image-classification"}
_AUTO: dict[str, Any] = {"texts": hf.AutoModel, "writing": hf.AutoModelForCausalLM, "images": hf.AutoModel}
_ROWS, _LABELS = 16, ["negative", "positive"]
TRAINED: dict[str, dict[str, Any]] = {
    "attention": {},
    "all linear layers": {"lora": {"targets": "all-linear"}},
    "head": {"train": "head"},
}
"""what is trained, and the keys for it; the first that a model takes is what a run of mode `none` has"""
_ASKED = ("a good film", "the story was dark and quite sad")


@dataclass(frozen=True)
class Cell:
    """What came of one mode."""

    trained: str
    """of `TRAINED`, or `NO`"""
    why: str = ""
    """why not more, as the refusal says it, or what else there is to know"""


@dataclass(frozen=True)
class Outcome:
    """Of one model."""

    none: Cell
    distributed: Cell


@contextmanager
def without_page() -> Iterator[None]:
    """The report's plots take half the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(render, "render_html", lambda report: "")
        yield


def saved(group: str, name: str, folder: Path) -> Path:
    """The model, of larger weights than usual: two layers of 32 numbers would make nearly the same of all."""
    entry = GROUPS[group][name]
    torch.manual_seed(0)
    config = entry.config(images=group == "images")
    model = getattr(hf, entry.own)(config) if entry.own else _AUTO[group].from_config(config)
    spread_out(model)
    model.save_pretrained(str(folder))
    if group != "images":
        save_tokenizer(folder, ends=group == "texts")
    return folder


def write_data(folder: Path) -> None:
    """train.csv and test.csv of texts and images."""
    rng = np.random.default_rng(7)
    for part, count in (("train", _ROWS), ("test", _ROWS // 2)):
        rows = sentences(count, count)
        for i in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{part}-{i}.png")
        named = [(*row, f"{part}-{i}.png") for i, row in enumerate(rows)]
        write_csv(folder / f"{part}.csv", named, ("text", "label", "image"))


def content_of(group: str, backbone: Path, output: Path, mode: str, changes: Mapping[str, Any]) -> dict:
    """A run of one round at two sites. The data are beside the backbone."""
    data = backbone.parent
    privacy: dict[str, Any] = {"mode": mode}
    if mode != "none":
        privacy |= {"epsilon": 8.0, "sampling_rate": 0.5, "declared_examples": _ROWS}
    model = {"backbone": str(backbone), "task": _TASKS[group], "max_length": 12, "lora": {"rank": 2, "alpha": 4}}
    content: dict[str, Any] = {
        "run": {"name": "brought", "rounds": 1, "seed": 3, "output": str(output)},
        "model": merged(model | ({"pooling": "mean"} if group != "writing" else {}), dict(changes)),
        "data": {"train": str(data / "train.csv"), "test": str(data / "test.csv"), "partition": {"clients": 2}},
        "privacy": privacy,
        "training": {"learning_rate": 0.05, "batch_size": 8},
        "evaluation": {"generate": 0},
    }
    if group != "writing":
        content["data"]["labels"] = _LABELS
    return content


def tried(group: str, name: str, folder: Path) -> Outcome:
    """What becomes of a model. Raises AssertionError where doctor and run differ, or answers do."""
    folder.mkdir(parents=True)
    write_data(folder)
    backbone = saved(group, name, folder / "model")
    none = _first(group, backbone, folder, "none", list(TRAINED))
    later = [] if none.trained == NO else list(TRAINED)[list(TRAINED).index(none.trained) :]
    distributed = _first(group, backbone, folder, "distributed", later) if later else none
    shutil.rmtree(folder)
    return Outcome(none, distributed)


def _first(group: str, backbone: Path, folder: Path, mode: str, ways: list[str]) -> Cell:
    """The first way to train that a model takes, and why not the one before; or the refusal of the last."""
    refusals: list[str] = []
    for way in ways:
        if (group, way) == ("writing", "head"):
            continue
        content = content_of(group, backbone, folder / f"{mode}-{len(refusals)}", mode, TRAINED[way])
        refusal, note = one_run(content)
        if refusal is None:
            return Cell(way, refusals[0] if refusals else note)
        refusals.append(refusal)
    return Cell(NO, refusals[-1])


def one_run(content: dict[str, Any]) -> tuple[str | None, str]:
    """Plays a run and looks at what it made: a refusal's text, and what else there is to know. The doctor must have
    said so before."""
    load_model.cache_clear()  # a model that was refused may be left with hooks
    told = [(text, good) for _, text, good in findings(RunConfig.parse(content, "brought"))]
    expected, refusal, note = next((text for text, good in told if good is False), None), None, ""
    try:
        note = check_answers_again(confide.simulate(content))
    except ModelError as error:
        refusal = str(error)
    assert refusal == expected, f"the doctor says: {expected}; the run says: {refusal}"
    assert "\n" not in (refusal or "")
    return refusal, note


def check_answers_again(run: confide.Run) -> str:
    """The exported adapter on a fresh base model, and `predict`, against the run's own model. Returns what there is to
    know of its answers."""
    adapter = run.folder / "adapter"
    own = model_of(run.config)
    own.set(load_file(adapter / "adapter_model.safetensors"))
    load_model.cache_clear()
    again = PeftModel.from_pretrained(load_base(adapter), str(adapter)).eval()
    for inputs in _inputs(own, run):
        with torch.no_grad():
            wanted, found = own.module(**inputs).logits.float(), again(**inputs).logits.float()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    expected = _own_answers(own, run)
    one_by_one = [answer for which in range(len(_ASKED)) for answer in _predicted(run, [which])]
    _assert_alike(one_by_one, expected)
    try:
        _assert_alike(_predicted(run, range(len(_ASKED))), expected)
    except AssertionError:
        return PADDING
    return ""


def _inputs(own: FineTuneModel, run: confide.Run) -> list[dict[str, torch.Tensor]]:
    """One record each."""
    if not own.task.READS.text:
        rows = own.rows(run.config.data.test, run.config.data)
        assert rows.images is not None
        return [{"pixel_values": torch.from_numpy(rows.images[i : i + 1]).float()} for i in range(2)]
    ids = [own.tokenizer(text)["input_ids"] for text in _ASKED]
    return [{"input_ids": torch.tensor([one]), "attention_mask": torch.ones(1, len(one)).long()} for one in ids]


def _own_answers(own: FineTuneModel, run: confide.Run) -> list[Any]:
    """Of each text or image by itself: the shares of the classes, or the continuation."""
    if own.task.EXPORT == "text":
        generator = Generator.of(own.module, own.tokenizer, run.config.data, own.max_length, 64)
        return [generator.written([beginnings([text], own.tokenizer)[0]])[0] for text in _ASKED]
    with torch.no_grad():
        return [own.module(**inputs).logits.float().softmax(1)[0].numpy() for inputs in _inputs(own, run)]


def _predicted(run: confide.Run, which: Sequence[int]) -> list[Any]:
    """The same of `confide predict`, of several at once."""
    if run.config.model.task == _TASKS["images"]:
        answers = run.predict(images=[Path(run.config.data.test).parent / f"test-{i}.png" for i in which])
    else:
        answers = run.predict([_ASKED[i] for i in which])
    if run.config.model.task == _TASKS["writing"]:
        return [answer["continuation"] for answer in answers]
    return [np.array([answer["probabilities"][label] for label in _LABELS]) for answer in answers]


def _assert_alike(found: list[Any], wanted: list[Any]) -> None:
    if isinstance(wanted[0], str):
        assert found == wanted
    else:
        np.testing.assert_allclose(np.stack(found), np.stack(wanted), atol=2e-4)
