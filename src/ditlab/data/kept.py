"""Images that are kept in memory after they have been decoded, so that later epochs do not decode them again."""

from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditlab.core.device import free_memory, process_place
from ditlab.data.buckets import Buckets

SHARE = 0.25  # of the free memory, shared by all processes of a run


def room() -> float:
    """Bytes that a process of a run may use for decoded images at present."""
    return SHARE * free_memory(torch.device("cpu")) / process_place()[1]


class KeptSizes:
    """Kept arrays of several sizes."""

    def __init__(self, buckets: Buckets | None, count: int) -> None:
        """Keep nothing yet.

        Args:
            buckets: the sizes of the arrays; None if all have one.
            count: number of arrays.
        """
        self.buckets = buckets
        if buckets is None:
            self.parts = [Kept(count)]
        else:
            self.parts = [Kept(images, images / count) for images in buckets.counts]
            self.place = torch.empty_like(buckets.of)  # of each array among those of its size
            for members in buckets.members:
                self.place[members] = torch.arange(len(members))

    def get(self, i: int, make: Callable[[int], NDArray[Any] | None]) -> NDArray[Any] | None:
        """Array i, as `Kept.get` returns it."""
        if self.buckets is None:
            return self.parts[0].get(i, make)
        return self.parts[int(self.buckets.of[i])].get(int(self.place[i]), lambda place: make(i))


class Kept:
    """Arrays of equal shape and type by index, if all of them fit in a quarter of the free memory; otherwise nothing.

    Memory is taken as images come. An image that is kept is not read again if its file changes.
    """

    def __init__(self, count: int, share: float = 1.0) -> None:
        """Keep nothing yet.

        Args:
            count: number of arrays.
            share: the share of the memory that they may take, if there are others.
        """
        self.count, self.share, self.lock = count, share, Lock()
        self.arrays: NDArray[Any] | None = None
        self.known = np.zeros(count, bool)
        self.decided = False

    def get(self, i: int, make: Callable[[int], NDArray[Any] | None]) -> NDArray[Any] | None:
        """Array i: the kept one, or the one that `make` returns, which is then kept; None if it returns none."""
        if self.arrays is not None and self.known[i]:
            return self.arrays[i]
        array = make(i)
        if array is not None:
            self._keep(i, array)
        return array

    def _keep(self, i: int, array: NDArray[Any]) -> None:
        """Keep an array if all arrays like it fit."""
        with self.lock:
            if not self.decided:
                self.decided = True
                if self.count * array.nbytes <= self.share * room():
                    self.arrays = np.empty((self.count, *array.shape), array.dtype)
        if self.arrays is not None:
            self.arrays[i] = array
            self.known[i] = True
