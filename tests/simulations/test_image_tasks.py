"""Images, images with texts, numbers; and what is trained: LoRA, a head, everything."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import ViTConfig, ViTModel

import confide
from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.config.tables import DataSection
from confide.common.data.images import ImageForm, perturbed, read_image
from confide.common.data.sources import read_table
from confide.common.errors import ConfigError, DataError, ModelError
from confide.common.model.backbones import DEMO_VIT
from confide.common.model.loading import model_of
from confide.common.model.per_sample import clipped_sum, hooked
from confide.server.report import read_report
from confide.simulations.canaries import canary_records
from confide.simulations.run import simulate
from confide.tests.tiny import merged, sentences, write_csv

MODES = ["none", "local", "distributed"]
# whole runs of images take seconds: of some tests the fast ones train in one mode
FIRST = [MODES[0], *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES[1:])]


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Stripes: upright or lying. Beside each a text whose mood says nothing about them."""
    folder.mkdir()
    rng, rows = np.random.default_rng(seed), []
    for number, (text, _) in enumerate(sentences(count, seed)):
        upright = bool(rng.integers(2))
        values = rng.integers(0, 60, (8, 8)).astype(np.uint8)
        values[(slice(None), slice(None, None, 2)) if upright else (slice(None, None, 2), slice(None))] += 150
        Image.fromarray(values).save(folder / f"{number}.png")
        rows.append((f"{number}.png", text, "upright" if upright else "lying"))
    return write_csv(folder / "rows.csv", rows, ("image", "text", "label"))


@pytest.fixture
def images(make_config, local, tmp_path: Path):
    """RunConfig of an image run in a mode, with changes on top."""
    data = {name: str(write_images(tmp_path / name, count, count)) for name, count in (("train", 240), ("test", 80))}

    def make(mode: str = "none", **changes) -> RunConfig:
        base = {
            "model": {"backbone": DEMO_VIT, "task": "image-classification", "train": "full"},
            "data": data,
            "training": {"learning_rate": 0.003, "local_steps": 5 if mode == "none" else 1},
            "privacy": {**local, "mode": mode} if mode != "none" else {},
        }
        return make_config(**merged(base, changes))

    return make


def check(folder: Path, mode: str, least: float = 0.9) -> None:
    report = read_report(folder)
    assert [row["failed"] for row in report["rounds"]] == [[]] * 3
    if mode == "none":
        assert report["after"]["accuracy"] > least
    else:
        assert 0 < report["privacy"]["epsilon_spent"] <= 8.0
    PeftModel.from_pretrained(confide.load_base(folder / "adapter"), str(folder / "adapter"))


@pytest.mark.parametrize("mode", ["none", pytest.param("local", marks=pytest.mark.slow), "distributed"])
def test_images_are_learned_in_every_mode(images, mode: str) -> None:
    check(simulate(images(mode)), mode)


@pytest.mark.parametrize("mode", FIRST)
def test_images_with_texts_are_learned_in_every_mode(images, bert: Path, mode: str) -> None:
    """LoRA in the text tower, the new image tower whole."""
    model = {"backbone": str(bert), "image_backbone": DEMO_VIT, "task": "image-text-classification", "train": "lora"}
    model = {**model, "lora": {"rank": 2, "modules_to_save": ["image_encoder"]}}
    check(simulate(images(mode, model=model, training={"local_steps": 30 if mode == "none" else 1})), mode)


@pytest.mark.parametrize(
    "task",
    [
        "image-classification",
        *(pytest.param(task, marks=pytest.mark.slow) for task in ("image-text-classification", "regression")),
    ],
)
def test_canary_records_are_of_the_tasks_own_kind(images, bert: Path, tmp_path: Path, task: str) -> None:
    """They are planted, trained on as records are, and guessed on the final model."""
    both = {"backbone": str(bert), "image_backbone": DEMO_VIT}
    model = {"task": task, **({"backbone": DEMO_VIT} if task == "image-classification" else both)}
    data = {}
    if task == "regression":
        model.pop("image_backbone")
        for name, count in (("train", 240), ("test", 80)):
            rows = [(text, len(text)) for text, _ in sentences(count, count)]
            data[name] = str(write_csv(tmp_path / f"{name}.csv", rows))
    config = images("local", model=model, audit={"records": 40}, run={"rounds": 1}, data=data)
    found = read_report(simulate(config))["audit"]["records"]
    assert found["canaries"] == 40
    assert 0 <= found["epsilon_steinke"] <= found["ceiling_steinke"]
    resolved = resolve(config)
    records = canary_records(resolved, model_of(resolved), "site-1")
    if task != "regression":
        assert records.images is not None
        assert records.images.std() > 60  # noise over the whole range
    assert len({*map(str, records.targets)}) > 1


@pytest.mark.slow
def test_lora_goes_into_both_towers(images, bert: Path, tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=2
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")  # three channels: grey images are spread over them
    model = {"backbone": str(bert), "image_backbone": str(tmp_path / "vit"), "task": "image-text-classification"}
    lora = {"rank": 2, "targets": ["query", "q_proj"]}
    run = images("local", model={**model, "train": "lora", "lora": lora}, run={"rounds": 1})
    names = list(model_of(resolve(run)).trained)
    assert any(".backbone." in name for name in names)
    assert any(".image_encoder." in name for name in names)
    assert read_report(simulate(run))["rounds"][0]["failed"] == []


@pytest.mark.parametrize("mode", FIRST)
def test_numbers_are_learned_in_every_mode(make_config, local, tmp_path: Path, mode: str) -> None:
    """A score that grows with good words; measured by the public test set."""
    paths = {}
    for name, count in (("train", 240), ("test", 80)):
        rows = [(text, 20.0 if label == "positive" else -4.0) for text, label in sentences(count, count)]
        paths[name] = str(write_csv(tmp_path / f"{name}-numbers.csv", rows))
    config = make_config(
        model={"task": "regression"},
        data=paths,
        privacy={**local, "mode": mode} if mode != "none" else {},
        training={"local_steps": 60 if mode == "none" else 1},
    )
    mean, deviation = resolve(config).data.scale or (0, 0)
    assert 5 < mean < 11
    assert 11 < deviation < 12.1
    report = read_report(simulate(config))
    if mode == "none":
        assert report["after"]["r2"] > 0.7 > report["before"]["r2"] + 0.5
    else:
        assert 0 < report["privacy"]["epsilon_spent"] <= 8.0


@pytest.mark.parametrize("train", ["head", "full"])
def test_per_sample_gradients_are_those_of_records_alone(make_config, train: str) -> None:
    model = model_of(resolve(make_config(model={"train": train})))
    rows = model.rows(str(make_config().data.test), resolve(make_config()).data).take(np.arange(6))
    records = model.with_features(model.encode(rows))
    assert (records.features is not None) == (train == "head")
    alone = []
    for index in range(6):
        loss = model.losses(records, np.array([index])).sum()
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.trained.values()))])
        alone.append(flat * (0.1 / flat.norm()).clamp(max=1))
    with hooked(model):
        together, _ = clipped_sum(model, model.losses(records, np.arange(6)), 0.1)
    torch.testing.assert_close(together, torch.stack(alone).sum(0).double(), atol=1e-5, rtol=1e-3)


def test_features_give_the_losses_of_the_whole_model(make_config) -> None:
    config = resolve(make_config(model={"train": "head"}))
    model = model_of(config)
    records = model.encode(model.rows(config.data.test, config.data))
    quick = model.losses(model.with_features(records), np.arange(len(records)))
    torch.testing.assert_close(quick, model.losses(records, np.arange(len(records))))
    assert all(".head." in name for name in model.trained)


@pytest.mark.parametrize("train", ["head", "full"])
def test_what_else_is_trained_learns_and_loads(make_config, train: str) -> None:
    config = make_config(model={"train": train}, training={"local_steps": 20}, run={"rounds": 3})
    folder = simulate(config)
    assert read_report(folder)["after"]["accuracy"] > 0.85
    PeftModel.from_pretrained(confide.load_base(folder / "adapter"), str(folder / "adapter"))


def png(size: tuple[int, int]) -> bytes:
    target = io.BytesIO()
    Image.new("L", size, 7).save(target, "PNG")
    return target.getvalue()


def test_images_are_scaled_and_bad_ones_named_without_their_content(tmp_path: Path) -> None:
    form = ImageForm(3, 8, 6)
    for size in ((20, 30), (6, 8)):
        found = read_image({"bytes": png(size), "path": None}, tmp_path, form, "row 1")
        assert found.shape == (3, 8, 6)
        assert (found == 7).all()
    for bad, reason in (
        (b"GIF89a secret", "row 2: not a readable"),
        (b"", "row 2: no image"),
        (png((9000, 9000)), "row 2: an image of 9000 × 9000"),
        ("nosuch.png", "row 2: the image's file cannot be read"),
    ):
        with pytest.raises(DataError, match=reason) as refused:
            read_image(bad, tmp_path, form, "row 2")
        assert "secret" not in str(refused.value)


def test_perturbed_images_keep_shape_and_range() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8)).astype(np.uint8)
    rng = np.random.default_rng(1)
    assert np.array_equal(perturbed(images, False, 0, 0.0, rng), images)
    flipped = perturbed(images, True, 0, 0.0, rng)
    assert all(np.array_equal(a, b) or np.array_equal(a, b[..., ::-1]) for a, b in zip(flipped, images, strict=True))
    assert perturbed(images, True, 2, 0.1, rng).shape == images.shape


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_copies_of_images_are_trained_on_in_every_mode(images, mode: str) -> None:
    """Views of a record: the charge is that of a run without them."""
    training = {"views": 3, "local_steps": 20 if mode == "none" else 1}
    check(simulate(images(mode, data={"augmentation": {"noise": 0.02}}, training=training)), mode, least=0.8)


def test_digits_are_the_same_wherever_they_are_read() -> None:
    pytest.importorskip("sklearn")
    first, again = (read_table("demo:half-digits/train", DataSection(test="x")) for _ in range(2))
    assert first.equals(again)
    assert (first.num_rows, read_table("demo:digits/test", DataSection(test="x")).num_rows) == (1400, 397)
    with pytest.raises(DataError, match="allowed: demo:digits/train"):
        read_table("demo:digits/nosuch", DataSection(test="x"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"server": {"aggregation": "exact"}, "model": {"train": "head"}}, "are about factors of LoRA"),
        ({"model": {"train": "full", "lora": {"modules_to_save": ["image_encoder"]}}}, "says what is trained"),
        ({"model": {"image_backbone": DEMO_VIT}}, "a task other than image-text-classification"),
        ({"model": {"task": "image-text-classification"}}, "nothing received with task"),
        ({"model": {"task": "regression"}, "data": {"partition": {"kind": "shards"}}}, "no class each"),
    ],
)
def test_what_does_not_go_together_is_refused(make_config, changes: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_config(**changes)


def test_a_text_backbone_for_images_is_refused(images, bert: Path) -> None:
    with pytest.raises(ModelError, match="takes no images"):
        simulate(images(model={"backbone": str(bert)}))
