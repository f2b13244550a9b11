"""`confide seeds` and `confide compare`: how far a figure spreads, and ε by round in what a run records."""

import json
from pathlib import Path

import pytest

from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.simulations.studies import seeds


@pytest.fixture
def toml(make_config, local, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(make_config(run={"rounds": 2, "output": str(tmp_path / "run")}, privacy=local).to_toml())
    return path


def test_seeds_are_played_once_and_spread(confide, toml: Path, tmp_path: Path) -> None:
    code, out, _ = confide("seeds", toml, "--n", "2")
    assert code == 0
    assert "in the mean of 2 seeds" in out.replace("\n", " ")
    folder = tmp_path / "run-seeds"
    first = (folder / "results.jsonl").read_text()
    assert confide("seeds", toml, "--n", "3")[0] == 0
    assert (folder / "results.jsonl").read_text().startswith(first)  # what was there is not played again
    report = json.loads((folder / "report.json").read_text())
    values = [row["value"] for row in report["runs"]]
    assert len(values) == 3
    assert report["mean"] == pytest.approx(sum(values) / 3)
    assert 'id="by-seed"' in (folder / "report.html").read_text()
    runs = sorted((folder / "runs").iterdir())
    code, out, _ = confide("compare", *runs[:2], "--out", tmp_path / "compared")
    assert code == 0
    assert "run.seed" in out
    assert (tmp_path / "compared" / "compare.csv").is_file()
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    told = json.loads((runs[0] / "report.json").read_text())["privacy"]
    assert [line["epsilon"] for line in lines] == told["epsilon_by_round"][1:]
    assert lines[-1]["epsilon"] == told["epsilon_spent"]
    assert 0 < told["most_found"]["0.001"] < told["most_found"]["0.01"] < 1


def test_other_recipes_are_refused(make_config, tmp_path: Path) -> None:
    content = make_config().model_dump(exclude_none=True)
    with pytest.raises(ConfigError, match=r"compare\.seeds"):
        seeds.play({**content, "compare": {}}, 2, tmp_path / "out", lambda *_: pytest.fail("played"))
    content["engine"] = {"ledger": str(tmp_path)}
    assert RunConfig.parse(content, "x").engine.ledger
    with pytest.raises(ConfigError, match=r"engine\.ledger"):
        seeds.play(content, 2, tmp_path / "out", lambda *_: pytest.fail("played"))
