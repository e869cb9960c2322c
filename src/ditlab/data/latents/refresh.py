"""Find the shards of a latent cache whose images have changed, so that only they are encoded again."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from ditlab.core.errors import InputError
from ditlab.core.spelling import all_nfc, same_place
from ditlab.core.stores import StoredFile
from ditlab.core.units import counted
from ditlab.data.base import Dataset
from ditlab.data.identity import Changes, Numbers, Stamps, compare
from ditlab.data.latents.cache import INDEX
from ditlab.data.latents.description import Description, read_description, write_description
from ditlab.data.latents.shards import shard_file, shard_stamps


@dataclass(frozen=True)
class EncodedImages:
    """The present images of a data set, as the shards of a cache hold them."""

    dataset: Dataset
    description: Description
    stamps: Stamps

    @classmethod
    def of(cls, dataset: Dataset, description: Description) -> Self:
        """Look at the images of a data set; nothing is read."""
        return cls(dataset, description, replace(dataset.stamps(), classes=all_nfc(dataset.classes)))

    def indices(self, number: int) -> Numbers:
        """Positions in `stamps` of the images of a shard; mirrored copies have those of their images."""
        first, end = number * self.description.shard, (number + 1) * self.description.shard
        return np.arange(first, min(end, self.description.images)) % len(self.stamps)

    def of_shard(self, number: int) -> Stamps:
        """The stamps of a shard, with hashes, for which its images are read."""
        indices = self.indices(number)
        return self.stamps.hashed(np.unique(indices), self.dataset.content_hash).take(indices)

    def changes(self, file: Path | StoredFile, number: int) -> Changes | None:
        """What has changed since a shard was written; None if an earlier version wrote it."""
        before, indices = shard_stamps(file), self.indices(number)
        if before is None:
            return None
        now = self.stamps.take(indices)
        return compare(before, now, lambda i: self.dataset.content_hash(int(indices[i])))[0]


@dataclass(frozen=True)
class Refresh:
    """The state of a cache when encoding begins."""

    stale: frozenset[int] = frozenset()
    """Shards whose images have changed."""
    notes: tuple[str, ...] = ()
    """What has changed, for the user."""


def refresh(folder: Path, images: EncodedImages) -> Refresh:
    """Start a cache, or compare an existing one with the present images; stale shards are kept until they are replaced.

    Raises:
        InputError: the folder holds other files, or a cache that was made with other settings or from other images.
    """
    before, now = read_description(folder), images.description
    if before is None:
        write_description(folder, now)
        return Refresh()
    if differences := now.differences(before):
        raise InputError(f"{folder} holds another cache ({'; '.join(differences)}); give another folder")
    every = range(max(before.shards, now.shards))
    written = [number for number in every if shard_file(folder, number).exists()]
    compared = {number: images.changes(shard_file(folder, number), number) for number in written}
    for number in range(before.shards, now.shards):
        compared[number] = Changes(added=images.stamps.take(images.indices(number)).names)
    stale = frozenset(number for number, changes in compared.items() if changes and number < now.shards)
    other = bool(stale) or (before.images, before.classes) != (now.images, now.classes)
    what = str(merged(changes for changes in compared.values() if changes)) or counts(before, now)
    moved = not same_place(before.source, now.source)
    unknown = None in compared.values()
    if other and (moved or unknown):
        why = f"source: {before.source}, not {now.source}; {what}" if moved else f"{what}, in an earlier version"
        raise InputError(f"{folder} holds a cache of other images ({why}); give another folder")
    notes = [f"{before.source} is now {now.source}, with the same images"] if moved else []
    if unknown:
        notes.append(f"{folder} is of an earlier version, which cannot show whether the images have changed since")
    if other:
        notes.append(f"{what}; encoding {len(stale)} of {counted(now.shards, 'shard')} of {folder}")
        (folder / INDEX).unlink(missing_ok=True)
        for number in range(now.shards, before.shards):
            shard_file(folder, number).unlink(missing_ok=True)
    if now != before:
        write_description(folder, now)
    return Refresh(stale, tuple(notes))


def merged(parts: Iterable[Changes]) -> Changes:
    """The changes of several shards. An image that has moved from one shard to another is not listed."""
    known = list(parts)
    removed, added = ({name for part in known for name in getattr(part, key)} for key in ("removed", "added"))

    def names(key: str, left_out: set[str]) -> list[str]:
        return [name for part in known for name in getattr(part, key) if name not in left_out]

    return Changes(
        removed=names("removed", added),
        added=names("added", removed),
        changed=names("changed", set()),
        relabeled=names("relabeled", set()),
        renumbered=names("renumbered", set()),
        uncertain=names("uncertain", set()),
        reordered=bool(removed & added) or any(part.reordered for part in known),
    )


def counts(before: Description, now: Description) -> str:
    """The counts of images and classes of two descriptions."""
    was, is_ = (
        f"{counted(about.images, 'image')} of {counted(len(about.classes), 'class')}" for about in (before, now)
    )
    return f"{was} there, {is_} here"
