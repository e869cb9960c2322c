"""Encode a data set into a latent cache: in batches, by any number of processes, resumable after each shard.

Process r of n writes the shards r, r + n, r + 2n, ... without any communication; the process that writes the last
missing shard also writes the index. A thread reads the next images while the autoencoder encodes the current ones.
"""

import json
import time
from collections.abc import Iterator
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
from ditlab.core.values import EIGHT_BITS
from ditlab.data.base import Dataset, ahead, numbered
from ditlab.data.identity import Stamps
from ditlab.data.latents.cache import (
    CAPTIONS,
    DTYPES,
    Description,
    indexed_entries,
    write_index,
)
from ditlab.data.latents.refresh import EncodedImages, refresh
from ditlab.data.latents.shards import shard_file, write_shard
from ditlab.data.summary import report_data, report_unreadable


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

    Raises:
        InputError: the folder holds another cache, also one of other images from another source; it is in use; or a
            setting is invalid.
    """
    lookup(DTYPES, dtype, "dtype")
    if min(batch_size, shard) < 1:
        raise InputError(f"batch size {batch_size} and shard {shard}; give 1 or more")
    description = _describe(dataset, source, autoencoder, dtype, shard)
    with held(out, rank):
        images = EncodedImages.of(dataset, description)
        state = refresh(out, images)
        if rank == 0:
            prepare(out, dataset, source, autoencoder, console)
        for note in state.notes if rank == 0 else ():
            say(console, note)
        own = range(rank, description.shards, world)
        numbers = [n for n in own if n in state.stale or not shard_file(out, n).exists()]
        begun = any((out / "shards").glob("*.safetensors"))
        if rank == 0 and numbers:
            dataset.check(console, resumed=begun and not state.stale)
            report_unreadable(dataset, source, out, console)
        work = _encode_shards(numbers, images, autoencoder, out, console, batch_size)
        complete = all(shard_file(out, number).exists() for number in range(description.shards)) and not any(
            images.changes(out, number) for number in state.stale.difference(own)
        )
        entries = indexed_entries(out, description) if complete else None
        if complete and entries is None:
            entries = write_index(out, description)
    return Encoded(work.images, work.seconds, work.waited, entries, out)


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


def _describe(dataset: Dataset, source: str, autoencoder: Latent, dtype: str, shard: int) -> Description:
    autoencoder.check_images(dataset.channels, dataset.values)
    if dataset.buckets is not None:
        raise InputError(
            "a latent cache holds images of one size, and size is native; give HEIGHTxWIDTH, or train on the "
            "images with data.autoencoder, which encodes them in every step"
        )
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
    )


def _encode_shards(
    numbers: list[int],
    images: EncodedImages,
    autoencoder: Latent,
    out: Path,
    console: Console,
    batch_size: int,
) -> Work:
    """Write the shards with these numbers."""
    work, started, description = Work(), time.monotonic(), images.description
    stamps: dict[int, Stamps] = {}

    def fetch(indices: torch.Tensor) -> Batch:
        number = int(indices[0]) // description.shard
        if number not in stamps:  # before the images are read, so that a change in between is noticed next time
            stamps[number] = images.of_shard(number)
        return numbered(images.dataset.fetch_readable(indices), indices)

    device = next(autoencoder.parameters()).device
    dtype = DTYPES[description.dtype]
    chunks = [
        (number, indices) for number in numbers for indices in torch.split(_indices(number, description), batch_size)
    ]
    batches = _timed(ahead((indices for _, indices in chunks), fetch), work)
    with progress_bar(console) as bar:
        task = bar.add_task("encoding", total=sum(len(indices) for _, indices in chunks))
        parts: list[Batch] = []
        for (number, indices), batch in zip(chunks, batches, strict=True):
            if len(batch):
                with torch.no_grad():
                    moments = autoencoder.encode(batch.x.to(device)).to(dtype).cpu()
                parts.append(replace(batch, x=moments, encoded=True))
            work.images += len(batch)
            bar.advance(task, len(indices))
            if indices[-1] == _indices(number, description)[-1]:
                write_shard(shard_file(out, number), _joined(parts, description), stamps.pop(number))
                parts = []
    work.seconds = time.monotonic() - started
    return work


def _indices(number: int, description: Description) -> torch.Tensor:
    """The indices of the images of a shard."""
    return torch.arange(number * description.shard, min(description.images, (number + 1) * description.shard))


def _joined(parts: list[Batch], description: Description) -> Batch:
    """Concatenate batches of moments; the result is empty if no image could be read."""
    if not parts:
        empty = torch.empty(0, *description.shape, dtype=DTYPES[description.dtype])
        none = torch.empty(0, dtype=torch.long)
        return Batch(empty, Condition(label=none), encoded=True, index=none)
    extra = {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra}
    moments = torch.cat([part.x for part in parts])
    known = [part.index for part in parts if part.index is not None]
    index = torch.cat(known) if len(known) == len(parts) else None
    condition = Condition.cat([part.condition for part in parts])
    return Batch(moments, condition, extra, encoded=True, index=index)


def _timed(batches: Iterator[Batch], work: Work) -> Iterator[Batch]:
    """Pass on the batches, and add the time spent waiting for them to `work`."""
    while True:
        before = time.monotonic()
        batch = next(batches, None)
        work.waiting += time.monotonic() - before
        if batch is None:
            return
        yield batch
