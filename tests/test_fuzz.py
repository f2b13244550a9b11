"""What nobody means: mutated configurations, data files and folders of runs give a result or one line. No traceback, no
hang, no file that is half written, no word of a record in a message."""

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from confide.common.config.run import RunConfig
from confide.simulations.run import simulate
from confide.tests import fuzz
from confide.tests.tiny import merged, run_content, write_csv

# matplotlib warns of letters that its font lacks, and of labels without room; the command prints that, and goes on
pytestmark = pytest.mark.filterwarnings("ignore:Glyph:UserWarning", "ignore:.*constrained_layout:UserWarning")

_SECONDS, _MEMORY = 90, 8 * 2**30
"""of one case; that one case may take beside what the process holds"""


class _HangsError(BaseException):
    pass


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    def over(*_: object) -> None:
        raise _HangsError

    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, over)
    resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY, before[1]))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def finished(bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = merged(run_content(bert, data, tmp_path_factory.mktemp("finished") / "run"), {"run": {"rounds": 1}})
    return simulate(RunConfig.parse(content, "test"))


@pytest.fixture
def settles(confide, tmp_path: Path):
    """Runs a command; `made` is there and whole afterwards, or not there."""

    def call(case: object, made: Path, *arguments: object) -> int:
        signal.alarm(_SECONDS)
        code, out, err = confide(*arguments)
        signal.alarm(0)
        told = f"case {case}: {' '.join(map(str, arguments))}\n{out[-500:]}\n{err[-3000:]}"
        lines = [line for line in err.splitlines() if line.startswith("confide: ")]
        assert "Traceback" not in out + err, told
        assert "a fault of confide" not in err, told
        assert fuzz.SECRET not in err, told
        assert (code in (1, 2)) == bool(lines), told
        assert len(lines) <= 1, told
        assert not lines or (err.rstrip("\n").endswith(lines[0]) and len(lines[0]) < 2000), told
        assert not code or not made.exists(), told
        assert not [*tmp_path.rglob("*.partial"), *tmp_path.rglob(".*")], told
        return code

    return call


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _configurations(settles, bert: Path, data: Path, place: Path, seeds: range) -> None:
    for seed in seeds:
        folder, rng = _fresh(place / "case"), np.random.default_rng([seed, 1])
        path = fuzz.configurations(bert, data, folder, rng)
        plot = folder / "plot.png"
        settles(seed, plot, "explain", path, "--plot", plot)


def _data_files(settles, bert: Path, data: Path, place: Path, seeds: range) -> None:
    for seed in seeds:
        folder, rng = _fresh(place / "case"), np.random.default_rng([seed, 2])
        path, out = fuzz.data_file(folder, rng), folder / "out"
        task = "token-classification" if "conll" in path.name else "sequence-classification"
        run = merged(run_content(bert, data, out), {"model": {"task": task}, "privacy": fuzz.QUICK})
        recipe = folder / "run.toml"
        recipe.write_text(RunConfig.parse(run, "test").to_toml())
        match seed % 3:
            case 0:
                settles(seed, out, "data", "check", path, "--backbone", "", "--out", out)
            case 1:
                settles(seed, out, "data", "show", recipe, "--set", f"data.train={path}")
            case _:
                settles(seed, out, "explain", recipe, "--set", f"data.test={path}", "--plot", out)


def _asked(settles, finished: Path, place: Path, seeds: range) -> None:
    """Files that `predict` reads."""
    for seed in seeds:
        folder, rng = _fresh(place / "case"), np.random.default_rng([seed, 3])
        path, out = fuzz.data_file(folder, rng, ("csv", "jsonl")), folder / "answers.csv"
        settles(seed, out, "predict", finished, path, "--variant", "torch", "--out", out)


def _runs(settles, finished: Path, place: Path, seeds: range) -> None:
    rows = write_csv(place / "rows.csv", [("a good film", "1"), ("a sad story", "2")], ("text", "id"))
    for seed in seeds:
        folder, rng = _fresh(place / "case"), np.random.default_rng([seed, 4])
        done = fuzz.spoil_run(finished, folder / "run", rng)
        match seed % 4:
            case 0:
                out = folder / "export"
                settles((seed, done), out, "export", folder / "run", "--out", out)
            case 1:
                out = folder / "to-label.csv"
                settles((seed, done), out, "label", "suggest", rows, folder / "run" / "adapter", "--out", out)
            case _:
                out = folder / "answers.csv"
                settles((seed, done), out, "predict", folder / "run", rows, "--variant", "torch", "--out", out)


def test_a_hundred_of_them(settles, bert: Path, data: Path, finished: Path, tmp_path: Path) -> None:
    _configurations(settles, bert, data, tmp_path, range(40))
    _data_files(settles, bert, data, tmp_path, range(30))
    _asked(settles, finished, tmp_path, range(10))
    _runs(settles, finished, tmp_path, range(20))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_two_thousand_of_them(settles, bert: Path, data: Path, finished: Path, tmp_path: Path, part: int) -> None:
    first = 1000 * (part + 1)
    _configurations(settles, bert, data, tmp_path, range(first, first + 90))
    _data_files(settles, bert, data, tmp_path, range(first, first + 75))
    _asked(settles, finished, tmp_path, range(first, first + 25))
    _runs(settles, finished, tmp_path, range(first, first + 60))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_some_are_played(settles, bert: Path, data: Path, tmp_path: Path, seed: int) -> None:
    """Of configurations whose sizes stay small."""
    rng, place = np.random.default_rng([seed, 5]), tmp_path / "case"
    place.mkdir()
    content = merged(run_content(bert, data, place / "out"), {"run": {"rounds": 1}})
    small = [value for value in fuzz.VALUES if not isinstance(value, int | float) or abs(value) <= 7]
    for _ in range(2):
        fuzz._set(content, fuzz.pick(rng, fuzz.KEYS), fuzz.pick(rng, small))
    path = place / "run.toml"
    path.write_text(fuzz._as_toml(content))
    settles(seed, place / "out" / "report.html", "simulate", path, "--out", place / "out")
