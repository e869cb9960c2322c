"""Tar shards in a store, such as s3://bucket/train-{0000..0199}.tar: whole shards are fetched into the file cache.

A shard is listed when it is fetched for the first time, and its listing is kept, so later starts fetch nothing.
Training orders the images so that few shards are needed at a time, see `ditlab.data.base.training_order`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.file_cache import FETCHERS, file_cache
from ditlab.core.stores import StoredFile, exists, is_url, join, matching, read, stat
from ditlab.data.scan import with_progress
from ditlab.data.sources.patterns import expand_braces
from ditlab.data.sources.shards import Listing, lookup_key, read_listing
from ditlab.data.sources.splits import named_part, one_part
from ditlab.data.sources.tar import TarShards

STATS = 16  # shards whose state is read at the same time
HEADERS = 10_000  # images of the first shards that are read for checks before the work


class StoredTar(TarShards):
    """Images in tar shards in a store."""

    shards: Sequence[StoredFile]

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return is_url(text)

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Open the tar files of a folder or of a pattern, or a single tar file; ":val" after them chooses that part.

        Raises:
            InputError: there is no such file, it is no tar file, or the store cannot be used.
        """
        address, part = named_part(text)
        settings = one_part(part, settings, text)
        shards = stored_shards(address)
        if not shards:
            raise InputError(f"no tar file {address}; give the address of tar files, or of a folder with some")
        if other := [shard for shard in shards if not shard.name.endswith(".tar")]:
            raise InputError(f"{other[0]} is no tar file; give the address of uncompressed tar files")
        return cls(shards, settings)

    @property
    def nearby(self) -> int:
        count = 0
        for number in np.bincount([place[0] for place in self.places]).tolist():
            count += number
            if count >= HEADERS:
                break
        return count

    def fetched_files(self, mixed: int) -> Tensor | None:
        sizes = sorted((shard.size for shard in self.shards), reverse=True)[: 2 * mixed]
        file_cache().check_room(sizes, f"the {len(sizes):,} largest shards, which are needed at the same time, have")
        return torch.tensor([place[0] for place in self.places], dtype=torch.int32)

    def expect(self, indices: Sequence[int]) -> None:
        numbers = dict.fromkeys(self.places[i][0] for i in indices)
        file_cache().expect(self.shards[number] for number in numbers)

    def _listings(self, settings: Preparation) -> list[Listing]:
        with ThreadPoolExecutor(FETCHERS) as pool:
            listings = pool.map(partial(read_listing, settings=settings), self.shards)
            return list(with_progress(listings, len(self.shards), "listing shards", FETCHERS))

    def _text_beside(self, name: str) -> str | None:
        url = join(self.shards[0].parent, name)
        return read(url).decode("utf-8-sig") if exists(url) else None

    def _texts(self, listings: list[Listing], parts: list[tuple[int, int, str]]) -> Sequence[Any]:
        return [lookup_key(listings[number].texts, name) or "" for number, name, *_ in self.places]


def stored_shards(address: str) -> list[StoredFile]:
    """The shards that an address stands for: a file, a pattern with braces or "*", or a folder.

    Raises:
        InputError: a file does not exist, or the store cannot be used.
    """
    shards: list[StoredFile] = []
    named: list[str] = []
    for url in expand_braces(address):
        folder, _, name = url.rpartition("/")
        if any(sign in name for sign in "*?["):
            shards += matching(folder, name).values()
        elif name.endswith(".tar") or "." in name:
            named.append(url)
        else:
            shards += matching(url, "*.tar").values()
    with ThreadPoolExecutor(STATS) as pool:
        return shards + list(pool.map(stat, named))
