"""The shards of a latent cache: safetensors files, whose entries are read at their offset."""

import math
import operator
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.file_cache import read_part
from ditlab.core.formats import interpreting, parse_object
from ditlab.core.io import AGAIN, writing
from ditlab.core.stores import StoredFile
from ditlab.core.types import Condition
from ditlab.core.weights import write_tensors
from ditlab.data.identity import Stamps

STORED = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types as the header of a safetensors file calls them."""
MOMENTS = "moments"
"""Name of the tensor of all moments; of images of several sizes, of those of one size: "moments.20x12"."""
CONDITION, EXTRA, STAMP = "condition.", "extra.", "stamp."  # prefixes of the names of further tensors


def shard_file(folder: Path, number: int) -> Path:
    """The path of a shard."""
    return folder / "shards" / f"{number:06d}.safetensors"


@dataclass(frozen=True)
class Entries:
    """The n entries of a shard."""

    moments: dict[str, Tensor]
    """The moments (n, 2c, h, w); of several sizes, those of each size (see `MOMENTS`), in the order of the names."""
    condition: Condition
    extra: Mapping[str, Tensor]
    index: Tensor | None


def write_shard(file: Path, entries: Entries, stamps: Stamps) -> None:
    """Write one shard completely or not at all.

    Args:
        file: path of the shard.
        entries: the moments, with all their conditions.
        stamps: the images of the shard, including those that could not be read.

    Raises:
        InputError: the disk is full.
    """
    moments = {name: values.contiguous() for name, values in entries.moments.items()}
    data = [entry for values in moments.values() for entry in values.view(torch.uint8).flatten(1).numpy()]
    checksums = torch.tensor([zlib.crc32(entry) for entry in data], dtype=torch.int64)
    tensors = moments | {"labels": torch.zeros(len(data), dtype=torch.int64), "checksums": checksums}
    tensors |= {} if entries.index is None else {"index": entries.index}
    parts = {name: value for name, value in entries.condition.parts().items() if isinstance(value, Tensor)}
    if entries.condition.label is not None:
        tensors["labels"] = entries.condition.label
    if parts.keys() - {"label"}:
        tensors |= {f"{CONDITION}{name}": value.contiguous() for name, value in parts.items()}
    tensors |= {f"{EXTRA}{name}": value.contiguous() for name, value in entries.extra.items()}
    tensors |= {f"{STAMP}{name}": torch.tensor(value) for name, value in stamps.arrays().items()}
    with writing(file, AGAIN):
        write_tensors(tensors, file)


def size_of(file: Path | StoredFile) -> int:
    """The bytes of a shard."""
    return file.size if isinstance(file, StoredFile) else file.stat().st_size


def read_header(file: Path | StoredFile) -> dict[str, Any]:
    """The header of a safetensors file, with `start`, the position of its first byte of data.

    Raises:
        InputError: the file is missing or incomplete.
    """
    with interpreting(f"shard {file}", "remove it and encode again", "is missing or damaged"):
        size = size_of(file)
        length = struct.unpack("<Q", read_part(file, 0, 8, whole=False))[0]
        if 8 + length > size:
            raise ValueError(f"its header of {length:,} bytes is larger than the file")
        header = parse_object(bytes(read_part(file, 8, length, whole=False)))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        if size != 8 + length + max(check_entry(name, tensor) for name, tensor in tensors.items()):
            raise ValueError("its size is wrong")
        count = [sum(tensors[name]["shape"][0] for name in moments_in(tensors))]
        for name, tensor in tensors.items():
            if not name.startswith((STAMP, f"{MOMENTS}.")) and tensor["shape"][:1] != count:
                raise ValueError(f"its {name} and its moments have different lengths")
        for name in ("labels", "checksums"):
            if tensors[name]["dtype"] != "I64" or tensors[name]["shape"] != count:
                raise ValueError(f"its {name} have another shape or type")
    return header | {"start": 8 + length}


def moments_in(tensors: Iterable[str]) -> list[str]:
    """The names of the tensors of moments, in the order of the entries."""
    return sorted(name for name in tensors if name.partition(".")[0] == MOMENTS)


def check_entry(name: str, tensor: dict[str, Any]) -> int:
    """Check type, shape and position of a tensor in the header of a safetensors file; returns its end.

    Raises:
        ValueError, TypeError, KeyError: they do not fit.
    """
    shape, (first, last) = [operator.index(side) for side in tensor["shape"]], tensor["data_offsets"]
    size = math.prod(shape) * STORED[tensor["dtype"]].itemsize
    if min(shape, default=0) < 0 or not 0 <= first <= last or last - first != size:
        raise ValueError(f"{name} of shape {tensor['shape']} has {last - first:,} bytes")
    return int(last)


class Shard:
    """One file of a cache."""

    def __init__(self, file: Path | StoredFile, expected: int | None = None) -> None:
        self.file = file
        self.header = read_header(file)
        if expected is not None and size_of(file) != expected:
            raise InputError(f"shard {file} does not have the length in the index; remove it and encode again")
        self.count = int(self.header["labels"]["shape"][0])
        self.parts = {name: int(self.header[name]["shape"][0]) for name in moments_in(self.header)}
        """Number of entries of each tensor of moments, in their order."""

    def column(self, name: str) -> Tensor:
        """A whole tensor."""
        first, last = self.header[name]["data_offsets"]
        return self._read(name, first, last - first).reshape(self.header[name]["shape"])

    def moments(self, row: int) -> Tensor:
        """The moments (2c, h, w) of an entry."""
        for name, count in self.parts.items():
            if row < count:
                return self.row(name, row)
            row -= count
        raise IndexError(row)

    def row(self, name: str, row: int) -> Tensor:
        """One row of a tensor."""
        shape = self.header[name]["shape"][1:]
        length = math.prod(shape) * STORED[self.header[name]["dtype"]].itemsize
        start = self.header[name]["data_offsets"][0] + row * length
        return self._read(name, start, length, whole=True).reshape(shape)

    def _read(self, name: str, position: int, length: int, *, whole: bool = False) -> Tensor:
        dtype = STORED[self.header[name]["dtype"]]
        if not length:
            return torch.empty(0, dtype=dtype)
        start = self.header["start"] + position
        return torch.frombuffer(read_part(self.file, start, length, whole=whole), dtype=dtype)


def shard_stamps(file: Path | StoredFile) -> Stamps | None:
    """The images of a shard; None if an earlier version wrote it, which kept no stamps.

    Raises:
        InputError: the shard is missing or damaged.
    """
    shard = Shard(file)
    names = [name for name in shard.header if name.startswith(STAMP)]
    arrays = {name.removeprefix(STAMP): shard.column(name).numpy() for name in names}
    with interpreting(f"shard {file}", "remove it and encode again"):
        return Stamps.from_arrays(arrays) if arrays else None
