"""What a person sees while a run goes on, and the table at its end; read from the run folder, whatever engine runs."""

import json
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..common.run_folder import CONFIG, METRICS, PROGRESS
from ..server.report import figures, read_report, sentences
from .terminal import Terminal

_INTERVAL, _SILENCE = 0.2, 3.0
"""seconds: between looks; until a run that has said nothing is said to be loading"""
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
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """One bar for work in this process: called with stage, done, and of how many."""
    with _progress() as shown:
        task = shown.add_task("loading", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            shown.update(task, description=stage, completed=done, total=total)

        yield progress


def _progress() -> Progress:
    """Shown on a terminal only."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Terminal(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


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
    before, over, stage, started = f"{title}: " if title else "", False, "", time.monotonic()
    while not over:
        over = end.wait(_INTERVAL)
        now = (_state(folder) or {}).get("stage", stage)
        lines = [line for line in _rounds_done(folder) if line not in known]
        known.update(lines)
        told = [words for line in lines if (words := _in_words(line, folder, title))]
        if not now and not told and time.monotonic() - started > _SILENCE:
            now = _LOADING
        if now != stage and not over:  # rounds come after their stage, and before what follows them
            stage = now
            told.insert(0 if now == "training" else len(told), f"{before}{now}")
        for line in told:
            typer.echo(line, err=True)


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
    """A round; None for a line that somebody changed."""
    try:
        row = json.loads(line)
        rounds = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))["run"]["rounds"]
        figures = [f"{name} {row[name]:.3f}" for name in ("accuracy", "loss") if name in row]
        if row["failed"]:
            figures.append(f"{len(row['failed'])} failed")
        before = f"{title}: " if title else ""
        return f"{before}round {row['round']} of {rounds}: {', '.join([*figures, format(row['seconds'], '.1f')])} s"
    except (OSError, ValueError, KeyError, TypeError):
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
