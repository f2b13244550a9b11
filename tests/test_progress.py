"""Long work says so: what, how long by its first pieces, and a line at least every so often without a terminal."""

import json
import re
import time
from pathlib import Path

import pytest

from confide.cli import progress
from confide.cli.progress import bar, duration, watch
from confide.common.run_folder import CONFIG, METRICS
from confide.common.stages import Stages
from confide.server.record import write_progress


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenths of a second in the place of seconds."""
    for name, value in {"_SILENCE": 0.3, "_QUIET": 0.4, "_MEASURED": 0.1, "_LONG": 0.5, "_INTERVAL": 0.02}.items():
        monkeypatch.setattr(progress, name, value)


def test_long_work_says_what_and_how_long_once(quick: None, capsys: pytest.CaptureFixture) -> None:
    with bar("noise on 20 texts (--full: 500)") as told:
        for done in range(10):
            told("noise", done, 20)
            time.sleep(0.06)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"noise on 20 texts \(--full: 500\): about \d+ s on this machine", lines[0])
    assert sum("on this machine" in line for line in lines) == 1


def test_short_work_says_nothing(quick: None, capsys: pytest.CaptureFixture) -> None:
    with bar("nothing much") as told:
        for done in range(3):
            told("noise", done, 3)
            time.sleep(0.06)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_line_comes_however_long_a_piece_takes(quick: None, capsys: pytest.CaptureFixture) -> None:
    with bar("much") as told:
        told("exporting", 0, 1)
        time.sleep(1.4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "exporting"  # a stage that takes a while
    assert len(lines) >= 3
    assert all(re.fullmatch(r"exporting, \d+ s so far", line) for line in lines[1:])


def test_a_second_count_is_measured_by_itself(quick: None, capsys: pytest.CaptureFixture) -> None:
    with bar("all of it") as told:
        for stage, total in (("distilling, loss 0.1", 12), ("measuring: int8", 14)):
            for done in range(8):
                told(stage, done, total)
                time.sleep(0.06)
    told_long = [line.split(":")[0] for line in capsys.readouterr().err.splitlines() if "on this machine" in line]
    assert told_long == ["all of it", "measuring"]


def test_a_run_tells_how_long_its_other_rounds_take(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / CONFIG).write_text("[run]\nrounds = 5\n")
    with watch(tmp_path, "mine"):
        state = {"stage": "training", "round": 1, "rounds": 5, "done": 0, "asked": 0}
        write_progress(tmp_path, state)
        (tmp_path / METRICS).write_text(json.dumps({"round": 1, "seconds": 7.0, "failed": []}) + "\n")
        time.sleep(0.2)
        write_progress(tmp_path, state | {"round": 2, "done": 1, "asked": 3})
        time.sleep(0.9)
    lines = capsys.readouterr().err.splitlines()
    assert "mine: 4 rounds left: about 28 s, if all take as long as the first" in lines
    assert any(
        re.fullmatch(r"mine: training, round 2 of 5, 1 of 3, \d+ s so far, about \d+ s of rounds left", line)
        for line in lines
    )


def test_a_first_round_that_took_much_longer_is_put_right(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / CONFIG).write_text("[run]\nrounds = 30\n")
    with watch(tmp_path):
        for number in range(1, 9):
            write_progress(tmp_path, {"stage": "training", "round": number, "rounds": 30, "done": 0, "asked": 0})
            with (tmp_path / METRICS).open("a") as file:
                file.write(json.dumps({"round": number, "seconds": 25.0 if number == 1 else 0.1, "failed": []}) + "\n")
            time.sleep(0.1)
    said = [line for line in capsys.readouterr().err.splitlines() if "rounds left" in line]
    first, second = (re.fullmatch(r"(\d+) rounds left: about (\d+) (s|min), .*", line) for line in said)
    assert first is not None
    assert first.group(2, 3) == ("12", "min")
    assert second is not None
    assert int(second[2]) < 10
    assert second[3] == "s"


def test_after_each_of_several_runs_it_is_said_how_long_the_others_take(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    seen = progress.watching("3 reference models", 3)
    for number in range(3):
        with seen(tmp_path, f"model {number + 1}"):
            time.sleep(0.6)
    lines = [line for line in capsys.readouterr().err.splitlines() if "loading" not in line]
    assert lines == [
        "3 reference models; how long, is said after the first",
        "model 1: 1 s; the others: about 1 s",
        "model 2: 1 s; the others: about 1 s",
    ]


def test_stages_are_told_as_one_whole() -> None:
    told: list[tuple[str, int, int]] = []
    stages = Stages(lambda *state: told.append(state), {"noise": 60.0, "sites": 0.0, "attacks": 40.0})
    stages.done("noise", 1, 2, "casing")
    stages.done("noise", 2, 2)
    stages.done("sites", 0, 0)
    stages.done("attacks", 3, 4)
    assert told == [("noise: casing", 30, 100), ("noise", 60, 100), ("sites", 60, 100), ("attacks", 90, 100)]


@pytest.mark.parametrize(
    ("seconds", "words"), [(9.6, "10 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7200, "2 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("sequence-classification", "accuracy 0.900, loss 0.100"),
        ("token-classification", "span F1 0.300, loss 0.100"),
        ("causal-lm", "loss 0.100"),
        ("nothing", None),
    ],
)
def test_a_round_is_told_by_the_main_figure_of_its_task(tmp_path: Path, task: str, told: str | None) -> None:
    (tmp_path / CONFIG).write_text(f'[run]\nrounds = 3\n[model]\ntask = "{task}"\n')
    row = {"round": 1, "accuracy": 0.9, "span_f1": 0.3, "loss": 0.1, "failed": [], "seconds": 2.0}
    wanted = None if told is None else f"round 1 of 3: {told}, 2.0 s"
    assert progress._in_words(json.dumps(row), tmp_path, "") == wanted
