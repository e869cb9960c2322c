"""The latent cache: posterior moments of every picture, encoded once, read in place.

    cache/description.json            shape, classes, preprocessing, the autoencoder's identity
    cache/index.json                  the same with the shards' names, sizes and hashes, once all are written
    cache/shards/000000.safetensors   moments (n, 2c, h, w), labels (n,), checksums (n,)
    cache/autoencoder/                the autoencoder itself, so that a model trained on the cache can draw

A shard is written beside its place and renamed, so it is whole or absent; what is there is not encoded again. Entries
are read at their offset rather than mapped: mapped files count as resident, and a kernel maps megabytes around a place.
"""

import hashlib
import json
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.io import is_vacant, replace_text, replacing
from ditlab.core.types import Batch, Condition
from ditlab.data.base import Dataset

INDEX, DESCRIPTION, FORMAT = "index.json", "description.json", "ditlab latents"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Description:
    """What a cache holds; two caches are interchangeable if these agree."""

    source: str
    pictures: int
    """Pictures of the source, mirrored versions and broken ones counted."""
    channels: int
    size: tuple[int, int]
    """(height, width) of the pictures."""
    preprocessing: dict[str, Any]
    autoencoder: str
    """Hash of its configuration and weights."""
    shape: tuple[int, int, int]
    """(2c, h, w) of the moments."""
    dtype: str
    classes: list[str]
    shard: int
    """Pictures of the source in each shard."""

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.pictures // self.shard)

    def differences(self, other: "Description") -> list[str]:
        """`name: mine, not theirs` for each field that differs."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{key}: {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]]


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard is."""
    return folder / "shards" / f"{number:06d}.safetensors"


def write_shard(file: Path, moments: Tensor, labels: Tensor) -> None:
    """Write one shard whole or not at all.

    Raises:
        InputError: a disk that is full.
    """
    data = moments.contiguous().view(torch.uint8).flatten(1).numpy()
    checksums = torch.tensor([zlib.crc32(entry) for entry in data], dtype=torch.int64)
    try:
        with replacing(file) as draft:
            save_file({"moments": moments.contiguous(), "labels": labels, "checksums": checksums}, draft)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {file}: {error}; free some space and run the same command again") from error


def write_index(folder: Path, description: Description) -> int:
    """Close a cache once all its shards are there; returns the number of entries."""
    shards = []
    for number in range(description.shards):
        file = shard_file(folder, number)
        shards.append(
            {
                "file": file.name,
                "entries": read_header(file)["labels"]["shape"][0],
                "bytes": file.stat().st_size,
                "sha256": hash_file(file),
            }
        )
    entries = sum(shard["entries"] for shard in shards)
    content = {"format": FORMAT, "entries": entries, **asdict(description), "shards": shards}
    replace_text(folder / INDEX, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return entries


def hash_file(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file, with `start`, the place of its first byte of data.

    Raises:
        InputError: missing, or not whole.
    """
    try:
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            header: dict[str, Any] = json.loads(opened.read(length))
        end = max(tensor["data_offsets"][1] for key, tensor in header.items() if key != "__metadata__")
        if file.stat().st_size != 8 + length + end:
            raise ValueError("its size is wrong")
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise InputError(f"shard {file} is missing or damaged ({error}); remove it and encode again") from error
    return header | {"start": 8 + length}


def is_cache(path: Path) -> bool:
    """Whether this folder is a latent cache, finished or not."""
    return (path / DESCRIPTION).is_file()


@final
class Latents(Dataset):
    """Moments from a cache: `fetch` gives float32 (B, 2c, h, w) in `Batch.x`.

    `channels` and `size` are those of the pictures, as everywhere.
    """

    def __init__(self, folder: Path) -> None:
        """Open a finished cache.

        Raises:
            InputError: a cache that is unfinished, or whose shards are missing or of another length.
        """
        self.folder = folder
        content = read_index(folder)
        shards, self.entries = content.pop("shards"), content.pop("entries")
        self.description = describe(content)
        self.channels, self.size = self.description.channels, self.description.size
        self.classes = self.description.classes
        self.shape = self.description.shape
        self.shards = [Shard(folder / "shards" / shard["file"], shard["bytes"]) for shard in shards]
        self.starts = np.cumsum([0] + [shard["entries"] for shard in shards])
        self.labels = torch.cat([torch.from_numpy(shard.read("labels", np.int64)) for shard in self.shards])
        self.checksums = np.concatenate([shard.read("checksums", np.int64) for shard in self.shards])
        self.entry_bytes = int(np.prod(self.shape)) * DTYPES[self.description.dtype].itemsize

    def fetch(self, indices: Tensor) -> Batch:
        rows = torch.stack([self._entry(i) for i in indices.tolist()])
        moments = rows.view(DTYPES[self.description.dtype]).reshape(len(rows), *self.shape).float()
        return Batch(moments, Condition(label=self.labels[indices]), encoded=True)

    def _entry(self, i: int) -> Tensor:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        shard = self.shards[number]
        entry = shard.entry(i - int(self.starts[number]), self.entry_bytes)
        if zlib.crc32(entry) != self.checksums[i]:
            raise InputError(f"entry {i} of the cache, in {shard.file}, is damaged; remove that file and encode again")
        return torch.frombuffer(bytearray(entry), dtype=torch.uint8)


class Shard:
    """One file of a cache."""

    def __init__(self, file: Path, expected: int) -> None:
        self.file = file
        self.header = read_header(file)
        if file.stat().st_size != expected:
            raise InputError(f"shard {file} has another length than the index says; remove it and encode again")

    def read(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        """A small tensor, whole."""
        first, last = self.header[name]["data_offsets"]
        with self.file.open("rb") as file:
            file.seek(self.header["start"] + first)
            return np.frombuffer(file.read(last - first), dtype).copy()

    def entry(self, row: int, length: int) -> bytes:
        """The bytes of one entry."""
        first = self.header["start"] + self.header["moments"]["data_offsets"][0] + row * length
        with self.file.open("rb", buffering=0) as file:
            file.seek(first)
            return file.read(length) or b""


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a cache's index."""
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"the cache {folder} is not finished; run the same encode command again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder / INDEX}: {error}; remove it and encode again") from error
    if content.pop("format", None) != FORMAT:
        raise InputError(f"{folder} is no latent cache; give one that ditlab encode wrote")
    return content


def describe(content: dict[str, Any]) -> Description:
    """The description in an index."""
    c, h, w = content.pop("shape")
    height, width = content.pop("size")
    return Description(**content, shape=(c, h, w), size=(height, width))


def keep_description(folder: Path, description: Description) -> None:
    """Begin a cache, or go on with one that was begun for the same.

    Raises:
        InputError: a folder that holds something else, or a cache of something else; says what differs.
    """
    file = folder / DESCRIPTION
    if file.exists():
        differences = description.differences(describe(json.loads(file.read_text(encoding="utf-8"))))
        if differences:
            raise InputError(f"{folder} holds another cache ({'; '.join(differences)}); give another --out")
        return
    if not is_vacant(folder):
        raise InputError(f"{folder} is not empty and holds no cache; give another --out")
    replace_text(file, json.dumps(asdict(description), indent=1, ensure_ascii=False) + "\n")
