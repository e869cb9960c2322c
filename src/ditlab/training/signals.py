"""Handle Ctrl-C and SIGTERM: a run finishes the current step, saves its state and ends.

Windows has no SIGTERM; its Ctrl-Break, which other processes can send, does what Ctrl-C does.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ditlab.core.errors import RunError
from ditlab.training.parallel import Place

STOPS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGBREAK", signal.SIGINT)}
LATE = 3.0  # largest delay in seconds between the signals to the processes of a run


@contextmanager
def exit_before_first_step() -> Iterator[None]:
    """Make SIGTERM exit immediately with status 0 within the block, in which there is nothing to save yet.

    Reading data and compiling can take minutes.
    """
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
    """Collect the first Ctrl-C or SIGTERM in a list, so that the current step can finish; a second one aborts."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, frame: object) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_own_signal(signals: list[int], place: Place) -> None:
    """Check that this process itself received the signal.

    Raises:
        RunError: only another process received it. That machine is stopping, and the launcher must restart this one.
    """
    latest = time.monotonic() + LATE
    while not signals and time.monotonic() < latest:  # a launcher signals its processes one by one
        time.sleep(0.05)
    if not signals:
        raise RunError(f"rank {place.rank}: another process received a signal to stop; the same command resumes")


def end(number: int) -> NoReturn:
    """End the process after its state was saved: with status 0 after SIGTERM, with KeyboardInterrupt after Ctrl-C."""
    if number == signal.SIGTERM:
        raise SystemExit(0)
    raise KeyboardInterrupt
