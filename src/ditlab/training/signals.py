"""Ctrl-C and SIGTERM: a run ends after the step in progress, with its state saved."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ditlab.core.errors import RunError
from ditlab.training.parallel import Place

LATE = 3.0  # seconds by which a signal may reach one process after another


@contextmanager
def exit_before_first_step() -> Iterator[None]:
    """Make SIGTERM exit with 0 at once while there is nothing to save: reading data or compiling can take minutes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: end(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interruption() -> Iterator[list[int]]:
    """The signal of the first Ctrl-C or SIGTERM, so that the step in progress is completed; a second one aborts."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, frame: object) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_own_signal(signals: list[int], place: Place) -> None:
    """Check that this process itself received the signal.

    Raises:
        RunError: another process received it. Its machine goes down, and the launcher of this one must restart it.
    """
    latest = time.monotonic() + LATE
    while not signals and time.monotonic() < latest:  # a launcher signals its processes one by one
        time.sleep(0.05)
    if not signals:
        raise RunError(f"rank {place.rank}: another process was told to stop; the same command resumes")


def end(number: int) -> NoReturn:
    """Exit as a signal asks, once all is saved: with 0 after SIGTERM; Ctrl-C stops the calling program too."""
    if number == signal.SIGTERM:
        raise SystemExit(0)
    raise KeyboardInterrupt
