"""The field's sample files: one .npz with all pictures as `arr_0` (N, H, W, C) uint8, and labels as `arr_1` if any.

They are written block by block into a draft beside the file, by any number of processes, and can be taken up again
after a stop; and read without being loaded.
"""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditlab.data.base import Dataset
from ditlab.errors import InputError
from ditlab.files import replacing
from ditlab.types import Batch

BLOCK = 256  # pictures between two moments at which drawing can be taken up again


@final
class SampleFile(Dataset):
    """Pictures of a sample file, or those in a reference of ADM's evaluator."""

    def __init__(self, file: Path) -> None:
        """Open a file; its pictures are read as they are asked for, if it is not compressed.

        Raises:
            InputError: no such file, or one without pictures.
        """
        self.pictures = map_array(file, "arr_0")
        if self.pictures.ndim != 4 or self.pictures.dtype != np.uint8 or self.pictures.shape[3] not in (1, 3):
            raise InputError(
                f"{file} has arr_0 of shape {self.pictures.shape} and type {self.pictures.dtype}; "
                "give pictures (N, H, W, 1 or 3) as uint8"
            )
        count, height, width, self.channels = self.pictures.shape
        self.size = (height, width)
        self.labels, self.classes = torch.zeros(count, dtype=torch.long), []
        if "arr_1" in array_names(file) and count:
            labels = map_array(file, "arr_1")
            if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
                raise InputError(f"{file} has labels arr_1 of shape {labels.shape}, not one from 0 for each picture")
            self.labels = torch.from_numpy(labels.astype(np.int64))
            self.classes = [str(i) for i in range(int(labels.max()) + 1)]

    def fetch(self, indices: Tensor) -> Batch:
        pixels = torch.from_numpy(np.ascontiguousarray(self.pictures[indices.numpy()]))
        return Batch(pixels.permute(0, 3, 1, 2).contiguous(), self.labels[indices])


def array_names(file: Path) -> list[str]:
    """Names of the arrays in an .npz file.

    Raises:
        InputError: no such file, or not one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError:
        raise InputError(f"no file {file}; give an existing .npz") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is truncated or no .npz file ({error}); write it again") from error


def map_array(file: Path, name: str) -> NDArray[np.generic]:
    """An array of an .npz file: memory-mapped where it lies there uncompressed, else loaded."""
    if name not in array_names(file):
        raise InputError(f"{file} has no {name}; give a sample file")
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(member)
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type == zipfile.ZIP_STORED and not fortran and not dtype.hasobject and 0 not in shape:
                start = data_start(file, info) + member.tell()
                return np.memmap(file, dtype, "r", start, shape)
        with np.load(file) as arrays:
            loaded: NDArray[np.generic] = arrays[name]
            return loaded
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read ({error}); write it again") from error


def data_start(file: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header, whose two lengths the directory does not tell."""
    with file.open("rb") as opened:
        opened.seek(info.header_offset + 26)
        lengths = np.frombuffer(opened.read(4), "<u2")
    return info.header_offset + 30 + int(lengths.sum())


@dataclass
class Draft:
    """Pictures (N, H, W, C) uint8 in a raw file, and which blocks of it are done; shared by processes."""

    file: Path
    shape: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        self.blocks = -(-self.shape[0] // BLOCK)
        self.marks = self.file.with_suffix(".done")
        if not self.file.exists():
            self.marks.unlink(missing_ok=True)  # they would be of pictures that are gone
        self.pixels = shared_array(self.file, self.shape)
        self.done = shared_array(self.marks, (self.blocks,))

    def left(self, rank: int = 0, world: int = 1) -> list[int]:
        """Blocks that this process still has to draw; a block belongs to one process, whoever did others before."""
        return [block for block in range(rank, self.blocks, world) if not self.done[block]]

    def places(self, block: int) -> Tensor:
        """Numbers of the pictures of a block."""
        return torch.arange(block * BLOCK, min(self.shape[0], (block + 1) * BLOCK))

    def put(self, block: int, images: Tensor) -> None:
        """Keep the pictures (B, C, H, W) of a block."""
        places = self.places(block)
        self.pixels[int(places[0]) : int(places[-1]) + 1] = images.permute(0, 2, 3, 1).numpy()
        self.pixels.flush()  # before the mark, so that a mark is never ahead of its pictures
        self.done[block] = 1
        self.done.flush()

    def finish(self, labels: Tensor | None, out: Path) -> None:
        """Write the sample file and take the draft away.

        Raises:
            InputError: a disk that is full; the draft stays.
        """
        try:
            with replacing(out) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                write_array(archive, "arr_0", self.pixels.shape, self.pixels.dtype, iter_blocks(self.pixels))
                if labels is not None:
                    values = labels.numpy()
                    write_array(archive, "arr_1", values.shape, values.dtype, iter([values]))
        except OSError as error:
            raise InputError(
                f"cannot write {out}: {error.strerror}; free some space and give the command again"
            ) from error
        finally:
            draft.unlink(missing_ok=True)
        for file in (self.marks, self.file):  # in this order; and another process may have been quicker
            file.unlink(missing_ok=True)


def shared_array(file: Path, shape: tuple[int, ...], dtype: str = "u1") -> "np.memmap[Any, Any]":
    """An array in a file, made full of zeros if it is not there.

    Raises:
        InputError: a file of another length, or a disk that is full.
    """
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        with file.open("ab") as opened:
            if opened.tell() == 0 and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, wanted)  # a disk that is full is found out now
            elif opened.tell() == 0:
                opened.truncate(wanted)
        if file.stat().st_size != wanted:
            raise InputError(f"{file} is of another run ({file.stat().st_size} bytes, not {wanted}); remove it")
        return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; free some space or give another path") from error


def iter_blocks(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Its rows, a few at a time."""
    for start in range(0, len(array), BLOCK):
        yield array[start : start + BLOCK]


def write_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: Iterator[NDArray[np.generic]]
) -> None:
    """One array of an .npz file, from its rows."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    member: IO[bytes]
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for part in rows:
            member.write(np.ascontiguousarray(part).tobytes())
