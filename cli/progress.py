"""What a person sees while a run goes on, read from the run folder whatever engine runs, and the table at its end;
and the same for work of this process.

On a terminal there are bars with the time left; elsewhere lines, one every half a minute at least. Before work of more
than ten seconds it is said what will be done, and how long it will take: measured on the first pieces of it.
"""

import json
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..common.errors import ConfigError
from ..common.run_folder import CONFIG, METRICS, PROGRESS
from ..common.types import DEFAULT_TASK, ProgressCallback
from ..server.report import figures, read_report, sentences
from .terminal import Terminal

_INTERVAL, _SILENCE, _QUIET = 0.2, 3.0, 30.0
"""seconds: between looks; until a run that has said nothing is said to be loading; without a line, where there is no
terminal"""
_NAMED, _REASON = 2, 100
"""failures of a round that are told with their reason, and how many characters of it"""
_PACED, _FAR = 3, 1.5
"""rounds after which the time that is left is said again, where it differs by such a factor"""
_MEASURED, _LONG = 2.0, 10.0
"""seconds: that are measured before it is said how long work will take; of work of which that is said"""
_LOADING = "loading and checking the model"


@contextmanager
def watch(folder: Path, title: str = "") -> Iterator[None]:
    """Shows the progress of the run in `folder`, the title before it: bars on a terminal, elsewhere a line a stage and
    a round."""
    with _progress() as progress:
        end = threading.Event()
        shown = partial(_tell, {*_rounds_done(folder)}) if progress.disable else partial(_follow, progress)
        thread = threading.Thread(target=shown, args=(folder, title, end), daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


@contextmanager
def bar(what: str = "") -> Iterator[ProgressCallback]:
    """One bar for work in this process: called with stage, done, and of how many.

    what: is done, in words, with the option that makes it more or less; said with the time it will take, once that has
    been measured, where it is long.
    """
    with _progress() as shown:
        end, work = threading.Event(), _Work(what, shown)
        thread = threading.Thread(target=work.watch, args=(end,), daemon=True)
        thread.start()
        try:
            yield work.update
        finally:
            end.set()
            thread.join()


class _Work:
    """Work of this process: how far it is, and how long what is left will take at the pace so far."""

    def __init__(self, what: str, shown: Progress) -> None:
        self._what, self._shown = what, shown
        self._task = shown.add_task("loading", total=None)
        self._started = self._since = self._told = time.monotonic()
        self._stage, self._first, self._done, self._total = "loading", 0, 0, 0
        """of what is counted now: where the count began, how far it is, and its end"""
        self._announced = False
        self._named, self._stage_since = self._stage, self._started
        """the stage that was last said, and when the one that goes on began"""
        self._lock = threading.Lock()

    def update(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            if total != self._total or done < self._done:  # something else is counted from here on
                self._first, self._since, self._announced = done, time.monotonic(), False
            if _plain(stage) != _plain(self._stage):
                self._stage_since = time.monotonic()
            self._stage, self._done, self._total = stage, done, total
            self._shown.update(self._task, description=stage, completed=done, total=total)
            self._announce()

    def watch(self, end: threading.Event) -> None:
        """Where there is no terminal: says stages that take seconds, and at least every half a minute how far they
        are."""
        while self._shown.disable and not end.wait(_INTERVAL):
            with self._lock:
                now, stage = time.monotonic(), _plain(self._stage)
                if now - self._told > _QUIET:
                    self._say(self._state())
                elif stage != self._named and now - self._stage_since > _SILENCE:
                    self._say(stage)

    def _announce(self) -> None:
        elapsed = time.monotonic() - self._since
        if self._announced or elapsed < _MEASURED or (left := self._left()) is None:
            return
        self._announced = True
        if elapsed + left > _LONG:
            self._say(f"{self._what or _plain(self._stage)}: about {duration(elapsed + left)} on this machine")
            self._what = ""  # of the first count; the next is another's

    def _left(self) -> float | None:
        """Seconds; None before a piece is done."""
        pieces = self._done - self._first
        return (time.monotonic() - self._since) / pieces * (self._total - self._done) if pieces else None

    def _state(self) -> str:
        counted = [f"{self._done:,} of {self._total:,}"] if self._total > 1 else []
        left = self._left()
        ahead = [] if left is None else [f"about {duration(left)} left"]
        return ", ".join([self._stage, *counted, f"{duration(time.monotonic() - self._started)} so far", *ahead])

    def _say(self, line: str) -> None:
        self._told, self._named = time.monotonic(), _plain(self._stage)
        if self._shown.disable:
            typer.echo(line, err=True)
        else:
            self._shown.console.print(line)


def _plain(stage: str) -> str:
    """Without what changes within it."""
    return stage.partition(",")[0].partition(":")[0]


def duration(seconds: float) -> str:
    """In words, as exact as an estimate is."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.0f} h"


def _progress() -> Progress:
    """Shown on a terminal only."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    console = Terminal(stderr=True)
    disable = not console.is_terminal
    return Progress(*columns, console=console, disable=disable, transient=True, speed_estimate_period=120)


def _follow(progress: Progress, folder: Path, title: str, end: threading.Event) -> None:
    before = f"{title}: " if title else ""
    rounds = progress.add_task(f"{before}{_LOADING}", total=None)
    sites = progress.add_task("sites", total=None, visible=False)
    while not end.wait(_INTERVAL):
        state = _state(folder)
        if state is None:
            continue
        text = "rounds" if state["stage"] == "training" else state["stage"]
        if "figure" in state:
            text += ", {} {:.3f}".format(*state["figure"])
        training = state["stage"] == "training"
        under_way = training and state["done"] < state["asked"]
        progress.update(rounds, description=before + text, total=state["rounds"], completed=state["round"] - under_way)
        what = "sites" if training else "parts"
        progress.update(
            sites, description=what, total=state["asked"], completed=state["done"], visible=state["asked"] > 0
        )


def _tell(known: set[str], folder: Path, title: str, end: threading.Event) -> None:
    """known: rounds that were done before, of this run or of one that it replaces."""
    before, over, stage = f"{title}: " if title else "", False, ""
    started = told_at = time.monotonic()
    pace = _Pace()
    while not over:
        over = end.wait(_INTERVAL)
        state = _state(folder) or {}
        now = state.get("stage", stage)
        lines = [line for line in _rounds_done(folder) if line not in known]
        known.update(lines)
        told = [words for line in lines if (words := _in_words(line, folder, title))]
        told += [f"{before}{line}" for line in pace.said(lines, state)]
        if not now and not told and time.monotonic() - started > _SILENCE:
            now = _LOADING
        if now != stage and not over:  # rounds come after their stage, and before what follows them
            stage = now
            told.insert(0 if now == "training" else len(told), f"{before}{now}")
        if not told and not over and time.monotonic() - told_at > _QUIET:
            told.append(f"{before}{_under_way(stage, state, time.monotonic() - started)}{pace.left(state)}")
        for line in told:
            told_at = time.monotonic()
            typer.echo(line, err=True)


def _under_way(stage: str, state: dict[str, Any], seconds: float) -> str:
    """What a run does that has not said anything for a while."""
    done = [f"{state['done']} of {state['asked']}"] if state.get("asked") else []
    number = [f"round {state['round']} of {state['rounds']}"] if stage == "training" else []
    return ", ".join([stage, *number, *done, f"{duration(seconds)} so far"])


def watching(what: str, times: int) -> Callable[[Path, str], AbstractContextManager[None]]:
    """`watch` for runs of one kind, so many of them: what is said before the first one, and after each how long the
    others will take, where that is long."""
    done: list[float] = []

    @contextmanager
    def watch_one(folder: Path, title: str) -> Iterator[None]:
        if not done:
            typer.echo(f"{what}; how long, is said after the first", err=True)
        started = time.monotonic()
        with watch(folder, title):
            yield
        done.append(time.monotonic() - started)
        left = max(0, times - len(done)) * sum(done) / len(done)
        if left > _LONG:
            typer.echo(f"{title}: {duration(done[-1])}; the others: about {duration(left)}", err=True)

    return watch_one


class _Pace:
    """How long a run's rounds take, by those that were seen. The first one also prepares what the others share."""

    def __init__(self) -> None:
        self._rounds, self._first_ones = 0, 0
        """that were seen; of these, at the first look"""
        self._first, self._seen, self._last, self._told = 0.0, 0.0, 0.0, 0.0
        """seconds of the first one, by its own account; when that and the last one were seen; seconds a round
        that were last said"""

    def said(self, lines: list[str], state: dict[str, Any]) -> list[str]:
        """lines: of metrics.jsonl that have come since the last look. After the first round how long the others will
        take, where that is long; again after some, where that was far from it."""
        if not lines:
            return []
        first = not self._rounds
        self._rounds += len(lines)
        self._last = time.monotonic()
        if first:
            self._first, self._seen = sum(map(_seconds_of, lines)) / len(lines), self._last
            self._first_ones = self._rounds
        pace, left = self._pace(), self._seconds(state)
        if not first and (self._rounds < _PACED or self._told / _FAR < pace < self._told * _FAR):
            return []
        self._told = pace
        if left <= _LONG:
            return []
        rest = "if all take as long as the first" if first else "on this machine"
        return [f"{_ahead(state)} rounds left: about {duration(left)}, {rest}"]

    def left(self, state: dict[str, Any]) -> str:
        return f", about {duration(seconds)} of rounds left" if (seconds := self._seconds(state)) else ""

    def _pace(self) -> float:
        """Seconds a round: of those after the first, once there are any."""
        after = self._rounds - self._first_ones
        return (self._last - self._seen) / after if after else self._first

    def _seconds(self, state: dict[str, Any]) -> float:
        """0 outside training, and before a round is done."""
        return self._pace() * _ahead(state) if self._rounds else 0.0


def _seconds_of(line: str) -> float:
    """Of a round; 0 for a line that somebody changed."""
    try:
        return float(json.loads(line)["seconds"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def _ahead(state: dict[str, Any]) -> int:
    """Rounds that are not over, that under way included; 0 outside training."""
    if state.get("stage") != "training":
        return 0
    return state["rounds"] - state["round"] + (state["done"] < state["asked"])


def _state(folder: Path) -> dict[str, Any] | None:
    """What is going on; None before anything is."""
    try:
        return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _rounds_done(folder: Path) -> list[str]:
    """Lines of metrics.jsonl, but for one that is being written."""
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError):
        return []  # not there yet, or not a run's
    return [line for line in lines if line.endswith("\n")]


def _in_words(line: str, folder: Path, title: str) -> str | None:
    """A round, by the main figure of its task and its loss; None for a line that somebody changed."""
    from ..common.tasks import LOSS, load_task

    try:
        row, config = json.loads(line), tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
        rounds, main = config["run"]["rounds"], load_task(config.get("model", {}).get("task", DEFAULT_TASK)).MAIN
        figures = [f"{one.name} {row[one.key]:.3f}" for one in dict.fromkeys((main, LOSS)) if one.key in row]
        if failed := row["failed"]:
            first = "; ".join(f"{one['site']}: {one['reason'][:_REASON]}" for one in failed[:_NAMED])
            figures.append(f"{len(failed)} failed ({first}{'; …' if len(failed) > _NAMED else ''})")
        before = f"{title}: " if title else ""
        return f"{before}round {row['round']} of {rounds}: {', '.join([*figures, format(row['seconds'], '.1f')])} s"
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def print_summary(folder: Path) -> None:
    """The final table: before, after, what it says in words, privacy, and where the report is."""
    report = read_report(folder)
    table = Table(title=report["name"], title_justify="left")
    table.add_column("public test set")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    before = figures(report["before"])
    for name, value in figures(report["after"]).items():
        table.add_row(name, f"{before[name]:.4f}", f"{value:.4f}")
    console = Terminal()
    console.print(table)
    for line in sentences(report):
        console.print(line)
    privacy = report["privacy"]
    if privacy["mode"] == "none":
        console.print("privacy: none; the server saw every update")
    else:
        console.print(
            f"privacy: ε = {privacy['epsilon_spent']:.3f} spent of {privacy['epsilon_planned']:g} planned at δ = "
            f"{privacy['delta']:g}, per {privacy['unit'].split(':')[0]}, against {privacy['adversary']}"
        )
    seconds = sum(row["seconds"] for row in report["rounds"])
    failed = sum(len(row["failed"]) for row in report["rounds"])
    console.print(f"rounds: {len(report['rounds'])} in {seconds:.0f} s, {failed} failures")
    # not wrapped: a path is there to be copied
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    console.print(f"adapter: {folder / 'adapter'}", soft_wrap=True)
