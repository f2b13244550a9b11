"""What a person sees while a run goes on, and the table at its end; read from the run folder, whatever engine runs."""

import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..common.run_folder import PROGRESS
from ..server.report import read_report

_INTERVAL = 0.2


@contextmanager
def watch(folder: Path, title: str = "") -> Iterator[None]:
    """Shows the progress of the run in `folder` on a terminal, the title before it; elsewhere nothing.

    Quiets the libraries meanwhile.
    """
    _quiet_libraries()
    with _progress() as progress:
        end = threading.Event()
        thread = threading.Thread(target=_follow, args=(progress, folder, title, end), daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """One bar for work in this process: called with stage, done, and of how many."""
    _quiet_libraries()
    with _progress() as shown:
        task = shown.add_task("loading", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            shown.update(task, description=stage, completed=done, total=total)

        yield progress


def _progress() -> Progress:
    """Shown on a terminal only."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def _follow(progress: Progress, folder: Path, title: str, end: threading.Event) -> None:
    before = f"{title}: " if title else ""
    rounds = progress.add_task(f"{before}loading model and data", total=None)
    sites = progress.add_task("sites", total=None, visible=False)
    while not end.wait(_INTERVAL):
        try:
            state = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue  # not there yet
        text = "rounds" if state["stage"] == "training" else state["stage"]
        if "accuracy" in state:
            text += f", accuracy {state['accuracy']:.3f}"
        under_way = state["done"] < state["asked"]
        progress.update(rounds, description=before + text, total=state["rounds"], completed=state["round"] - under_way)
        if state["asked"]:
            progress.update(sites, total=state["asked"], completed=state["done"], visible=True)


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLEPROGRESS_BARS", "1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)


def print_summary(folder: Path) -> None:
    """The final table: before, after, privacy, and where the report is."""
    report = read_report(folder)
    table = Table(title=report["name"], title_justify="left")
    table.add_column("public test set")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, value in report["after"].items():
        table.add_row(name, f"{report['before'][name]:.4f}", f"{value:.4f}")
    console = Console()
    console.print(table)
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
