"""Thumbnails: examples of what models generate, made while nothing else is in progress, and kept."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ditlab.server.idle import Busy

KEPT = 2000  # thumbnails; the oldest is dropped for a further one
Thumbnail = tuple[str, int]  # name of the model, and number of the example


class Thumbnails:
    """Generates thumbnails one after another in a thread."""

    def __init__(self, generate: Callable[[Thumbnail, float], bytes | None], waiting: int, seconds: float) -> None:
        """A thread that has nothing to do yet.

        Args:
            generate: generates a thumbnail when nothing else is in progress, if that is so within a number of seconds;
                returns None if something else began meanwhile.
            waiting: thumbnails that can wait at the same time.
            seconds: the longest time for which a thumbnail waits.
        """
        self.generate, self.seconds = generate, seconds
        self.kept: dict[Thumbnail, bytes] = {}
        self.places = threading.BoundedSemaphore(waiting)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="thumbnails")

    def request(self, thumbnail: Thumbnail) -> "Future[bytes]":
        """A thumbnail, at once if it is kept.

        Raises:
            Busy: too many thumbnails wait.
        """
        if (content := self.kept.get(thumbnail)) is not None:
            done: Future[bytes] = Future()
            done.set_result(content)
            return done
        if not self.places.acquire(blocking=False):
            raise Busy("too many thumbnails wait; try again in 1 s")
        future = self.thread.submit(self._get, thumbnail, time.monotonic() + self.seconds)
        future.add_done_callback(lambda _: self.places.release())
        return future

    def _get(self, thumbnail: Thumbnail, latest: float) -> bytes:
        while (content := self.kept.get(thumbnail)) is None:
            if (generated := self.generate(thumbnail, latest - time.monotonic())) is not None:
                self.kept[thumbnail] = generated
        if len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return content

    def close(self) -> None:
        """End the thread; thumbnails that wait are canceled."""
        self.thread.shutdown(cancel_futures=True)
