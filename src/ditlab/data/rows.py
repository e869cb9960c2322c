"""Rows of equal shape in a file, read and written at their places.

They are not mapped: what a process has touched of a mapped file counts as its memory, until that is all of it.
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
    """An array (N, ...) in a file; a slice of it, or rows by their numbers, is read when it is asked for."""

    def __init__(
        self, file: Path, shape: tuple[int, ...], dtype: DTypeLike, *, start: int = 0, writable: bool = False
    ) -> None:
        """Open a file that is long enough; it can be read on when another process has removed it.

        Args:
            file: where.
            shape: (N, ...).
            dtype: of the values.
            start: place of the first byte.
            writable: for `write` too.
        """
        self.file, self.shape, self.dtype, self.start = file, shape, np.dtype(dtype), start
        self.row_bytes = size_of((1, *shape[1:]), dtype)
        self.numbers: NDArray[np.int64] | None = None  # of the rows that count; None is all
        self.whole: RowFile | None = None  # that this is a part of, for which the file stays open
        self.opened = file.open("r+b" if writable else "rb", buffering=0)
        self.turn = Lock()  # threads share the place in the file
        weakref.finalize(self, self.opened.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice | NDArray[np.integer]) -> NDArray[Any]:
        numbers = np.arange(len(self))[part] if self.numbers is None else self.numbers[part]
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        ends = np.flatnonzero(np.diff(numbers) != 1) + 1  # neighbours are read together
        for first, last in zip([0, *ends], [*ends, len(numbers)], strict=True):
            if first < last:
                self._read(int(numbers[first]), found[first:last])
        return found

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def only(self, wanted: NDArray[np.bool_]) -> Self:
        """The same without the rows that are not wanted; nothing is moved."""
        some = copy.copy(self)
        some.numbers = np.flatnonzero(wanted)
        some.shape, some.whole = (len(some.numbers), *self.shape[1:]), self
        return some

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Put rows (n, ...) at their places, from the first on."""
        left = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8)
        with self.turn:
            self.opened.seek(self.start + first * self.row_bytes)
            while len(left):
                left = left[self.opened.write(left.data) :]

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self.opened.fileno())

    def _read(self, first: int, found: NDArray[Any]) -> None:
        left = found.reshape(-1).view(np.uint8)
        with self.turn:
            self.opened.seek(self.start + first * self.row_bytes)
            while len(left):
                count = self.opened.readinto(left.data)
                if not count:
                    raise InputError(f"{self.file} is truncated; write it again")
                left = left[count:]


def row_file(file: Path, shape: tuple[int, ...], dtype: DTypeLike) -> RowFile:
    """Rows in a file, full of zeros if it is not there.

    Raises:
        InputError: a file of another length, or a disk that is full.
    """
    allocate(file, size_of(shape, dtype))
    return RowFile(file, shape, dtype, writable=True)


def size_of(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Bytes of an array."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def allocate(file: Path, wanted: int) -> None:
    """Make a file of so many bytes, or check that the one that is there has them.

    Raises:
        InputError: a file of another length, or a disk that is full.
    """
    try:
        with file.open("ab") as opened:
            if opened.tell() == 0 and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, wanted)  # a disk that is full is found out now
            elif opened.tell() == 0:
                opened.truncate(wanted)
        if file.stat().st_size != wanted:
            raise InputError(f"{file} is of another run ({file.stat().st_size} bytes, not {wanted}); remove it")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; free some space or give another path") from error
