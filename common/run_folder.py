"""The folder of a run: made once, continued, replaced only when it is a run's and the user says so."""

import shutil
from pathlib import Path

from .errors import ConfigError
from .whole import require_writable

CONFIG, METRICS, PROGRESS = "config.toml", "metrics.jsonl", "progress.json"


def require_room(folder: Path, *, overwrite: bool) -> None:
    """Raises ConfigError for a folder that cannot be written to, or holds something, unless it is a run's that may be
    replaced."""
    require_writable(folder, "run.output")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.output: received {folder}, which is a file; choose a folder with --out")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"run.output: {folder} is not empty; allowed: a new folder; choose --out, continue it with --resume, "
            "or replace it with --overwrite"
        )
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"run.output: {folder} holds no run of confide; --overwrite will not remove it")


def make_room(folder: Path) -> None:
    """An empty folder, after `require_room`. One that is there stays: it may be a volume of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.iterdir():
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink()


def require_run(folder: Path) -> Path:
    """The configuration of the run in a folder. Raises ConfigError when it holds none."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"--resume: {folder} holds no {CONFIG}; give the folder of an interrupted run")
    return folder / CONFIG


def own_file(path: Path) -> Path:
    """The path of a file that a run wrote, to be read. Raises ConfigError for a folder in its place, and for a pipe or
    a device, which would be waited for; not where nothing is."""
    if not path.exists() or path.is_file():
        return path
    kind = "a folder" if path.is_dir() else "a named pipe" if path.is_fifo() else "no regular file"
    raise ConfigError(f"{path}: is {kind}, and a file is expected there; remove it, and copy the run's folder again")
