"""A bound on the memory of images that threads decode at the same time."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from ditlab.core.device import release_freed_memory

DECODED_AT_ONCE = 2**26  # pixels of the images that threads decode at the same time


class PixelBudget:
    """Bounds the number of pixels that threads decode at the same time; a larger image is decoded alone."""

    def __init__(self, most: int = DECODED_AT_ONCE) -> None:
        self.most, self.used, self.changed = most, 0, Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for an image, which is decoded in the block; blocks must not be nested."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + pixels <= self.most)
            self.used += pixels
        try:
            if pixels > self.most // 4:  # the C library keeps what other threads have freed
                release_freed_memory()
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


DECODING = PixelBudget()
"""Shared by all threads of the process."""
