"""The shipped recipes on real data, as a user runs them; minutes each, so `make slow`."""

import json
from pathlib import Path

import pytest
from opacus.accountants import PRVAccountant

from confide.common.config.run import load
from confide.simulations.recipes import find_recipe
from confide.simulations.run import simulate

from .conftest import shared_data

pytestmark = pytest.mark.slow


def run(recipe: str, tmp_path: Path, test: str, *sets: str) -> dict:
    data = shared_data()
    if data is None:
        pytest.skip("no real data: put ../shared/data beside the checkout, or set CONFIDE_DATA")
    places = [f"data.train={data / recipe / 'train.csv'}", f"data.test={data / recipe / test}"]
    folder = simulate(load(find_recipe(recipe), [*places, f"run.output={tmp_path / 'run'}", *sets]))
    return json.loads((folder / "report.json").read_text())


def test_sst2_without_privacy(tmp_path: Path) -> None:
    report = run("sst2", tmp_path, "validation.csv", "privacy.mode=none", "data.limit=8000")
    assert report["after"]["accuracy"] >= 0.80


def test_sst2_with_local_privacy_over_all_records(tmp_path: Path) -> None:
    report = run("sst2", tmp_path, "validation.csv")
    privacy = report["privacy"]
    assert report["after"]["accuracy"] >= 0.78
    assert (privacy["mode"], privacy["delta"], privacy["epsilon_planned"]) == ("local", 1e-5, 8.0)
    assert privacy["epsilon_spent"] <= 8
    accountant = PRVAccountant()
    accountant.history = [(privacy["noise_multiplier"], privacy["sampling_rate"], privacy["steps"])]
    assert accountant.get_epsilon(privacy["delta"]) <= 8.01  # its upper bound is 0.01 above its estimate


def test_banking77_without_privacy(tmp_path: Path) -> None:
    assert run("banking77", tmp_path, "test.csv")["after"]["accuracy"] >= 0.80
