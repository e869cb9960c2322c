"""Trajectories in files of arrays (T, C, H, W), one for each file."""

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.sizes import check_archive
from ditlab.data.base import to_float
from ditlab.data.identity import Stamp, Stamps, content_hash
from ditlab.data.kept import room
from ditlab.data.ranges import STANDARDIZE, find_values, sampled, summary, type_name
from ditlab.data.sources import Source
from ditlab.data.trajectories.base import Trajectories

FORM = "give an array (T, C, H, W): states, channels, height, width"


class FileTrajectories(Trajectories):
    """The trajectories of a source of files (.npy or .npz) that hold one array (T, C, H, W) each.

    Arrays of .npy files are read in parts. Those of .npz files are kept in memory.
    """

    def __init__(self, source: Source, *, stride: int = 1, range: str = "", show: tuple[int, ...] = ()) -> None:
        """Read the headers of all files, and the numbers of some for their mean and deviation.

        Args:
            source: where the files come from.
            stride: every n-th state of a file is a state of the trajectory.
            range: the numbers that become -1 and 1; by default, each channel is standardized.
            show: numbers of the channels that are displayed, from 1.

        Raises:
            InputError: a file cannot be read, holds no trajectory, or differs from the others in its shape.
        """
        self.source, self.classes, self.reading = source, source.classes, replace(source.reading)
        self.reading.notes = [*source.reading.notes]
        self.arrays = read_arrays(source, stride)
        _, self.channels, *sides = self.arrays[0].shape
        self.size = tuple(sides)
        self.divide([len(array) for array in self.arrays], source.labels)
        dtype = type_name(np.result_type(*{array.dtype for array in self.arrays}))
        self.values = find_values(dtype, self.channels, range or STANDARDIZE, show, self._numbers)
        self.preprocessing = {"stride": stride} | dict(source.division) | {"values": self.values.describe()}
        if not self.values.eight_bits:
            self.reading.notes.append(summary(self.values, len(self.sampled()) if not range else 0, len(self)))

    def sampled(self) -> Tensor:
        """Indices of the pairs whose first states are read to find the range."""
        return sampled(len(self))

    def _numbers(self) -> Iterator[NDArray[Any]]:
        for i in self.sampled().tolist():
            trajectory, first = self.place(i)
            yield np.moveaxis(self.arrays[trajectory][first], 0, -1)

    def states(self, trajectory: int, start: int, stop: int) -> Tensor:
        states = to_float(np.ascontiguousarray(self.arrays[trajectory][start:stop]))
        if not (finite := states.isfinite().flatten(1).all(1)).all():
            broken = start + int((~finite).nonzero()[0])
            raise InputError(
                f"state {broken} of {self.source.name(trajectory)} has numbers that are not finite; remove the file"
            )
        return states

    def stamps(self) -> Stamps:
        stamps = [self.source.stamp(i) for i in range(len(self.lengths))]
        pairs = (
            Stamp(f"{stamp.name}:{first}", stamp.size, stamp.time)
            for stamp, length in zip(stamps, self.lengths, strict=True)
            for first in range(length - 1)
        )
        return Stamps.of(pairs, self.labels.numpy())

    def content_hash(self, i: int) -> int:
        trajectory, first = self.place(i)
        return content_hash(self.arrays[trajectory][first : first + 2].tobytes())


def read_arrays(source: Source, stride: int) -> list[NDArray[Any]]:
    """The arrays (T, C, H, W) of all files of a source, with every n-th state.

    Raises:
        InputError: as in `FileTrajectories`; or the compressed files do not fit into memory.
    """
    arrays: list[NDArray[Any]] = []
    taken = 0
    for i in range(len(source)):
        name, file = source.name(i), source.file(i)
        assert isinstance(file, Path)
        array = read_array(file, name)[::stride]
        if len(array) < 2:
            raise InputError(f"{name} has {len(array)} state with stride {stride}; give trajectories of 2 or more")
        if arrays and array.shape[1:] != arrays[0].shape[1:]:
            actual, first = ("x".join(map(str, part.shape[1:])) for part in (array, arrays[0]))
            raise InputError(
                f"{name} has states of {actual} (channels, height, width) but {source.name(0)} has {first}; give "
                "trajectories of one shape"
            )
        taken += 0 if isinstance(array, np.memmap) else array.nbytes
        if taken > room():
            raise InputError(
                f"the trajectories up to {name} take {taken / 2**30:,.1f} GiB, more than a quarter of the memory; "
                "write them as .npy files, which are read in parts"
            )
        arrays.append(array)
    return arrays


def read_array(file: Path, name: str) -> NDArray[Any]:
    """The array (T, C, H, W) of a file; that of an .npy file is mapped into memory.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        if file.suffix.lower() == ".npz":
            check_archive(file)
            with np.load(file, allow_pickle=False) as archive:
                if len(archive.files) != 1:
                    raise ValueError(f"it holds {len(archive.files)} arrays ({', '.join(archive.files)}); keep one")
                array = archive[archive.files[0]]
        else:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.ndim != 4 or not array.size:
            raise ValueError(f"its shape is {array.shape}; {FORM}")
        type_name(array.dtype)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is no trajectory: {' '.join(str(error).split())}") from None
    return array
