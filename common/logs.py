"""Logs of the processes that run for months: to the terminal and to a file that rotates, as text or as JSON."""

import json
import logging
import logging.handlers
from pathlib import Path

from .errors import ConfigError

_BYTES, _FILES = 10 * 2**20, 5


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        return json.dumps({**facts, "message": record.getMessage()}, ensure_ascii=False)


def log_to(path: Path, *, as_json: bool = False) -> None:
    """What confide's own loggers say, from INFO on; of libraries, warnings. Raises ConfigError without the folder."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder; make it with init first")
    formatter = JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        logging.handlers.RotatingFileHandler(path, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8"),
    ]
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logging.WARNING)
    for handler in handlers:
        handler.setFormatter(formatter)
    path.chmod(0o600)
    logging.getLogger("confide").setLevel(logging.INFO)
