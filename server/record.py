"""What a run writes while it goes: metrics.jsonl, TensorBoard scalars, and progress.json for whoever watches."""

import json
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..common.run_folder import METRICS, PROGRESS
from ..common.whole import naming, write_whole


class Recorder:
    """One a run; `close` flushes."""

    def __init__(self, folder: Path, rounds: int, history: list[dict[str, Any]]) -> None:
        """history: rows of rounds that are already done; metrics.jsonl is rewritten to hold exactly these."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._rounds = rounds
        self._last_progress = 0.0
        write_whole(folder / METRICS, "".join(json.dumps(row) + "\n" for row in history))
        self._scalars = SummaryWriter(str(folder / "tensorboard"), purge_step=len(history) + 1 if history else None)

    def row(self, row: dict[str, Any]) -> None:
        """A finished round."""
        path = self._folder / METRICS
        with naming(path), path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        with naming(self._folder / "tensorboard"):
            for key, value in row.items():
                if isinstance(value, int | float) and key != "round":
                    self._scalars.add_scalar(key, value, row["round"])
            counted = row.get("at_sites")
            if counted is not None and counted["value"] is not None:
                self._scalars.add_scalar(f"at_sites/{counted['name']}", counted["value"], counted["after"])

    def progress(
        self, stage: str, number: int = 0, done: int = 0, asked: int = 0, figure: tuple[str, float] | None = None
    ) -> None:
        """What is going on, at most ten times a second while replies come in. figure: the main metric, by its name."""
        now = time.monotonic()
        if 0 < done < asked and now - self._last_progress < 0.1:
            return
        self._last_progress = now
        state = {"stage": stage, "round": number, "rounds": self._rounds, "done": done, "asked": asked}
        if figure is not None:
            state["figure"] = figure
        write_progress(self._folder, state)

    def close(self) -> None:
        with naming(self._folder / "tensorboard"):
            self._scalars.close()
        (self._folder / PROGRESS).unlink(missing_ok=True)


def write_progress(folder: Path, state: dict[str, Any]) -> None:
    """state: stage, round, rounds; of what the round, or the stage, asks for, how much is done."""
    write_whole(folder / PROGRESS, json.dumps(state))
