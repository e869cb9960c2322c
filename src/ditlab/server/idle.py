"""Work that runs only while the service has nothing else to do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Busy(Exception):  # noqa: N818 - not an error of the caller
    """Too many requests are in progress, or the memory is nearly full."""


class Idle:
    """Knows whether requests are in progress, and stops background work when one begins."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.requests = 0
        self.closed = False
        self.background: threading.Event | None = None  # cancels the background work when it is set

    def begin(self) -> None:
        """A request begins."""
        with self.changed:
            self.requests += 1
            if self.background:
                self.background.set()

    def end(self) -> None:
        """A request ended."""
        with self.changed:
            self.requests -= 1
            self.changed.notify_all()

    def close(self) -> None:
        """End the waiting for idle time, and the background work."""
        with self.changed:
            self.closed = True
            if self.background:
                self.background.set()
            self.changed.notify_all()

    @contextmanager
    def alone(self, stop: threading.Event, seconds: float) -> Iterator[None]:
        """Wait until no request is in progress, then do background work, which has to end when `stop` is set.

        Only one thread may do background work.

        Raises:
            Busy: requests were in progress for `seconds`, or the service ends.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.closed or not self.requests, seconds)
            if self.closed or self.requests:
                raise Busy("thumbnails are generated while nothing else is in progress; try again in 1 s")
            self.background = stop
        try:
            yield
        finally:
            with self.changed:
                self.background = None
