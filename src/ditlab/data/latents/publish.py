"""A latent cache that machines write together into a store, and that share nothing else.

Each machine encodes its shards into a folder of its own and copies each finished shard to the store, followed by its
entry of the index, shards/000000.json: a shard without an entry counts as absent. The machine that finds all entries
writes the index. It is the same, bit for bit, as that of one machine.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from ditlab.core.errors import InputError
from ditlab.core.stores import create, join, matching, read_json, upload, write
from ditlab.data.latents.cache import CAPTIONS, INDEX, index_entry, index_text
from ditlab.data.latents.description import DESCRIPTION, Description, describe
from ditlab.data.latents.refresh import EncodedImages
from ditlab.data.latents.shards import shard_file

SHARED = (CAPTIONS, "data.json")  # files of the first machine, beside its autoencoder


class Published:
    """The copy of a cache in a store."""

    def __init__(self, url: str, folder: Path, images: EncodedImages) -> None:
        """Begin a copy, or continue one.

        Args:
            url: its address.
            folder: the cache on this machine, whose description is written.
            images: the present images.

        Raises:
            InputError: another cache is there, or the store cannot be used.
        """
        self.url, self.folder, self.images = url, folder, images
        description = (folder / DESCRIPTION).read_bytes()
        if not create(place := join(url, DESCRIPTION), description):
            check_same(url, describe(read_json(place)), images.description)
        self.done = {int(name.partition(".")[0]) for name in matching(join(url, "shards"), "*.json")}

    def stale(self, numbers: Iterable[int]) -> set[int]:
        """The shards among these whose images have changed since they were copied."""
        stored = matching(join(self.url, "shards"), "*.safetensors")
        files = {number: stored[shard_file(Path(), number).name] for number in self.done.intersection(numbers)}
        return {number for number, file in files.items() if self.images.changes(file, number)}

    def add(self, number: int) -> None:
        """Copy a shard, and then its entry of the index."""
        file = shard_file(self.folder, number)
        upload(file, join(self.url, f"shards/{file.name}"))
        write(join(self.url, f"shards/{file.stem}.json"), json.dumps(index_entry(file)).encode())
        self.done.add(number)

    def share(self) -> None:
        """Copy what a cache holds beside its shards."""
        files = [self.folder / name for name in SHARED] + sorted((self.folder / "autoencoder").iterdir())
        for file in files:
            if file.exists():
                upload(file, join(self.url, file.relative_to(self.folder).as_posix()))

    def finish(self) -> int | None:
        """Write the index if all shards are there; returns the number of entries, or None if some are missing."""
        description = self.images.description
        entries = matching(join(self.url, "shards"), "*.json")
        if len(entries) < description.shards:
            return None
        shards = [read_json(file.url) for file in entries.values()]
        write(join(self.url, INDEX), index_text(description, shards).encode())
        return sum(shard["entries"] for shard in shards)


def check_same(url: str, there: Description, here: Description) -> None:
    """Check that a cache in a store is of the same images and settings as that of this machine.

    Raises:
        InputError: it is not.
    """
    differences = here.differences(there)
    if (there.images, there.classes, there.source) != (here.images, here.classes, here.source):
        differences.append(
            f"source: {there.source} with {there.images:,} images there, {here.source} with {here.images:,} here"
        )
    if differences:
        raise InputError(f"{url} holds another cache ({'; '.join(differences)}); give another address")
