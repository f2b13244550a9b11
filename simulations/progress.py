"""What a person sees while a run goes on, and the table at its end. It reads the run folder, whatever engine writes it."""

import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

_PROGRESS = "progress.json"
_INTERVAL = 0.2


class Watcher:
    """A progress display on standard error that follows a run folder from a thread of its own."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = progress.add_task("starting", total=None)
        self._folder: Path | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stage(self, text: str) -> None:
        self._progress.update(self._stage, description=text)

    def follow(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _loop(self) -> None:
        sites = None
        while not self._end.wait(_INTERVAL):
            state = self._read()
            if state is None:
                continue
            text = state["stage"] if state["stage"] != "training" else "rounds"
            if "accuracy" in state:
                text += f", accuracy {state['accuracy']:.3f}"
            done = state["round"] - (0 < state["done"] < state["asked"])
            self._progress.update(self._stage, description=text, total=state["rounds"], completed=max(0, done))
            if state["asked"]:
                if sites is None:
                    sites = self._progress.add_task("sites", total=state["asked"])
                self._progress.update(sites, description="sites", total=state["asked"], completed=state["done"])

    def _read(self) -> dict[str, Any] | None:
        if self._folder is None:
            return None
        try:
            return json.loads((self._folder / _PROGRESS).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None


@contextmanager
def watch() -> Iterator[Watcher]:
    """Shows progress on a terminal; elsewhere only what is printed at the end. Quiets the libraries meanwhile."""
    _quiet_libraries()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        watcher = Watcher(progress)
        try:
            yield watcher
        finally:
            watcher.close()


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")


def print_summary(folder: Path) -> None:
    """The final table: before, after, privacy, and where the report is."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
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
            f"{privacy['delta']:g}, per record, against {privacy['adversary']}"
        )
    seconds = sum(row["seconds"] for row in report["rounds"])
    failed = sum(len(row["failed"]) for row in report["rounds"])
    console.print(f"rounds: {len(report['rounds'])} in {seconds:.0f} s, {failed} failures")
    # not wrapped: a path is there to be copied
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    console.print(f"adapter: {folder / 'adapter'}", soft_wrap=True)
