"""Maps of images: exact where the answer is known, complete, faithful, and in the report."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.common.types import Rows
from confide.server.ship.attribute import TOLERANCE
from confide.server.ship.attribute_images import ImageExplainer, _coloured, _spread, _squares, explain_images
from confide.server.ship.finished import FinishedRun
from confide.simulations.run import simulate
from confide.tests.tiny import run_content, write_csv

TASK = "image-classification"


def write_corners(folder: Path, count: int, seed: int) -> Path:
    """Noise, in which one of two corners is lit: which of them is the class."""
    folder.mkdir()
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        first = bool(rng.integers(2))
        values = rng.integers(60, 160, (8, 8)).astype(np.uint8)
        values[:2, :2], values[-2:, -2:] = (250, 0) if first else (0, 250)
        Image.fromarray(values).save(folder / f"{number}.png")
        rows.append((f"{number}.png", "first" if first else "last"))
    return write_csv(folder / "rows.csv", rows, ("image", "label"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    content = run_content(place, place, place / "run")
    content["model"] = {"backbone": "demo:vit", "task": TASK, "train": "full"}
    content["data"] |= {
        name: str(write_corners(place / name, count, count)) for name, count in (("train", 240), ("test", 60))
    }
    content["run"]["rounds"], content["training"] = 8, {"learning_rate": 0.003, "local_steps": 10, "batch_size": 32}
    return simulate(RunConfig.parse(content, "test"))


class Linear(nn.Module):
    """Logits that are linear in the values."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def represent(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.flatten(1)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=pixel_values.flatten(1) @ self.weights)


def test_of_a_linear_model_scores_are_weight_times_distance_from_the_mean() -> None:
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.normal(size=(3 * 40 * 50, 2)).astype(np.float32) / 1e4)
    public = Rows("public", [""] * 5, images=rng.integers(0, 256, (5, 3, 40, 50)).astype(np.uint8))
    run = cast(FinishedRun, SimpleNamespace(labels=["a", "b"], classifier=lambda: Linear(weights)))
    explainer = ImageExplainer(run, public)
    assert public.images is not None
    image = public.images[2]
    found = explainer.explain(image)
    class_ = ["a", "b"].index(found["label"])
    exact = weights[:, class_].numpy().reshape(3, 40, 50) * (image - public.images.mean(0))
    np.testing.assert_allclose(found["scores"], _squares(exact.sum(0)), rtol=1e-3, atol=1e-4)
    assert not found["refused"]


def test_squares_add_up_and_cover_the_image() -> None:
    scores = np.random.default_rng(1).normal(size=(70, 33))
    squares = _squares(scores)
    assert squares.shape == (32, 32)
    assert squares.sum() == pytest.approx(scores.sum())
    numbers = _spread(np.arange(32 * 32).reshape(32, 32), (70, 33))
    for square in (0, 31, 500, 1023):
        assert scores[numbers == square].sum() == pytest.approx(squares.ravel()[square])
    assert (_squares(scores[:8, :8]) == scores[:8, :8]).all()
    colours = _coloured(np.zeros((1, 8, 8), dtype=np.uint8), np.diag([1.0, -1, 0, 0, 0, 0, 0, 0]))
    assert colours[0, 0].argmax() == 1  # green
    assert colours[1, 1].argmax() == 0  # orange
    assert not colours[2:].any()


def test_taking_squares_by_score_lowers_the_answer_sooner_than_at_random() -> None:
    """Two corners decide, by a model that is linear; they have the scores, and the curves show it."""
    weights = torch.zeros(8, 8, 2)
    weights[:2, :2] = weights[-2:, -2:] = torch.tensor([0.001, -0.001])
    rng = np.random.default_rng(2)
    public = Rows("public", [""] * 20, images=rng.integers(0, 256, (20, 1, 8, 8)).astype(np.uint8))
    linear = Linear(weights.reshape(64, 2))
    explainer = ImageExplainer(cast(FinishedRun, SimpleNamespace(labels=["a", "b"], classifier=lambda: linear)), public)
    image = np.full((1, 8, 8), 250, dtype=np.uint8)
    found = explainer.explain(image)
    scores = np.asarray(found["scores"])
    assert found["label"] == "a"
    assert scores[:2, :2].sum() + scores[-2:, -2:].sum() == pytest.approx(np.abs(scores).sum())
    curves = explainer.curves(image, found, np.random.default_rng(0))
    assert curves["deletion"][0] == pytest.approx(found["probability"], rel=1e-4)
    assert curves["deletion"][-1] == pytest.approx(curves["insertion"][0], rel=1e-4)
    assert curves["insertion"][-1] == pytest.approx(found["probability"], rel=1e-4)
    assert curves["deletion"].mean() < curves["deletion_random"].mean()
    assert curves["insertion"].mean() > curves["insertion_random"].mean()


@pytest.mark.slow
def test_nearest_images_are_of_the_class(folder: Path) -> None:
    run = FinishedRun(folder, TASK)
    assert run.report["after"]["accuracy"] > 0.95
    for found in explain_images(run, ["#0", "#9", "#11"], sample=30)["images"]:
        assert [near["label"] for near in found["nearest"]] == [found["label"]] * 3
        assert found["refused"] == (found["delta"] > TOLERANCE)


@pytest.mark.slow
def test_the_command_shows_them_in_the_report(folder: Path, confide, tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    Image.fromarray(np.full((30, 20, 3), 200, dtype=np.uint8)).save(big)  # another size, colours
    code, out, _ = confide("explain-model", folder, big, "#3", "--sample", "10")
    shown = json.loads((folder / "report.json").read_text())["explanation"]["images"]
    assert code == 0
    assert "big.png: " in out
    assert "of 10 maps of public images" in out
    page = (folder / "report.html").read_text()
    assert page.count('class="tile"') == 4 - sum(found["refused"] for found in shown)
    assert "from the mean of public images" in page
    assert "words that speak most" not in page
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["#60"], "#0 to #59"),
        (["#x"], "#0 to #59"),
        (["nowhere.png"], "no file 'nowhere.png'"),
        (["#1", "--against", "."], "--against: received for a model of images"),
        (["#1", "--sample", "0"], "--sample: 0 received"),
    ],
)
def test_what_cannot_be_explained(folder: Path, confide, arguments: list[str], why: str) -> None:
    before = (folder / "report.json").read_bytes()
    code, _, err = confide("explain-model", folder, *arguments)
    assert code == 2
    assert why in err
    assert (folder / "report.json").read_bytes() == before


def test_a_file_that_is_no_image(folder: Path, confide, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    code, _, err = confide("explain-model", folder, tmp_path / "text.png", "--sample", "5")
    assert code == 2
    assert "not a readable" in err


def test_other_steps_are_for_texts_so_far(folder: Path) -> None:
    with pytest.raises(ConfigError, match="this is for 'sequence-classification'"):
        FinishedRun(folder)
