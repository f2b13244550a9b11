"""Many runs behind one page: what was played is kept in results.jsonl, so that a recipe that was stopped goes on."""

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ...common.config.section import override
from ...common.run_folder import CONFIG, require_room

RESULTS = "results.jsonl"

RoundCallback = Callable[[Path, str], AbstractContextManager[None]]
"""shows the progress of the run in a folder, a title before it"""


class Results:
    """The folder of a recipe of many runs."""

    def __init__(self, folder: Path, text: str, *, overwrite: bool = False) -> None:
        """text: of the recipe as it is played; a folder that holds results of the same text is continued.

        Raises ConfigError when it holds something else and `overwrite` is not set.
        """
        self.folder = folder
        if not self._continues(text):
            require_room(folder, overwrite=overwrite)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RESULTS).unlink(missing_ok=True)
            (folder / CONFIG).write_text(text, encoding="utf-8")

    def _continues(self, text: str) -> bool:
        path = self.folder / CONFIG
        return path.is_file() and path.read_text(encoding="utf-8") == text and (self.folder / RESULTS).is_file()

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
        with (self.folder / RESULTS).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

    def place(self, *parts: object) -> Path:
        """The folder of one run."""
        return self.folder / "runs" / "-".join(_slug(str(part)) for part in parts)


def varied(base: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """A recipe's content with KEY=VALUE texts on top; the recipe stays as it is. Raises ConfigError."""
    content = copy.deepcopy(base)
    override(content, assignments)
    return content


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)
