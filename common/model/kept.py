"""What is made of a model's folder, kept in a process for as long as the folder stays what it is."""

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from ..config.tables import ModelSection
from .backbones import Folders

P = ParamSpec("P")
R = TypeVar("R")
_Files = tuple[tuple[str, int, int], ...]
"""name, bytes and time of each file of a folder"""


class Kept(Generic[P, R]):
    """A function of `model` and `folders`, among others: its last results, each for the same arguments and the same
    files. A backbone that is saved anew in its folder is another one."""

    def __init__(self, made: Callable[P, R], most: int) -> None:
        self._signature = signature(made)
        function: Callable[..., R] = made

        @lru_cache(maxsize=most)
        def kept(files: tuple[_Files, ...], *args: Any) -> R:
            return function(*args)

        self._kept = kept
        self.cache_clear = kept.cache_clear

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        given = self._signature.bind(*args, **kwargs)
        given.apply_defaults()
        return self._kept(_files_of(given.arguments["model"], given.arguments["folders"]), *given.args)


def kept(most: int) -> Callable[[Callable[P, R]], Kept[P, R]]:
    """most: results that are kept at a time."""
    return lambda made: Kept(made, most)


def _files_of(model: ModelSection, folders: Folders) -> tuple[_Files, ...]:
    """Of the local folders that a model is read of. What a hub's cache has under a name does not change."""
    names = (name for name in (model.backbone, model.image_backbone) if name is not None)
    return tuple(_state(Path(dict(folders).get(name, name))) for name in names)


def _state(folder: Path) -> _Files:
    if not folder.is_dir():
        return ()
    found = ((str(file.relative_to(folder)), file.stat()) for file in sorted(folder.rglob("*")) if file.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
