"""Encoding a data set into a latent cache: batched, shared by the processes of a launcher, resumable at any point.

Process r of n writes the shards r, r + n, r + 2n, ... and needs no word from the others; whoever finds the last shard
written closes the cache. The next pictures are read while the autoencoder works on the present ones.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from ditlab.autoencoders import Latent
from ditlab.autoencoders.io import fingerprint, save_autoencoder
from ditlab.core.errors import InputError, lookup
from ditlab.core.io import held
from ditlab.core.progress import progress_bar
from ditlab.core.types import Batch
from ditlab.data import Dataset
from ditlab.data.latents.cache import (
    DTYPES,
    INDEX,
    Description,
    keep_description,
    read_index,
    shard_file,
    write_index,
    write_shard,
)

AHEAD = 2  # batches that are read in advance


@dataclass(frozen=True)
class Encoded:
    """What this process did."""

    pictures: int
    seconds: float
    waited: float  # share of the time in which the autoencoder waited for pictures
    entries: int | None  # of the finished cache; None while other processes still write
    folder: Path


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
    """Encode every picture once; shards that are already there are left as they are.

    Args:
        dataset: uint8 pictures.
        source: what the index calls them.
        autoencoder: gives the posterior moments, which are kept so that each epoch can draw anew.
        out: the cache; made if it does not exist.
        console: where progress is shown.
        batch_size: pictures encoded at a time.
        dtype: fp16, bf16 or fp32, in which the moments are stored.
        shard: pictures in a file.
        rank, world: number of this process, and of all.

    Raises:
        InputError: a folder that holds another cache or is in use, or settings that cannot be used.
    """
    lookup(DTYPES, dtype, "dtype")
    if min(batch_size, shard) < 1:
        raise InputError(f"batch size {batch_size} and shard {shard}; give 1 or more")
    channels, (height, width) = autoencoder.latent_shape(dataset.channels, dataset.size)
    description = Description(
        source=source,
        pictures=len(dataset),
        channels=dataset.channels,
        size=dataset.size,
        preprocessing=dataset.preprocessing,
        autoencoder=fingerprint(autoencoder),
        shape=(2 * channels, height, width),
        dtype=dtype,
        classes=dataset.classes,
        shard=shard,
    )
    with held(out, rank):
        keep_description(out, description)
        if rank == 0 and not (out / "autoencoder").exists():
            save_autoencoder(autoencoder, out / "autoencoder")
        mine = [n for n in range(rank, description.shards, world) if not shard_file(out, n).exists()]
        done = _encode_shards(mine, dataset, autoencoder, description, out, console, batch_size)
        whole = all(shard_file(out, number).exists() for number in range(description.shards))
        if whole and not (out / INDEX).exists():
            write_index(out, description)
    entries = int(read_index(out)["entries"]) if whole else None
    return Encoded(done.pictures, done.seconds, done.waited, entries, out)


@dataclass
class Work:
    """Running totals."""

    pictures: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    @property
    def waited(self) -> float:
        """Share of the time spent waiting for pictures."""
        return self.waiting / self.seconds if self.seconds else 0.0


def _encode_shards(
    numbers: list[int],
    dataset: Dataset,
    autoencoder: Latent,
    description: Description,
    out: Path,
    console: Console,
    batch_size: int,
) -> Work:
    places = [range(n * description.shard, min(description.pictures, (n + 1) * description.shard)) for n in numbers]
    work, started = Work(), time.monotonic()
    device = next(autoencoder.parameters()).device
    kind = DTYPES[description.dtype]
    with ThreadPoolExecutor(1) as reader, progress_bar(console) as bar:
        task = bar.add_task("encoding", total=sum(map(len, places)))
        chunks = [(n, part) for n, place in zip(numbers, places, strict=True) for part in _parts(place, batch_size)]
        moments: list[Tensor] = []
        labels: list[Tensor] = []
        for (number, part), batch in zip(chunks, _ahead(reader, dataset, chunks, work), strict=True):
            if len(batch):
                with torch.no_grad():
                    moments.append(autoencoder.encode(batch.x.to(device)).to(kind).cpu())
                labels.append(batch.labels)
            work.pictures += len(batch)
            bar.advance(task, len(part))
            if part[-1] + 1 == min(description.pictures, (number + 1) * description.shard):
                empty = torch.empty(0, *description.shape, dtype=kind)
                write_shard(
                    shard_file(out, number),
                    torch.cat([empty, *moments]),
                    torch.cat([torch.empty(0, dtype=torch.long), *labels]),
                )
                moments, labels = [], []
    work.seconds = time.monotonic() - started
    return work


def _parts(places: range, size: int) -> list[range]:
    return [places[i : i + size] for i in range(0, len(places), size)]


def _ahead(
    reader: ThreadPoolExecutor, dataset: Dataset, chunks: list[tuple[int, range]], work: Work
) -> Iterator[Batch]:
    """The batches in order, the next `AHEAD` being read meanwhile."""
    queue: deque[Future[Batch]] = deque()
    left = iter(chunks)
    for _ in chunks:
        while len(queue) <= AHEAD and (chunk := next(left, None)) is not None:
            queue.append(reader.submit(dataset.fetch_readable, torch.tensor(chunk[1])))
        before = time.monotonic()
        batch = queue.popleft().result()
        work.waiting += time.monotonic() - before
        yield batch
