"""Arguments as people give them: ~ behind an = is their folder, an empty path is none, --debug may stand anywhere."""

import os
import re
from typing import Any

import click

_HOME = re.compile(r"(--[\w-]+=)(~(?:/.*)?)", re.DOTALL)
DEBUG = "--debug"


def read_arguments(given: list[str]) -> tuple[list[str], bool]:
    """What the commands get, and whether --debug was among it."""
    end = given.index("--") if "--" in given else len(given)
    options = [one for one in given[:end] if one != DEBUG]
    expanded = [
        f"{found[1]}{os.path.expanduser(found[2])}" if (found := _HOME.fullmatch(one)) else one for one in options
    ]
    return [*expanded, *given[end:]], DEBUG in given[:end]


class _NamedPath(click.Path):
    """A path that is there: of a shell's variable that is not set, nothing comes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("an empty path was received; give one (is a variable of your shell not set?)", param, ctx)
        return super().convert(value, param, ctx)


def with_named_paths(command: click.Command) -> click.Command:
    """The command, and those under it, refusing empty paths."""
    for param in command.params:
        if isinstance(param.type, click.Path):
            param.type = _NamedPath()
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        with_named_paths(inner)
    return command
