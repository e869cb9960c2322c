"""Images that are kept in memory after they have been decoded, so that later epochs do not decode them again."""

from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditlab.core.device import free_memory, process_place

SHARE = 0.25  # of the free memory, shared by all processes of a run


class Kept:
    """Arrays of equal shape and type by index, if all of them fit in a quarter of the free memory; otherwise nothing.

    Memory is taken as images come. An image that is kept is not read again if its file changes.
    """

    def __init__(self, count: int) -> None:
        self.count, self.lock = count, Lock()
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
                room = SHARE * free_memory(torch.device("cpu")) / process_place()[1]
                if self.count * array.nbytes <= room:
                    self.arrays = np.empty((self.count, *array.shape), array.dtype)
        if self.arrays is not None:
            self.arrays[i] = array
            self.known[i] = True
