"""What the command says when it fails: one line on standard error, and the exit code.

| what came | exit code |
|---|---|
| an error of confide's own | its own, see `common.errors` |
| an error of the operating system, too little memory, arguments that are none | 2 |
| Ctrl-C, SIGTERM, SIGHUP | 130 |
| anything else is a fault of confide: its kind and place, never its text, which may quote a record | 1 |
"""

import errno
import os
import re
import sqlite3
import sys
import traceback
from pathlib import Path

import click

from ..common.errors import ConfideError, StoppedError, first_line, harmless
from .terminal import give_up_output

_PACKAGE = Path(__file__).parents[1]

_REMEDIES = {
    errno.ENOENT: "no such file or folder; check the path",
    errno.EACCES: "this user may not read or write there; change its owner or mode, or give a path of your own",
    errno.EROFS: "a read-only file system; allowed: a folder that can be written to; give another",
    errno.ENOSPC: "no room is left on the disk; make room, or write to another disk",
    errno.EDQUOT: "your quota of the disk is used up; make room, or write to another disk",
    errno.EFBIG: "the file is larger than this process may write; raise `ulimit -f`, or write to another file system",
    errno.ENOTDIR: "a file where a folder is expected; give another path",
    errno.EISDIR: "a folder where a file is expected; give the path of a file",
    errno.EEXIST: "is there already; give another path",
    errno.ENOTEMPTY: "the folder is not empty; give another",
    errno.ENAMETOOLONG: "a longer name than the file system takes; shorten it",
    errno.ELOOP: "links that lead in a circle; correct them",
    errno.EMFILE: "too many open files for this process; raise `ulimit -n`",
    errno.ENFILE: "too many open files on this machine; close other programs",
    errno.EIO: "the disk reports an error; check it, or use another",
    errno.ENOMEM: "the memory does not suffice; close other programs, or use a larger machine",
    errno.EADDRINUSE: "something listens on this port already; choose another port",
    errno.EADDRNOTAVAIL: "no address of this machine; give one that is",
    errno.EPIPE: "standard output: whoever read it has closed it before the end; what was written until then is "
    "incomplete; read all of it, or write to a file",
}
_REMEDIES[errno.EPERM] = _REMEDIES[errno.EACCES]
_WITHIN = re.compile(r"\bos error (\d+)\b|\[?errno (\d+)\]?", re.IGNORECASE)
"""how libraries that are not Python's write the number of the system's error"""
_LONGEST = 1000
"""characters of a line"""
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def say_failure(error: BaseException, *, debug: bool) -> int:
    """Writes what is to be said to standard error; returns the exit code. debug: with Python's traceback before it."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        give_up_output()
    try:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            error.show()
            return error.exit_code
        if debug:
            _say_all(error)
        line, code = told(error)
        click.echo(f"confide: {line}", err=True)
        return code
    except OSError:  # standard error is closed, too
        return 2


def _say_all(error: BaseException) -> None:
    """The traceback, with what was caught on the way."""
    one: BaseException | None = error
    while one is not None:
        one.__suppress_context__ = False
        one = one.__cause__ or one.__context__
    traceback.print_exception(error)


def told(error: BaseException) -> tuple[str, int]:
    """The line that a user reads, and the exit code."""
    if isinstance(error, ConfideError):
        return _one_line(str(error)), error.exit_code
    if isinstance(error, click.ClickException):
        return _of_arguments(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "stopped", StoppedError.exit_code
    if (number := _number(error)) is not None:
        return _of_system(error, number), 2
    if isinstance(error, OSError):  # of libraries, which say with it what they miss
        return f"{first_line(error)}; see the whole with --debug", 2
    if isinstance(error, MemoryError) or any(text in str(error).lower() for text in _NO_MEMORY):
        return f"{_REMEDIES[errno.ENOMEM]}; confide doctor plans what a run takes", 2
    if isinstance(error, sqlite3.OperationalError):  # its texts are SQLite's own, without a value
        return f"a ledger's database: {first_line(error)}; make room, or correct its folder", 2
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("confide"):
        return f"the package '{error.name}' is missing; install confide with the extra that has it", 2
    return _of_confide(error), 1


def _number(error: BaseException) -> int | None:
    """The operating system's number of what went wrong, also where a library only writes it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        found = _WITHIN.search(str(error))
        return int(found[1] or found[2]) if found else None
    return None


def _of_system(error: BaseException, number: int) -> str:
    remedy = _REMEDIES.get(number, f"{os.strerror(number)}; correct it, or give another path")
    path = getattr(error, "filename", None)
    if number == errno.EPIPE:
        return remedy
    if path is None or isinstance(path, int):
        return f"the operating system refused: {remedy}"
    return _one_line(f"{os.fsdecode(path) or 'an empty path'}: {remedy}")


def _of_arguments(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    help_ = f"; see: {context.command_path} --help" if context is not None else ""
    return f"{_one_line(error.format_message()).rstrip('.')}{help_}"


def _of_confide(error: BaseException) -> str:
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_PACKAGE)
    ]
    place = f" in {Path(frames[-1].filename).relative_to(_PACKAGE)}, line {frames[-1].lineno}" if frames else ""
    return (
        f"{type(error).__name__}{place}: a fault of confide; please report it, with what --debug adds once you have "
        "read it: a traceback may quote a record"
    )


def _one_line(text: str) -> str:
    """Whatever is too long loses its middle: a value came first, and what to do comes last."""
    line = harmless(" ".join(text.splitlines()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
