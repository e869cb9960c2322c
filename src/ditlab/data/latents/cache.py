"""The latent cache: the posterior moments of all images or videos of a data set, in files.

    cache/description.json            shape, classes, preprocessing, hash of the autoencoder
    cache/index.json                  the same, with names, sizes and hashes of the shards; written when all exist
    cache/shards/000000.safetensors   moments (n, 2c, h, w), labels (n,), checksums (n,), index (n,) of the images in
                                      the source; of images of several sizes, the moments of each size as
                                      "moments.20x12", one after the other; other parts of the condition
                                      as "condition.NAME", further tensors of the batch as "extra.NAME" (features
                                      of an encoder: "extra.features"), and names,
                                      sizes, times and hashes of the shard's images as "stamp.NAME"
    cache/captions.json               the captions of each image of the source, if it has any
    cache/autoencoder/                the autoencoder, so that a model trained on the cache can decode its samples

A shard is written to a temporary file and renamed, so it is complete or absent; existing shards are not encoded again.
Entries are read at their offset and not memory-mapped, because mapped files count as resident memory.
"""

import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from ditlab.config.reader import parse_sides
from ditlab.core.errors import InputError
from ditlab.core.file_cache import file_cache
from ditlab.core.formats import interpreting, parse_json, read_object, reason
from ditlab.core.io import hash_file, replace_text
from ditlab.core.spelling import all_nfc
from ditlab.core.stores import StoredFile, exists, is_url, join, matching
from ditlab.core.types import Batch, Condition
from ditlab.core.units import sides_of
from ditlab.core.values import PixelValues
from ditlab.data.base import Dataset
from ditlab.data.buckets import Buckets
from ditlab.data.identity import Stamps
from ditlab.data.latents.description import DESCRIPTION, Description, describe
from ditlab.data.latents.shards import CONDITION, EXTRA, MOMENTS, Shard, read_header, shard_file

STATS = 16  # shards whose headers are read at the same time
INDEX, FORMAT = "index.json", "ditlab latents"
CAPTIONS = "captions.json"


def write_index(folder: Path, description: Description) -> int:
    """Write the index of a cache of which all shards exist; returns the number of entries."""
    shards = [index_entry(shard_file(folder, number)) for number in range(description.shards)]
    replace_text(folder / INDEX, index_text(description, shards))
    return sum(shard["entries"] for shard in shards)


def index_entry(file: Path) -> dict[str, Any]:
    """What the index says about a shard."""
    return {
        "file": file.name,
        "entries": read_header(file)["labels"]["shape"][0],
        "bytes": file.stat().st_size,
        "sha256": hash_file(file),
    }


def index_text(description: Description, shards: list[dict[str, Any]]) -> str:
    """The index of a cache with these entries of its shards."""
    entries = sum(shard["entries"] for shard in shards)
    content = {"format": FORMAT, "entries": entries, **description.content(), "shards": shards}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def is_cache(path: Path) -> bool:
    """Whether a folder is a latent cache, finished or not."""
    return (path / DESCRIPTION).is_file()


def is_stored_cache(text: str) -> bool:
    """Whether a text is the address of a latent cache in a store, finished or not."""
    return is_url(text) and not Path(text).suffix and exists(join(text, DESCRIPTION))


def stored_shards(url: str) -> dict[str, StoredFile]:
    """The shards of a cache in a store, by name."""
    return matching(join(url, "shards"), "*.safetensors")


@final
class Latents(Dataset):
    """The data set of a latent cache: `fetch` returns moments (B, 2c, h, w) float32, and `Batch.encoded` is true.

    `channels` and `size` are those of the images, as in every data set.
    """

    def __init__(self, folder: Path, url: str = "") -> None:
        """Open a finished cache.

        Args:
            folder: the cache; of a cache in a store, a copy of its files without the shards.
            url: the address of the cache in a store; empty for one on this machine.

        Raises:
            InputError: the cache is unfinished, or a shard is missing or has another length.
        """
        self.folder, self.url = folder, url
        content = read_index(folder)
        with interpreting(folder / INDEX, "remove it and encode again"):
            listed = [(str(part["file"]), int(part["bytes"]), int(part["entries"])) for part in content.pop("shards")]
            self.entries = int(content.pop("entries"))
            self.description = describe(content)
        self.channels, self.size = self.description.channels, self.description.size
        self.classes, self.preprocessing = all_nfc(self.description.classes), self.description.preprocessing
        self.values = PixelValues.read(self.description.values)
        self.shape, self.image_features = self.description.shape, self.description.features
        with ThreadPoolExecutor(STATS) as pool:
            self.shards = list(
                pool.map(Shard, self._files([file for file, *_ in listed]), [size for _, size, _ in listed])
            )
        for shard, (_, _, entries) in zip(self.shards, listed, strict=True):
            if shard.count != entries:
                raise InputError(
                    f"{folder / INDEX} records {entries:,} entries of {shard.file.name}, but it has "
                    f"{shard.count:,}; remove {INDEX} and encode again"
                )
            if any(not self._fits(name, shard.header[name]["shape"][1:]) for name in shard.parts):
                raise InputError(f"shard {shard.file} does not fit the index; remove it and encode again")
        if self.entries != (count := sum(shard.count for shard in self.shards)) or not count:
            raise InputError(
                f"{folder / INDEX} records {self.entries:,} entries of the cache, but its shards have {count:,}; "
                f"remove {INDEX} and encode again"
            )
        self.starts = np.cumsum([0] + [shard.count for shard in self.shards])
        self.labels = torch.cat([shard.column("labels") for shard in self.shards])
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < max(1, len(self.classes)):
            raise InputError(f"{folder} has a label that is no class; remove its shards and encode again")
        self.checksums = torch.cat([shard.column("checksums") for shard in self.shards]).tolist()
        if self.description.native:
            self._divide()
        names = next((shard.header.keys() for shard in self.shards if shard.count), ())
        self.condition_names = [name for name in names if name.startswith(CONDITION)]
        self.extra_names = [name for name in names if name.startswith(EXTRA)]

    @classmethod
    def open(cls, text: str) -> Self:
        """Open a finished cache on this machine, or at an address in a store.

        Raises:
            InputError: it is unfinished or damaged, or the store cannot be used.
        """
        return cls(file_cache().mirror(text, "*.json", "autoencoder/*"), text) if is_url(text) else cls(Path(text))

    def _fits(self, name: str, shape: list[int]) -> bool:
        """Whether moments of this name and shape are such as the index announces."""
        if not self.description.native:
            return (name, shape) == (MOMENTS, [*self.shape])
        sides = name.removeprefix(f"{MOMENTS}.").split("x")
        channels_and_rank = (shape[0], len(shape)) == (self.shape[0], len(self.shape))
        return channels_and_rank and len(sides) == len(self.size) and all(side.isdecimal() for side in sides)

    def _divide(self) -> None:
        """Set the sizes of the entries, and those of most."""
        parts = [(parse_sides(name.removeprefix(f"{MOMENTS}.")), n) for s in self.shards for name, n in s.parts.items()]
        sizes = sorted({size for size, _ in parts}, key=lambda size: (*size[:-2], -size[-2], size[-1]))
        of = torch.cat([torch.full((count,), sizes.index(size)) for size, count in parts])
        native = self.description.native
        self.buckets = Buckets(tuple(sizes), of, native["pixels"], frame_multiple=native["frame_multiple"])
        self.size = sizes[self.buckets.frequent]
        name = f"{MOMENTS}.{sides_of(self.size)}"
        self.shape = next(tuple(shard.header[name]["shape"][1:]) for shard in self.shards if name in shard.parts)

    def _files(self, names: list[str]) -> Sequence[Path | StoredFile]:
        """The shards with these names."""
        if not self.url:
            return [self.folder / "shards" / Path(name).name for name in names]
        stored = stored_shards(self.url)
        if missing := [name for name in names if name not in stored]:
            raise InputError(f"{self.url} lacks the shard {missing[0]}; restore it, or encode again")
        return [stored[name] for name in names]

    def fetched_files(self, mixed: int) -> Tensor | None:
        stored = [shard.file for shard in self.shards if isinstance(shard.file, StoredFile)]
        if not stored:
            return None
        sizes = sorted((file.size for file in stored), reverse=True)[: 2 * mixed]
        file_cache().check_room(sizes, f"the {len(sizes):,} largest shards, which are needed at the same time, have")
        counts = torch.tensor([shard.count for shard in self.shards])
        return torch.arange(len(stored), dtype=torch.int32).repeat_interleave(counts)

    def expect(self, indices: Tensor) -> None:
        numbers = np.unique(np.searchsorted(self.starts, indices.numpy(), side="right") - 1).tolist()
        files = (self.shards[number].file for number in numbers)
        file_cache().expect(file for file in files if isinstance(file, StoredFile))

    def fetch(self, indices: Tensor) -> Batch:
        entries = [self._moments(i) for i in indices.tolist()]
        if len({entry.shape for entry in entries}) > 1:
            raise InputError(f"the latents in {self.folder} have several sizes, and here they must have one")
        moments = torch.stack(entries).float()
        extra = {name.removeprefix(EXTRA): self._rows(name, indices) for name in self.extra_names}
        return Batch(moments, self.condition(indices), extra, encoded=True)

    def condition(self, indices: Tensor) -> Condition:
        if not self.condition_names:
            return super().condition(indices)
        parts: dict[str, Any] = {
            name.removeprefix(CONDITION): self._rows(name, indices) for name in self.condition_names
        }
        return Condition(**parts)

    def captions(self, i: int) -> tuple[str, ...]:
        return self._captions[int(self._sources[i])] if self._captions else ()

    @cached_property
    def _captions(self) -> list[tuple[str, ...]]:
        """The captions of each image of the source; empty if it has none."""
        file = self.folder / CAPTIONS
        if not file.exists():
            return []
        with interpreting(file, "remove it and encode again"):
            return [tuple(map(str, texts)) for texts in parse_json(file.read_bytes())]

    @cached_property
    def _sources(self) -> Tensor:
        """The positions (entries,) in the source of all entries.

        Raises:
            InputError: an earlier version wrote the cache, and left images out.
        """
        parts = []
        for number, shard in enumerate(self.shards):
            first = number * self.description.shard
            if "index" in shard.header:
                parts.append(shard.column("index"))
            elif shard.count == min(self.description.shard, self.description.images - first):
                parts.append(torch.arange(first, first + shard.count))
            else:
                raise InputError(f"{self.folder} does not say which images have which captions; encode them again")
        return torch.cat(parts)

    def stamps(self) -> Stamps:
        checksums = np.array(self.checksums, np.int64)
        return replace(super().stamps(), times=checksums, hashes=checksums + 1)  # 0 is an unknown hash

    def _place(self, i: int) -> tuple["Shard", int]:
        """The shard of entry i, and its row there."""
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.shards[number], i - int(self.starts[number])

    def _rows(self, name: str, indices: Tensor) -> Tensor:
        places = [self._place(i) for i in indices.tolist()]
        return torch.stack([shard.row(name, row) for shard, row in places])

    def _moments(self, i: int) -> Tensor:
        shard, row = self._place(i)
        entry = shard.moments(row)
        if zlib.crc32(entry.view(torch.uint8).numpy().tobytes()) != self.checksums[i]:
            raise InputError(f"entry {i} of the cache, in {shard.file}, is damaged; remove that file and encode again")
        return entry


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a cache's index."""
    try:
        content = read_object(folder / INDEX)
    except FileNotFoundError:
        raise InputError(f"the cache {folder} is not finished; encode again with the same settings") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder / INDEX}: {reason(error)}; remove it and encode again") from error
    if content.pop("format", None) != FORMAT:
        raise InputError(f"{folder} is not a latent cache; give a folder that `ditlab encode` wrote")
    return content


def indexed_entries(folder: Path, description: Description) -> int | None:
    """The number of entries of a cache whose index has this description; None if there is no such index.

    Raises:
        InputError: the index cannot be read.
    """
    if not (folder / INDEX).exists():
        return None
    content = read_index(folder)
    with interpreting(folder / INDEX, "remove it and encode again"):
        entries, _ = int(content.pop("entries")), content.pop("shards")
        return entries if describe(content) == description else None
