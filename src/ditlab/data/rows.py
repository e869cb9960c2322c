"""Rows of equal shape in a file, read and written in place.

The file is not memory-mapped: pages that a process has touched would count as its memory, in the end the whole file.
"""

import copy
import os
import weakref
from pathlib import Path
from threading import Lock
from typing import Any, Self, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ditlab.core.errors import InputError


@final
class RowFile:
    """An array (N, ...) in a file; slices, or rows by their numbers, are read when they are needed."""

    def __init__(
        self, file: Path, shape: tuple[int, ...], dtype: DTypeLike, *, start: int = 0, writable: bool = False
    ) -> None:
        """Open a file that is long enough; it stays readable after another process has removed it.

        Args:
            file: path.
            shape: (N, ...).
            dtype: type of the values.
            start: position of the first byte.
            writable: allow `write`.
        """
        self.file, self.shape, self.dtype, self.start = file, shape, np.dtype(dtype), start
        self.row_bytes = size_of((1, *shape[1:]), dtype)
        self.numbers: NDArray[np.int64] | None = None  # of the selected rows; None is all
        self.whole: RowFile | None = None  # the file that this selects from, which stays open
        self.opened = file.open("r+b" if writable else "rb", buffering=0)
        self.turn = Lock()  # threads share the position in the file
        weakref.finalize(self, self.opened.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice | NDArray[np.integer]) -> NDArray[Any]:
        numbers = np.arange(len(self))[part] if self.numbers is None else self.numbers[part]
        rows = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        ends = np.flatnonzero(np.diff(numbers) != 1) + 1  # adjacent rows are read together
        for first, last in zip([0, *ends], [*ends, len(numbers)], strict=True):
            if first < last:
                self._read(int(numbers[first]), rows[first:last])
        return rows

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def only(self, wanted: NDArray[np.bool_]) -> Self:
        """The rows where `wanted` is true; nothing is copied."""
        selection = copy.copy(self)
        selection.numbers = np.flatnonzero(wanted)
        selection.shape, selection.whole = (len(selection.numbers), *self.shape[1:]), self
        return selection

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Write rows (n, ...) from number `first` on."""
        left = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8)
        with self.turn:
            self.opened.seek(self.start + first * self.row_bytes)
            while len(left):
                left = left[self.opened.write(left.data) :]

    def flush(self) -> None:
        """Wait until all written rows are on the disk."""
        os.fsync(self.opened.fileno())

    def _read(self, first: int, rows: NDArray[Any]) -> None:
        left = rows.reshape(-1).view(np.uint8)
        with self.turn:
            self.opened.seek(self.start + first * self.row_bytes)
            while len(left):
                count = self.opened.readinto(left.data)
                if not count:
                    raise InputError(f"{self.file} is truncated; write it again")
                left = left[count:]


def row_file(file: Path, shape: tuple[int, ...], dtype: DTypeLike) -> RowFile:
    """Rows in a file, which is created full of zeros if it does not exist.

    Raises:
        InputError: a file of another length, or a full disk.
    """
    allocate(file, size_of(shape, dtype))
    return RowFile(file, shape, dtype, writable=True)


def size_of(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Bytes of an array."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def allocate(file: Path, wanted: int) -> None:
    """Create a file of this length, or check the length of an existing one.

    Raises:
        InputError: a file of another length, or a full disk.
    """
    try:
        with file.open("ab") as opened:
            if opened.tell() == 0 and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, wanted)  # a full disk is an error now, not later
            elif opened.tell() == 0:
                opened.truncate(wanted)
        if file.stat().st_size != wanted:
            raise InputError(f"{file} belongs to another run ({file.stat().st_size} bytes, not {wanted}); remove it")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; free some space or give another path") from error
