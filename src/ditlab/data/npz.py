"""Sample files in the format of ADM's evaluator: one .npz with all images as `arr_0` (N, H, W, C), uint8 there.

`arr_1` holds the labels. Any number of processes write the blocks of a file into a draft beside it; an interrupted
process resumes at the first missing block. Files are read row by row, without loading them into memory.
"""

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditlab.core.errors import InputError, nearest_path
from ditlab.core.formats import interpreting, parse_object
from ditlab.core.io import AGAIN, discard, replacing, writing
from ditlab.core.sizes import check_archive, check_regular
from ditlab.core.types import Batch
from ditlab.core.values import EIGHT_BITS, PixelValues
from ditlab.data.base import Dataset, to_float
from ditlab.data.decode import check_array
from ditlab.data.identity import Stamp, Stamps, content_hash
from ditlab.data.ranges import CHECKED, TYPES, find_values, given_range, is_given, plain, sampled
from ditlab.data.rows import RowFile, row_file

BLOCK = 256  # images in a block; sampling resumes at a block
VALUES = "values"  # array of a sample file: what the numbers of its images are, as JSON


@final
class SampleFile(Dataset):
    """The images of a sample file, or of a reference of ADM's evaluator."""

    def __init__(self, file: Path, *, range: str = "", show: tuple[int, ...] = ()) -> None:
        """Open a file. Images are read when they are needed; a compressed file is loaded whole.

        Args:
            file: path.
            range: the numbers that become black and white; see `ditlab.data.ranges.find_values`.
            show: numbers of the channels that are displayed, from 1.

        Raises:
            InputError: the file does not exist, or holds no images.
        """
        self.file, self.pixels = file, stored_rows(file, "arr_0")
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 4 or dtype.name not in TYPES or _channels_come_first(shape):
            raise InputError(
                f"{file} has arr_0 of shape {shape} and type {dtype}; give images (N, height, width, channels) of a "
                "numeric type"
            )
        count, height, width, self.channels = shape
        stored = None if range else read_values(file)
        if stored is None:
            self.values = find_values(TYPES[dtype.name], self.channels, range, show, self._numbers)
        else:
            self.values = stored.showing(show, self.channels) if show else stored
        if is_given(range) and not self.values.eight_bits:
            note = given_range(self.values, count, lambda: self._numbers(CHECKED))
            self.reading = replace(self.reading, notes=[note])
        self.size = (height, width)
        self.labels, self.classes = self._read_labels(count)

    def fetch(self, indices: Tensor) -> Batch:
        pixels = self._rows(indices).transpose(0, 3, 1, 2)
        x = torch.from_numpy(pixels) if self.values.eight_bits else self.values.normalized(to_float(pixels))
        return Batch(x.contiguous(), self.condition(indices))

    def _read_labels(self, count: int) -> tuple[Tensor, list[str]]:
        """The labels (N,) of the images and the names of the classes; all 0 and none if the file has no labels."""
        if "arr_1" not in array_names(self.file) or not count:
            return torch.zeros(count, dtype=torch.long), []
        labels = map_array(self.file, "arr_1")
        if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise InputError(
                f"{self.file} has labels arr_1 of shape {labels.shape} and type {labels.dtype}; "
                f"give one integer from 0 for each of the {count} images"
            )
        return torch.from_numpy(labels.astype(np.int64)), [str(i) for i in range(int(labels.max()) + 1)]

    def _rows(self, indices: Tensor) -> NDArray[Any]:
        """The numbers (B, H, W, C) of images."""
        try:
            rows = plain(self.pixels[indices.numpy()])
        except ValueError as error:
            raise InputError(f"{self.file} holds {error}") from None
        if not np.isfinite(rows).all():
            raise InputError(f"{self.file} holds numbers that are not finite; write it again without them")
        return rows

    def _numbers(self, most: int | None = None) -> Iterator[NDArray[Any]]:
        """The numbers of up to `most` images, from which the range is found, some images at a time."""
        return (self._rows(indices) for indices in torch.split(sampled(len(self.pixels), most), BLOCK))

    def stamps(self) -> Stamps:
        with zipfile.ZipFile(self.file) as archive:
            checksum = archive.getinfo("arr_0.npy").CRC  # of all images
        count, *shape = self.pixels.shape
        stamps = (Stamp(str(i), math.prod(shape), checksum) for i in range(count))
        return Stamps.of(stamps, self.labels.numpy())

    def content_hash(self, i: int) -> int:
        return content_hash(self.pixels[i : i + 1].tobytes())


def _channels_come_first(shape: tuple[int, ...]) -> bool:
    """Whether a shape (N, H, W, C) looks like (N, C, H, W)."""
    return shape[1] <= 4 < shape[3] or (shape[2] == shape[3] != shape[1])


def array_names(file: Path) -> list[str]:
    """Names of the arrays in an .npz file.

    Raises:
        InputError: the file does not exist, or is not an .npz file.
    """
    with interpreting(file, "write it again", "is truncated or not an .npz file"):
        if not file.exists():
            raise InputError(f"no file {file}; {nearest_path(file, 'give an existing .npz')}")
        check_regular(file)
        check_archive(file)
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]


def read_about(file: Path) -> dict[str, Any]:
    """The description in a reference file that ditlab wrote; empty for other files.

    Raises:
        InputError: the file does not exist, or is not an .npz file.
    """
    if "ditlab" not in array_names(file):
        return {}
    with interpreting(file, "make it again", "has a damaged description"):
        return parse_object(str(map_array(file, "ditlab")))


def read_values(file: Path) -> PixelValues | None:
    """What the numbers in a sample file are, if the program that wrote it stored that.

    Raises:
        InputError: the file does not exist, or is not an .npz file.
    """
    if VALUES not in array_names(file):
        return None
    with interpreting(file, "write it again", "has a damaged description of its numbers"):
        return PixelValues.read(parse_object(str(map_array(file, VALUES))))


def map_array(file: Path, name: str) -> NDArray[np.generic]:
    """An array of an .npz file: memory-mapped if it is stored uncompressed, otherwise loaded.

    Raises:
        InputError: the file does not exist, is damaged, or holds no such array.
    """
    if name not in array_names(file):
        raise InputError(f"{file} has no {name}; give a sample file")
    with interpreting(file, "write it again", "cannot be read"):
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
            info = archive.getinfo(f"{name}.npy")
            shape, fortran, dtype = check_array(member, info.file_size, name)
            if info.compress_type == zipfile.ZIP_STORED and not fortran and not dtype.hasobject and 0 not in shape:
                start = data_start(file, info) + member.tell()
                return np.memmap(file, dtype, "r", start, shape)
        with np.load(file) as arrays:
            loaded: NDArray[np.generic] = arrays[name]
            return loaded


def stored_rows(file: Path, name: str) -> RowFile | NDArray[Any]:
    """An array of an .npz file: read row by row if it is stored uncompressed, otherwise loaded."""
    array = map_array(file, name)
    return RowFile(file, array.shape, array.dtype, start=array.offset) if isinstance(array, np.memmap) else array


def data_start(file: Path, info: zipfile.ZipInfo) -> int:
    """Position of the first byte of a member: after its local header, whose length is not in the zip directory."""
    with file.open("rb") as opened:
        opened.seek(info.header_offset + 26)
        lengths = np.frombuffer(opened.read(4), "<u2")
    return info.header_offset + 30 + int(lengths.sum())


@dataclass
class Draft:
    """An unfinished sample file, which several processes share: raw images (N, H, W, C), and finished blocks."""

    file: Path
    shape: tuple[int, ...]
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        self.blocks = -(-self.shape[0] // BLOCK)
        self.marks = self.file.with_suffix(".done")
        if not self.file.exists():
            self.marks.unlink(missing_ok=True)  # they mark blocks of a deleted file
        self.pixels = row_file(self.file, self.shape, self.dtype)
        self.done = row_file(self.marks, (self.blocks,), "u1")

    def left(self, rank: int = 0, world: int = 1) -> list[int]:
        """Numbers of the blocks that this process still has to generate; each block belongs to one process."""
        done = self.done[:]
        return [block for block in range(rank, self.blocks, world) if not done[block]]

    def places(self, block: int) -> Tensor:
        """Indices of the images in a block."""
        return torch.arange(block * BLOCK, min(self.shape[0], (block + 1) * BLOCK))

    def put(self, block: int, images: Tensor) -> None:
        """Write the images (B, C, H, W) of a block."""
        self.pixels.write(int(self.places(block)[0]), images.permute(0, 2, 3, 1).numpy())
        self.pixels.flush()  # before the mark: a marked block is always complete
        self.done.write(block, np.ones(1, "u1"))
        self.done.flush()

    def finish(self, labels: Tensor | None, out: Path, values: PixelValues = EIGHT_BITS) -> None:
        """Write the sample file and remove the draft; values other than those of 8 bits are stored as JSON.

        On Windows, the draft stays while another process has it open.

        Raises:
            InputError: the disk is full; the draft is kept.
        """
        with (
            writing(out, AGAIN),
            replacing(out) as draft,
            zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            write_array(archive, "arr_0", self.pixels)
            if labels is not None:
                write_array(archive, "arr_1", labels.numpy())
            if values != EIGHT_BITS:
                write_array(archive, VALUES, np.array(json.dumps(values.describe())))
        for rows in (self.done, self.pixels):  # in this order; another process may have removed the files already
            rows.close()
            discard(rows.file)


def write_array(archive: zipfile.ZipFile, name: str, array: Any) -> None:
    """Write one array of an .npz file, or anything that can be sliced like one, a few rows at a time."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    values = array if len(array.shape) else np.asarray(array)[None]
    member: IO[bytes]
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for start in range(0, len(values), BLOCK):
            member.write(values[start : start + BLOCK].tobytes())
