"""Evaluation where the data are: whole runs in each mode, resumed and with sites that fail."""

import json
from pathlib import Path

import numpy as np
import pytest

from confide.common.config.run import RunConfig
from confide.common.model.loading import model_of
from confide.server.app import checkpoint
from confide.server.evaluation import evaluate
from confide.simulations.run import simulate
from confide.simulations.sites import simulated_data, worker_for

HALF = {"sites": True, "holdout": 0.5}


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_without_privacy_the_counts_are_those_of_the_held_out_records(make_config) -> None:
    config = make_config(run={"rounds": 3}, evaluation={**HALF, "every": 2})
    folder = simulate(config)
    state = checkpoint.load_latest(folder / "checkpoints", _resolved(folder).digest())
    assert [(one.round, one.final) for one in state.evaluations] == [(0, False), (2, False), (3, True)]
    resolved = _resolved(folder)
    model, data = model_of(resolved), worker_for(resolved.to_flat()).data
    held = np.concatenate(data.held_out)
    assert 60 < len(held) < 180
    assert not set(held) & set(np.concatenate(data.parts))
    found = evaluate(model, state.adapter, data.records, held)
    right = int((found.scores["predicted"] == found.scores["true"]).sum())
    assert state.evaluations[-1].counts == [right, len(held) - right]
    assert state.evaluations[-1].variance == 0


def _resolved(folder: Path) -> RunConfig:
    from confide.common.config.run import load

    return load(folder / "config.toml")


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_under_privacy_counts_come_with_noise(make_config, local, mode) -> None:
    local["mode"] = mode
    config = make_config(run={"rounds": 4}, privacy=local, evaluation={**HALF, "every": 3})
    folder = simulate(config)
    resolved = _resolved(folder)
    state = checkpoint.load_latest(folder / "checkpoints", resolved.digest())
    assert [(one.round, one.final) for one in state.evaluations] == [(0, False), (3, False), (4, True)]
    data = simulated_data(resolved, model_of(resolved))
    held = len(np.concatenate(data.held_out))
    for one in state.evaluations:
        assert one.counts is not None
        assert one.variance > 0.1
        deviation = (2 * one.variance) ** 0.5
        assert abs(sum(one.counts) - held) < 6 * deviation
    assert state.evaluated == dict.fromkeys(state.asked, 3)
    assert set(state.asked.values()) == {4}
