"""Arrays in files, of which single rows are read and written in place.

Files are not memory-mapped: the pages that a process has read would count as its resident memory, up to the whole file.
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
from ditlab.core.io import flush_to_disk, writing


@final
class RowFile:
    """An array (N, ...) in a file; indexing with a slice or with row numbers reads those rows."""

    def __init__(
        self, file: Path, shape: tuple[int, ...], dtype: DTypeLike, *, start: int = 0, writable: bool = False
    ) -> None:
        """Open an existing file; it stays readable after another process has removed it, which Windows refuses.

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
        self.source: RowFile | None = None  # the array that this one selects rows from; the reference keeps it open
        self.opened = file.open("r+b" if writable else "rb", buffering=0)
        self.lock = Lock()  # threads share the position in the file
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

    def only(self, selected: NDArray[np.bool_]) -> Self:
        """The rows where `selected` (N,) is true; nothing is copied."""
        selection = copy.copy(self)
        selection.numbers = np.flatnonzero(selected)
        selection.shape, selection.source = (len(selection.numbers), *self.shape[1:]), self
        return selection

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Write rows (n, ...) from number `first` on."""
        remaining = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8)
        with self.lock:
            self.opened.seek(self.start + first * self.row_bytes)
            while len(remaining):
                remaining = remaining[self.opened.write(remaining.data) :]

    def flush(self) -> None:
        """Wait until all written rows are on the disk."""
        flush_to_disk(self.opened.fileno())

    def close(self) -> None:
        """Close the file; nothing can be read or written any more."""
        self.opened.close()

    def _read(self, first: int, rows: NDArray[Any]) -> None:
        remaining = rows.reshape(-1).view(np.uint8)
        with self.lock:
            self.opened.seek(self.start + first * self.row_bytes)
            while len(remaining):
                count = self.opened.readinto(remaining.data)
                if not count:
                    raise InputError(f"{self.file} is truncated; write it again")
                remaining = remaining[count:]


def row_file(file: Path, shape: tuple[int, ...], dtype: DTypeLike) -> RowFile:
    """A writable array in a file, which is created with zeros if it does not exist.

    Raises:
        InputError: the file has another length, or the disk is full.
    """
    allocate(file, size_of(shape, dtype))
    return RowFile(file, shape, dtype, writable=True)


def size_of(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Size of an array in bytes."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def allocate(file: Path, size: int) -> None:
    """Create a file of this size in bytes, or check the size of an existing one.

    Raises:
        InputError: the file has another length, or the disk is full.
    """
    with writing(file):
        with file.open("ab") as opened:
            if opened.tell() == 0 and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, size)  # reports a full disk now and not after hours of work
            elif opened.tell() == 0:
                opened.truncate(size)
        if file.stat().st_size != size:
            raise InputError(f"{file} belongs to another run ({file.stat().st_size} bytes, not {size}); remove it")
