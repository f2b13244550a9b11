"""Early stopping: on a public validation set, the best round's model, and what sites reserved stays reserved."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from confide.common.config.resolve import resolve
from confide.common.errors import ConfigError
from confide.common.ledger.verify import audit, find_ledgers
from confide.common.model.loading import model_of
from confide.server import app
from confide.server.evaluation import evaluate, read_public
from confide.simulations.run import resume, simulate
from confide.tests.tiny import LOCAL, sentences, write_csv


@pytest.fixture
def stopping(make_config, tmp_path: Path):
    """Twelve rounds that learn too fast to keep getting better."""
    validation = write_csv(tmp_path / "validation.csv", sentences(40, 8))

    def make(**changes):
        training = {"learning_rate": 0.3, "batch_size": 16}
        run = {"rounds": 12, **changes.pop("run", {})}
        data = {"validation": str(validation)}
        return make_config(run=run, data=data, training=training, server={"patience": 2}, **changes)

    return make


def test_the_best_rounds_model_is_kept(stopping) -> None:
    config = stopping()
    folder = simulate(config)
    report = json.loads((folder / "report.json").read_text())
    history = [row["accuracy"] for row in report["rounds"]]
    best = int(np.argmax(history)) + 1  # of equals the first
    assert len(history) == best + 2 < 12
    assert report["best_round"] == best
    resolved = resolve(config)
    model = model_of(resolved)
    records = read_public(resolved, model, str(config.data.validation))
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert evaluate(model, adapter, records, np.arange(len(records))).metrics["accuracy"] == max(history)
    assert f"The model is that of round {best}" in (folder / "report.html").read_text()


def test_a_run_that_was_interrupted_ends_where_it_would_have(stopping, monkeypatch, tmp_path: Path) -> None:
    whole = simulate(stopping(run={"output": str(tmp_path / "whole")}))
    real = app._Keeper.round_done

    def stops(self, result) -> None:
        real(self, result)
        if result.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(app._Keeper, "round_done", stops)
    with pytest.raises(KeyboardInterrupt):
        simulate(stopping(run={"output": str(tmp_path / "halves")}))
    monkeypatch.setattr(app._Keeper, "round_done", real)
    halves = resume(tmp_path / "halves")
    one, other = (json.loads((folder / "report.json").read_text()) for folder in (whole, halves))
    assert [row["accuracy"] for row in one["rounds"]] == [row["accuracy"] for row in other["rounds"]]
    assert one["best_round"] == other["best_round"]
    files = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (whole, halves)]
    assert files[0] == files[1]


def test_under_privacy_less_is_spent_and_all_stays_reserved(stopping, tmp_path: Path) -> None:
    config = stopping(privacy=LOCAL, engine={"ledger": str(tmp_path / "ledgers")})
    report = json.loads((simulate(config) / "report.json").read_text())
    assert len(report["rounds"]) < 12
    assert report["privacy"]["epsilon_spent"] < 0.95 * report["privacy"]["epsilon_planned"]
    for path in find_ledgers(tmp_path / "ledgers"):
        found = audit(path)
        assert found.holds
        assert found.datasets[0]["epsilon"]["rdp"] > report["privacy"]["epsilon_spent"]


def test_the_test_set_may_not_choose(make_config, data: Path) -> None:
    with pytest.raises(ConfigError, match=r"with no data\.validation"):
        make_config(server={"patience": 2})
    (data / "again.csv").symlink_to(data / "test.csv")
    for other in ("test.csv", "again.csv", f"../{data.name}/test.csv"):  # a temperature is fitted to it, too
        with pytest.raises(ConfigError, match=r"with the same source as data\.test"):
            make_config(data={"validation": str(data / other)})
    (data / "again.csv").unlink()
