"""Work that runs only while the service has nothing else to do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Busy(Exception):  # noqa: N818 - not an error of the caller
    """Too many requests are in progress, or the memory is nearly full."""


class Idle:
    """Knows whether requests are in progress, and stops background work when one begins."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests = 0
        self.background: threading.Event | None = None  # cancels the background work when it is set

    def begin(self) -> None:
        """A request begins."""
        with self.lock:
            self.requests += 1
            if self.background:
                self.background.set()

    def end(self) -> None:
        """A request ended."""
        with self.lock:
            self.requests -= 1

    @contextmanager
    def alone(self, stop: threading.Event) -> Iterator[None]:
        """Do background work, which ends when `stop` is set.

        Raises:
            Busy: something else is in progress, or began meanwhile.
        """
        message = "thumbnails are generated while nothing else is in progress; try again in 1 s"
        with self.lock:
            if self.requests or self.background:
                raise Busy(message)
            self.background = stop
        try:
            yield
        except Exception:
            if stop.is_set():
                raise Busy(message) from None
            raise
        finally:
            with self.lock:
                self.background = None
