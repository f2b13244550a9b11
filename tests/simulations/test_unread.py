"""Reference models and controls are trained as the run was, though less of them is looked at."""

from pathlib import Path

import numpy as np

from confide.common.config.run import RunConfig, load
from confide.common.model.adapter import read_arrays
from confide.common.run_folder import CONFIG
from confide.server.report import read_report
from confide.simulations.attacks.leakage import _scored
from confide.simulations.run import simulate
from confide.simulations.unread import unread


def test_what_is_trained_stays_the_same(make_config, tmp_path: Path) -> None:
    baselines = {"alone": True, "pooled": True}
    folder = simulate(make_config(run={"rounds": 2}, baselines=baselines))
    content = load(folder / CONFIG).model_dump()
    unread(content)
    content["run"] |= {"output": str(tmp_path / "again"), "id": None}
    again = simulate(RunConfig.parse(content, "again"))
    first, second = read_arrays(folder / "adapter"), read_arrays(again / "adapter")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    report = read_report(again)
    assert report["after"]["main"]["records"] == 8
    assert report["baselines"]["alone"] is None


def test_where_a_validation_set_ends_the_run_it_is_read_as_before(make_config, data: Path) -> None:
    validation = str(data / "train.csv")
    content = make_config(server={"patience": 2}, data={"validation": validation}).model_dump()
    limit = content["server"]["evaluation_limit"]
    unread(content)
    assert content["data"]["validation"] == validation
    assert content["server"]["evaluation_limit"] == limit


def test_some_of_the_members_and_as_many_others_are_scored() -> None:
    found = _scored(200, 30, 7)
    assert len(found) == len(set(found)) == 60
    assert (found < 100).sum() == 30
    assert (np.sort(found) == found).all()
    assert (_scored(200, None, 7) == np.arange(200)).all()
    assert (_scored(200, 500, 7) == np.arange(200)).all()
