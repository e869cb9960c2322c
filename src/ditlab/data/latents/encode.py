"""Encode a data set into a latent cache: in batches, by any number of processes, resumable after each shard.

Process r of n writes the shards r, r + n, r + 2n, ... without any communication; the process that writes the last
missing shard also writes the index. With `upload`, the processes need not even share the folder. A thread reads the
next images while the autoencoder encodes the current ones.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from ditlab.autoencoders import Latent
from ditlab.autoencoders.io import fingerprint, save_autoencoder
from ditlab.core.errors import InputError, lookup
from ditlab.core.io import held, replace_text, replacing
from ditlab.core.progress import progress_bar
from ditlab.core.spelling import absolute
from ditlab.core.terminal import say
from ditlab.core.types import Batch, Condition
from ditlab.core.units import sides_of
from ditlab.core.values import EIGHT_BITS
from ditlab.data.base import Dataset, ahead, announced, numbered
from ditlab.data.identity import Stamps
from ditlab.data.latents.cache import CAPTIONS, indexed_entries, write_index
from ditlab.data.latents.description import Description
from ditlab.data.latents.features import FEATURES, ImageFeatures
from ditlab.data.latents.publish import Published
from ditlab.data.latents.refresh import EncodedImages, refresh
from ditlab.data.latents.shards import MOMENTS, Entries, shard_file, write_shard
from ditlab.data.summary import report_data, report_unreadable

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EXPECTED = 32  # batches before which the files in a store that they need are fetched


@dataclass(frozen=True)
class Encoded:
    """The work of this process, and the finished cache."""

    images: int  # encoded by this process
    seconds: float
    waited: float  # share of the time in which the autoencoder waited for images
    entries: int | None  # in the finished cache; None while other processes still write
    folder: Path


@dataclass
class Work:
    """Running totals of this process."""

    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    @property
    def waited(self) -> float:
        """Share of the time spent waiting for images."""
        return self.waiting / self.seconds if self.seconds else 0.0


def encode(
    dataset: Dataset,
    source: str,
    autoencoder: Latent,
    out: Path,
    console: Console,
    *,
    batch_size: int = 64,
    dtype: str = "fp16",
    shard: int = 4096,
    rank: int = 0,
    world: int = 1,
    upload: str = "",
    features: ImageFeatures | None = None,
) -> Encoded:
    """Encode all images of a data set into a cache; existing shards are kept unless their images have changed.

    Args:
        dataset: images or videos.
        source: the data source, or another name of the data set, for the index. If it has moved, the cache is kept.
        autoencoder: the autoencoder. The moments of its posterior are stored, so that each epoch samples new latents.
        out: folder of the cache; created if it does not exist.
        console: where progress is shown.
        batch_size: images encoded at a time.
        dtype: precision of the stored moments: fp16, bf16 or fp32.
        shard: images in each file.
        rank, world: index of this process, and number of processes.
        upload: address of a copy of the cache in a store, to which each process adds its shards.
        features: computes features that are stored beside the latents, in the same precision.

    Raises:
        InputError: the folder holds another cache, also one of other images from another source; it is in use; or a
            setting is invalid.
    """
    lookup(DTYPES, dtype, "dtype")
    if min(batch_size, shard) < 1:
        raise InputError(f"batch size {batch_size} and shard {shard}; give 1 or more")
    description = _describe(dataset, source, autoencoder, dtype, shard, features)
    with held(out, rank):
        images = EncodedImages.of(dataset, description)
        state = refresh(out, images)
        if rank == 0:
            prepare(out, dataset, source, autoencoder, console)
        for note in state.notes if rank == 0 else ():
            say(console, note)
        own = range(rank, description.shards, world)
        numbers = [n for n in own if n in state.stale or not shard_file(out, n).exists()]
        copy = Published(upload, out, images) if upload else None
        if copy is not None:
            numbers = copy_existing(copy, own, numbers, first=rank == 0)
        begun = any((out / "shards").glob("*.safetensors"))
        if rank == 0 and numbers:
            dataset.check(console, resumed=begun and not state.stale)
            report_unreadable(dataset, source, out, console)
        written = (lambda number: None) if copy is None else copy.add
        work = _encode_shards(
            numbers, images, encoded_batches(autoencoder, features, dataset), out, console, batch_size, written
        )
        entries = finish(out, images, state.stale.difference(own)) if copy is None else copy.finish()
    return Encoded(work.images, work.seconds, work.waited, entries, out)


def finish(out: Path, images: EncodedImages, stale: Iterable[int]) -> int | None:
    """Write the index if all shards are there; returns the number of entries, or None if some are missing.

    Args:
        out: folder of the cache.
        images: the present images.
        stale: shards that other processes must encode again.
    """
    files = [shard_file(out, number) for number in range(images.description.shards)]
    if not all(file.exists() for file in files) or any(images.changes(files[number], number) for number in stale):
        return None
    entries = indexed_entries(out, images.description)
    return write_index(out, images.description) if entries is None else entries


def copy_existing(copy: Published, own: range, numbers: list[int], *, first: bool) -> list[int]:
    """Copy the shards of this process that are on this machine but not in the store; returns those to encode.

    Args:
        copy: the copy of the cache in the store.
        own: the shards of this process.
        numbers: those that are missing on this machine, or stale.
        first: whether this is the first process, which copies the files beside the shards.
    """
    if first:
        copy.share()
    for number in own:
        if number not in copy.done and number not in numbers:
            copy.add(number)
    absent = [number for number in numbers if not shard_file(copy.folder, number).exists()]
    kept = copy.done.intersection(absent) - copy.stale(absent)
    return [number for number in numbers if number not in kept]


def prepare(out: Path, dataset: Dataset, source: str, autoencoder: Latent, console: Console) -> None:
    """Report what is encoded, and write what a cache holds beside its shards."""
    report_data(dataset, source, out, console)
    captions = [dataset.captions(i) for i in range(len(dataset))]
    if any(captions):  # written each time, because they may change without the images
        replace_text(out / CAPTIONS, json.dumps(captions, ensure_ascii=False))
    else:
        (out / CAPTIONS).unlink(missing_ok=True)
    if not (out / "autoencoder").exists():
        with replacing(out / "autoencoder") as draft:
            save_autoencoder(autoencoder, draft)


def _describe(
    dataset: Dataset, source: str, autoencoder: Latent, dtype: str, shard: int, features: ImageFeatures | None
) -> Description:
    if features is not None and len(dataset.size) != 2:
        raise InputError("features are computed of images, and the data are clips; encode them without features")
    if features is not None and dataset.buckets is not None:
        raise InputError(
            "features are computed of images of one size, and size is native; give HEIGHTxWIDTH, or encode the images "
            "without features"
        )
    autoencoder.check_images(dataset.channels, dataset.values)
    buckets = dataset.buckets
    channels, sides = autoencoder.latent_shape(dataset.channels, dataset.size)
    return Description(
        source=absolute(source),
        images=len(dataset),
        channels=dataset.channels,
        size=dataset.size,
        preprocessing=dataset.preprocessing,
        autoencoder=fingerprint(autoencoder),
        shape=(2 * channels, *sides),
        dtype=dtype,
        classes=dataset.classes,
        shard=shard,
        values={} if dataset.values == EIGHT_BITS else dataset.values.describe(),
        native={} if buckets is None else {"pixels": buckets.pixels, "frame_multiple": buckets.frame_multiple},
        features={} if features is None else features.about,
    )


def _encode_shards(
    numbers: list[int],
    images: EncodedImages,
    encoder: Callable[[Batch, torch.dtype], Batch],
    out: Path,
    console: Console,
    batch_size: int,
    written: Callable[[int], None],
) -> Work:
    """Write the shards with these numbers; `written` is called after each of them."""
    work, started, description = Work(), time.monotonic(), images.description
    stamps: dict[int, Stamps] = {}

    def fetch(indices: torch.Tensor) -> Batch:
        number = int(indices[0]) // description.shard
        if number not in stamps:  # before the images are read, so that a change in between is noticed next time
            stamps[number] = images.of_shard(number)
        return numbered(images.dataset.fetch_readable(indices), indices)

    dtype = DTYPES[description.dtype]
    chunks = [
        (number, indices)
        for number in numbers
        for same in of_one_size(images.dataset, _indices(number, description))
        for indices in torch.split(same, batch_size)
    ]
    last = {number: place for place, (number, _) in enumerate(chunks)}
    order = announced((indices for _, indices in chunks), images.dataset.expect, EXPECTED)
    batches = _timed(ahead(order, fetch), work)
    with progress_bar(console) as bar:
        task = bar.add_task("encoding", total=sum(len(indices) for _, indices in chunks))
        parts: list[tuple[str, Batch]] = []
        for place, ((number, indices), batch) in enumerate(zip(chunks, batches, strict=True)):
            if len(batch):
                name = MOMENTS if images.dataset.buckets is None else f"{MOMENTS}.{sides_of(batch.x.shape[2:])}"
                parts.append((name, encoder(batch, dtype)))
            work.images += len(batch)
            bar.advance(task, len(indices))
            if place == last[number]:
                write_shard(shard_file(out, number), _joined(parts, description), stamps.pop(number))
                written(number)
                parts = []
    work.seconds = time.monotonic() - started
    return work


def encoded_batches(
    autoencoder: Latent, features: ImageFeatures | None, dataset: Dataset
) -> Callable[[Batch, torch.dtype], Batch]:
    """A function that encodes a batch in a precision, with its features if there is something that computes them."""
    device = next(autoencoder.parameters()).device

    def encoder(batch: Batch, dtype: torch.dtype) -> Batch:
        with torch.no_grad():
            moments = autoencoder.encode(batch.x.to(device)).to(dtype).cpu()
            extra = dict(batch.extra)
            if features is not None:
                extra[FEATURES] = features.compute(dataset.values.displayed(batch.x)).to(dtype).cpu()
        return replace(batch, x=moments, extra=extra, encoded=True)

    return encoder


def _indices(number: int, description: Description) -> torch.Tensor:
    """The indices of the images of a shard."""
    return torch.arange(number * description.shard, min(description.images, (number + 1) * description.shard))


def of_one_size(dataset: Dataset, indices: torch.Tensor) -> list[torch.Tensor]:
    """The indices of the images of each size among these."""
    if dataset.buckets is None:
        return [indices]
    of = dataset.buckets.of[indices]
    return [indices[of == bucket] for bucket in sorted(set(of.tolist()))]


def _joined(named: list[tuple[str, Batch]], description: Description) -> Entries:
    """Concatenate batches of moments with the names of their tensors; without any, no image could be read."""
    if not named:
        empty = torch.empty(0, *description.shape, dtype=DTYPES[description.dtype])
        none = torch.empty(0, dtype=torch.long)
        return Entries({} if description.native else {MOMENTS: empty}, Condition(label=none), {}, none)
    named = sorted(named, key=lambda pair: pair[0])  # the order of the entries; stable for one size
    parts = [part for _, part in named]
    names = dict.fromkeys(name for name, _ in named)
    moments = {name: torch.cat([part.x for other, part in named if other == name]) for name in names}
    extra = {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra}
    known = [part.index for part in parts if part.index is not None]
    index = torch.cat(known) if len(known) == len(parts) else None
    return Entries(moments, Condition.cat([part.condition for part in parts]), extra, index)


def _timed(batches: Iterator[Batch], work: Work) -> Iterator[Batch]:
    """Pass on the batches, and add the time spent waiting for them to `work`."""
    while True:
        before = time.monotonic()
        batch = next(batches, None)
        work.waiting += time.monotonic() - before
        if batch is None:
            return
        yield batch
