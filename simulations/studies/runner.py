"""Many runs behind one page: what was played is kept in results.jsonl, so that a recipe that was stopped goes on."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from ...common.config.run import RunConfig
from ...common.config.section import assignment, override
from ...common.run_folder import CONFIG, require_room
from ...common.whole import naming, write_whole
from ...server.report import read_report
from ...server.report.render import Image, render, write_pair
from ..run import simulate

RESULTS = "results.jsonl"

Key = tuple[Any, ...]
"""which run of a recipe"""
RoundCallback = Callable[[Path, str], AbstractContextManager[None]]
"""shows the progress of the run in a folder, a title before it"""


class Results:
    """The folder of a recipe of many runs."""

    def __init__(self, folder: Path, content: dict[str, Any], *, overwrite: bool = False) -> None:
        """content: of the recipe as it is played; a folder that holds results of the same content is continued.

        Raises ConfigError when it holds something else and `overwrite` is not set.
        """
        self.folder, self._text = folder.resolve(), tomli_w.dumps(content)
        if not self._continues():
            require_room(self.folder, overwrite=overwrite)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / RESULTS).unlink(missing_ok=True)
            write_whole(self.folder / CONFIG, self._text)

    def _continues(self) -> bool:
        path = self.folder / CONFIG
        return path.is_file() and path.read_text(encoding="utf-8") == self._text and (self.folder / RESULTS).is_file()

    def complete(
        self, wanted: Mapping[Key, Callable[[str], dict[str, Any]]], key_of: Callable[[dict[str, Any]], Key]
    ) -> list[dict[str, Any]]:
        """The rows that are wanted, in their order; what is missing is played and kept.

        wanted: a row's key → plays it, given how far the recipe is, in words.
        """
        done = {key_of(row): row for row in self.rows()}
        for number, (key, play) in enumerate(wanted.items(), start=1):
            if key not in done:
                done[key] = play(f"{number} of {len(wanted)}")
                self.add(done[key])
        return [done[key] for key in wanted]

    def rows(self) -> list[dict[str, Any]]:
        """What has been played."""
        path = self.folder / RESULTS
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:  # the line that a crash cut short
                continue
        return rows

    def add(self, row: dict[str, Any]) -> None:
        path = self.folder / RESULTS
        before = path.read_bytes() if path.is_file() else b""
        with naming(path), path.open("a", encoding="utf-8") as lines:
            cut = before and not before.endswith(b"\n")  # a line that a full disk cut short stays alone
            lines.write(("\n" if cut else "") + json.dumps(row) + "\n")

    def place(self, *parts: object) -> Path:
        """The folder of one run."""
        return self.folder / "runs" / "-".join(_slug(str(part)) for part in parts)

    def write_page(self, kind: str, name: str, facts: dict[str, Any], images: list[Image], **shown: Any) -> None:
        """report.json, and report.html by the template of the kind. shown: what the template needs beside the report.

        images: title, name and figure of each.
        """
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        report = {"schema": 1, "kind": kind, "name": name, "finished": finished, **facts}
        page = render(f"{kind}.html", images, report=report, configuration=self._text, **shown)
        write_pair(self.folder, report, page)


def varied(base: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """A recipe's content with KEY=VALUE texts on top; the recipe stays as it is. Raises ConfigError."""
    content = copy.deepcopy(base)
    override(content, assignments)
    return content


def run_at(base: dict[str, Any], assignments: list[str], place: Path, where: str) -> RunConfig:
    """One run of a recipe, in a folder of its own. where: named in errors. Raises ConfigError."""
    return RunConfig.parse(varied(base, [*assignments, assignment("run.output", str(place))]), where)


def reported(config: RunConfig, watch: RoundCallback, title: str) -> dict[str, Any]:
    """Plays a run; returns its report."""
    with watch(config.output, title):
        simulate(config, overwrite=(config.output / CONFIG).is_file())
    return read_report(config.output)


def over_seeds(values: Iterable[Any]) -> tuple[Any, Any]:
    """Mean and half the distance of lowest and highest; of numbers, or of lists of one length, entry by entry."""
    found = np.asarray(list(values))
    return found.mean(0).tolist(), (np.ptp(found, axis=0) / 2).tolist()


def most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)
