"""Sweeps: every cell once, going on after a stop, the worst attack, and the page."""

import json
import sys
from pathlib import Path

import pytest
import tomli_w

from confide.cli.main import main
from confide.cli.progress import watch
from confide.common.errors import ConfigError
from confide.simulations.studies import runner, sweep
from confide.tests.tiny import merged

TABLE = {
    "seeds": 2,
    "settings": {"one lies": ["attack.byzantine=1"]},
    "defences": {"mean": [], "median": ["server.aggregation=median"], "krum": ["server.aggregation=krum"]},
    "attacks": {"none": [], "sign flip": ["attack.kind=signflip"], "backdoor": ["attack.kind=backdoor"]},
}


@pytest.fixture
def recipe(content: dict) -> dict:
    return merged(content, {"run": {"rounds": 1}, "sweep": TABLE})


def test_every_cell_is_played_once_and_the_page_says_the_worst(recipe: dict, tmp_path: Path, monkeypatch) -> None:
    played = []
    real = runner.simulate
    monkeypatch.setattr(runner, "simulate", lambda config, **more: (played.append(config), real(config, **more))[1])
    folder = sweep.play(recipe, None, watch)
    assert len(played) == 2 * 2 * 3  # krum cannot tolerate a Byzantine site among four: refused, with the reason
    report = json.loads((folder / "report.json").read_text())
    (setting,) = report["settings"]
    rows = {row["defence"]: row for row in setting["rows"]}
    for name in ("mean", "median"):
        attacked = {key: value for key, value in rows[name]["accuracy"].items() if key != "none"}
        assert rows[name]["worst"] == min(attacked.values())
        assert rows[name]["backdoor"] is not None
    assert rows["krum"]["worst"] is None
    assert {cell["attack"] for cell in report["refused"]} == set(TABLE["attacks"])
    assert "tolerates none" in report["refused"][0]["reason"]
    html = (folder / "report.html").read_text()
    assert html.count("<svg") == 3
    assert "tolerates none" in html
    assert sweep.play(recipe, None, watch) == folder
    assert len(played) == 12  # nothing is played again


def test_a_sweep_goes_on_where_it_was_stopped(recipe: dict, monkeypatch) -> None:
    real, count = runner.simulate, iter(range(100))

    def stops(config, **more):
        if next(count) == 5:
            raise KeyboardInterrupt
        return real(config, **more)

    monkeypatch.setattr(runner, "simulate", stops)
    with pytest.raises(KeyboardInterrupt):
        sweep.play(recipe, None, watch)
    folder = Path(recipe["run"]["output"])
    with (folder / runner.RESULTS).open("a") as lines:
        lines.write('{"setting": "one l')  # cut short
    sweep.play(recipe, None, watch)
    assert next(count) == 13  # 12 runs, one of them begun twice
    recipe["training"]["learning_rate"] = 0.5  # another sweep may not be mixed into this one
    with pytest.raises(ConfigError, match="is not empty"):
        sweep.play(recipe, None, watch)


def test_every_defence_is_compared_with_nobody_lying(recipe: dict) -> None:
    del recipe["sweep"]["attacks"]["none"]
    with pytest.raises(ConfigError, match=r"sweep\.attacks"):
        sweep.play(recipe, None, watch)


def test_the_command_plays_a_sweep(recipe: dict, tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(tomli_w.dumps(recipe))
    small = ["--set", "sweep.seeds=1", "--set", 'sweep.defences={"mean" = []}']
    monkeypatch.setattr(sys, "argv", ["confide", "simulate", str(path), "--out", str(tmp_path / "out"), *small])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "worst attack" in out
    assert (tmp_path / "out" / "report.html").is_file()
