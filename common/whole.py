"""A file, or a folder, that is whole or not there: written beside its place, and renamed into it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from .errors import ConfigError

_RUNS_OWN = ("adapter", "checkpoints")
_PNG = b"\x89PNG"


def require_writable(path: Path, what: str) -> None:
    """Before minutes are spent on what will be written there. what: the option or key that named it.

    Raises ConfigError where a folder above it is a file, or this user may not write to the last that is there, and for
    a place among the files of a run, which are read as a whole.
    """
    for one in (path.resolve(), *path.resolve().parents):
        if one.name in _RUNS_OWN and (one.parent / "config.toml").is_file():
            raise ConfigError(f"{what}: received {path}, which is within {one.name}/ of a run; give another path")
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if there != path and not there.is_dir():
        raise ConfigError(f"{what}: received {path}, but {there} is a file, and no folder; give another path")
    if not os.access(there, os.W_OK | os.X_OK if there.is_dir() else os.W_OK):
        raise ConfigError(
            f"{what}: received {path}, but this user may not write to {there}; change its owner or mode, or give "
            "another path"
        )


def require_image(path: Path, what: str) -> None:
    """As `require_writable`, for an image: it may replace one, and no other file. Raises ConfigError."""
    require_writable(path, what)
    if path.is_file() and path.stat().st_size and not _begins(path, _PNG):
        raise ConfigError(f"{what}: received {path}, a file that is no image, which would be lost; give another path")


def _begins(path: Path, beginning: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


def new_file(path: Path) -> Path:
    """The path, or the first of NAME-2, NAME-3, … where nothing is yet."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return path if not path.exists() else next(one for one in numbered if not one.exists())


def require_new(out: Path) -> None:
    """Raises ConfigError unless a folder can be made there: it is not there yet, or is empty."""
    require_writable(out, "--out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is not empty; give another folder with --out")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the path to write to; it becomes `path` when the block ends, and is removed when the block fails.

    Raises OSError that names `path`, also where the system's own names no file (a disk that is full).
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with naming(path, partial):
            yield partial
            partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def write_whole(path: Path, text: str) -> None:
    """UTF-8. Raises OSError as `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. Gives a folder of mode 0700 to write to; what is in one that is there already stays, but
    for files of the same names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming(path),
        tempfile.TemporaryDirectory(dir=_near(path), prefix=".") as scratch,
        naming(path, Path(scratch)),
    ):
        place = Path(scratch) / "whole"
        place.mkdir(mode=0o700)
        yield place
        if not path.exists():
            place.rename(path)
            return
        for part in sorted(place.iterdir()):  # the folder may be the one that somebody stands in
            part.rename(path / part.name)


def _near(path: Path) -> Path:
    """Where files can be renamed into a folder from: beside it, or in it, where that is another disk's or user's."""
    beside = path.parent
    same = not path.is_dir() or path.stat().st_dev == beside.stat().st_dev
    return beside if same and os.access(beside, os.W_OK | os.X_OK) else path


@contextmanager
def naming(path: Path, *instead_of: Path) -> Iterator[None]:
    """OSErrors of the block name `path`, where they name no file, one of `instead_of` or what is in it, or two files:
    of a copy that fails Python names the source first, which has nothing to do with a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename2 is not None or _is_of(error.filename, instead_of)):
            error.filename = str(path)
        raise


def _is_of(name: object, instead_of: tuple[Path, ...]) -> bool:
    if not isinstance(name, str | Path):
        return name is None
    return any(Path(name).is_relative_to(one) for one in instead_of)


def _remove(partial: Path) -> None:
    try:
        partial.unlink(missing_ok=True)
    except OSError:  # where its folder is none, or may not be written to, there is no file
        return
