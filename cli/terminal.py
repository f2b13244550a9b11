"""What the command writes to: terminals of any encoding, pipes that close, and no markup in what others wrote."""

import errno
import os
import sys
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.errors import ConfigError


class Terminal(Console):
    """A console that takes paths, labels and texts as they are, and says when its reader is gone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def new_table(title: str, *columns: str) -> Table:
    """Columns whose name begins with '>' hold numbers."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def show(what: Any) -> None:
    """On a terminal as wide as it is."""
    console = Terminal()
    if console.is_terminal:
        console.print(what)
    else:  # a file or a pipe has no width: nothing is cut
        Terminal(width=160).print(what, soft_wrap=isinstance(what, str | Text))


def write_any_text() -> None:
    """What a stream's encoding lacks is written as an escape, so that no accent ends a command."""
    if sys.stdout is None:  # closed by whoever started the command
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def carry_rows() -> None:
    """Rows that pass through are UTF-8 whatever the locale says, as files are; a terminal keeps its encoding."""
    if sys.__stdout__ is None:
        raise ConfigError("standard output: closed when the command was started; open it, or give a file with --out")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict", newline="")
    if isinstance(sys.stdout, TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8", newline="")


def give_up_output() -> None:
    """After standard output has failed: what is left in it must not fail once more when Python ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):  # a stream of a test, or none
        return
