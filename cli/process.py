"""The process of a command: whoever ends it, or closes its streams, leaves nothing that is half written; a thread that
fails says so in a line."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from .failures import told

_ENDED_BY = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Within, what ends the process (systemd, `timeout`, a terminal that is closed) stops it as Ctrl-C does, so that
    what it was writing is removed. A signal that is ignored (nohup) stays ignored."""
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number in _ENDED_BY if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def threads_in_a_line(*, debug: bool) -> Iterator[None]:
    """Within, a thread that fails is a line on standard error; Python's traceback, which may quote a record, is for
    debug."""

    def say(failed: threading.ExceptHookArgs) -> None:
        if debug or failed.exc_value is None:
            threading.__excepthook__(failed)
        else:
            click.echo(f"a thread ended: {told(failed.exc_value)[0]}", err=True)

    before, threading.excepthook = threading.excepthook, say
    try:
        yield
    finally:
        threading.excepthook = before


def open_streams() -> None:
    """A standard stream that was closed gets its number back: otherwise the next file that is opened would have it, and
    hold whatever a library writes to that stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
