"""Gather statistics of images batch by batch, on several processes, resumable after an interruption.

Images are divided into blocks, and each block belongs to one process. A process sums over its finished blocks, and
writes the sums to its own file every 30 s. The process that finishes last adds the sums of all files.
"""

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.io import discard, replacing
from ditlab.core.progress import progress_bar
from ditlab.core.sizes import check_archive
from ditlab.core.units import counted
from ditlab.data import Dataset
from ditlab.data.npz import BLOCK
from ditlab.data.rows import RowFile, row_file
from ditlab.evaluation.features import Extracted, Features
from ditlab.evaluation.seen import seen_channels
from ditlab.evaluation.statistics import Kept, Statistics, Sums, Totals
from ditlab.inference.samples import watch

SAVE_EVERY = 30.0  # seconds
UNFINISHED = -1  # instead of the image count of an unfinished block
FEATURES = "features.f32"

S = TypeVar("S", bound=Sums)


@dataclass(frozen=True)
class Gathered:
    """Statistics, and the number of images from which they were computed."""

    statistics: Statistics
    count: int  # images that could be read


def gather(
    images: Dataset,
    count: int,
    features: Features,
    console: Console,
    *,
    keep: int = 0,
    whole: bool = False,
    batch_size: int = 64,
    what: str = "scoring",
    folder: Path | None = None,
    rank: int = 0,
    world: int = 1,
) -> Gathered | None:
    """Compute the statistics of the first `count` images.

    Args:
        images: a data set; if they are samples of a model, they are generated now.
        count: number of images.
        features: the feature network.
        console: where progress is shown.
        keep: number of feature vectors to keep, evenly spaced over the images; in a file if there is a folder.
        whole: replace an unreadable image by the next readable one, so that indices do not change.
        batch_size: images that the feature network processes at a time.
        what: label of the progress bar.
        folder: where the state is stored, from which an interrupted call resumes; None stores nothing.
        rank, world: index of this process, and number of processes.

    Returns:
        None if other processes are still at work.

    Raises:
        InputError: the feature network does not support the images, or features are not finite.
    """
    check_fit(images, features)  # before a file of features is created
    kept = Rows(folder, spread_evenly(count, keep), features.dimension) if keep else None
    passed = pass_through(
        images, count, features, Totals, console, kept=kept, whole=whole, batch_size=batch_size, what=what,
        folder=folder, rank=rank, world=world,
    )  # fmt: skip
    if passed is None:
        return None
    totals, counts = passed
    statistics = totals.statistics(features.name, None if kept is None else kept.of(counts))
    return Gathered(statistics, int(counts.sum()))


def pass_through(
    images: Dataset,
    count: int,
    features: Features,
    make: Callable[[], S],
    console: Console,
    *,
    kept: "Rows | None" = None,
    whole: bool = False,
    batch_size: int = 64,
    what: str = "scoring",
    folder: Path | None = None,
    rank: int = 0,
    world: int = 1,
) -> tuple[S, NDArray[np.int64]] | None:
    """Compute any sums over the first `count` images, and the number of readable images in each block.

    Sums add a block at a time, so they do not depend on the batch size. Arguments as in `gather`, except:

    Args:
        make: function that creates empty sums.
        kept: where feature vectors are stored.

    Returns:
        None if other processes are still at work.
    """
    check_fit(images, features)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, BLOCK)
    journal = Journal(folder, rank, len(starts), make)
    own_blocks = [block for block in range(rank, len(starts), world) if journal.finished[block] == UNFINISHED]
    values = images.values
    labeled = features.classes is not None and features.classes == images.classes
    with progress_bar(console) as progress:
        remaining = sum(min(BLOCK, count - starts[block]) for block in own_blocks)
        advance = watch(images, progress, what, count if world == 1 else remaining, remaining)
        for block in own_blocks:
            start = starts[block]
            fetch = images.fetch if whole else images.fetch_readable
            batch = fetch(torch.arange(start, min(count, start + BLOCK)))
            if len(batch):
                numbers = start + torch.arange(len(batch))
                extracted = joined([features(values.displayed(part)) for part in torch.split(batch.x, batch_size)])
                check_finite(extracted, numbers)
                journal.sums.add(numbers, extracted, batch.labels if labeled else None)
                if kept is not None:
                    kept.keep(start, extracted.features)
            advance(min(BLOCK, count - start))
            journal.finish_block(block, len(batch), kept)
    return journal.finish(kept)


def joined(parts: list[Extracted]) -> Extracted:
    """Concatenate the features of consecutive batches."""

    def concatenated(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    features = torch.cat([part.features for part in parts])
    return Extracted(features, concatenated("spatial"), concatenated("probabilities"))


def check_finite(extracted: Extracted, numbers: Tensor) -> None:
    """Check that all features are finite.

    Raises:
        InputError: some are not; the message names the first such image.
    """
    for values in (extracted.features, extracted.spatial):
        if values is not None and not values.isfinite().all():
            bad = int(numbers[~values.isfinite().all(1)][0])
            raise InputError(f"the features of image {bad} hold NaN or infinity; check that image")


def spread_evenly(total: int, count: int) -> NDArray[np.int64]:
    """`count` evenly spaced integers from 0 to total - 1, or all of them if there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


class Rows:
    """Feature vectors of selected images, in a file if there is a folder."""

    def __init__(self, folder: Path | None, selected: NDArray[np.int64], dimension: int) -> None:
        self.selected, shape = selected, (len(selected), dimension)
        self.values: Kept
        if folder is None:
            self.values = np.zeros(shape, np.float32)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.values = row_file(folder / FEATURES, shape, np.float32)

    def keep(self, start: int, features: Tensor) -> None:
        """Store the selected rows of consecutive features (n, D), of which the first row has index `start`."""
        first, last = np.searchsorted(self.selected, [start, start + len(features)])
        values = features.numpy()[self.selected[first:last] - start]
        if isinstance(self.values, RowFile):
            self.values.write(int(first), values)
        else:
            self.values[first:last] = values

    def flush(self) -> None:
        """Wait until all stored features are on the disk."""
        if isinstance(self.values, RowFile):
            self.values.flush()

    def of(self, counts: NDArray[np.int64]) -> Kept:
        """The stored features, without the rows that are empty because images of a block could not be read.

        Args:
            counts: number of readable images in each block.
        """
        stored = self.selected % BLOCK < counts[self.selected // BLOCK]
        if stored.all():
            return self.values
        return self.values.only(stored) if isinstance(self.values, RowFile) else self.values[stored]


class Journal(Generic[S]):
    """The sums of this process and its image count of each block, written to a file from time to time."""

    def __init__(self, folder: Path | None, rank: int, blocks: int, make: Callable[[], S]) -> None:
        self.folder, self.blocks, self.make, self.saved = folder, blocks, make, time.monotonic()
        self.sums = make()
        self.counts, self.finished = (np.full(blocks, UNFINISHED) for _ in range(2))  # of this process, of all
        if folder is not None:
            _, self.finished = self.read(folder)
            self.file = folder / f"sums-{rank}-{len(list(folder.glob(f'sums-{rank}-*.npz')))}.npz"

    def finish_block(self, block: int, count: int, rows: Rows | None) -> None:
        """Record that a block is finished, and write the sums if the last write was long ago."""
        self.counts[block] = count
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save(rows)

    def save(self, rows: Rows | None) -> None:
        """Write the stored features, then the sums."""
        if self.folder is None:
            return
        if rows is not None:
            rows.flush()
        arrays: dict[str, Any] = {"blocks": self.counts, **self.sums.arrays()}
        with replacing(self.file) as draft, draft.open("wb") as opened:
            np.savez(opened, **arrays)
        self.saved = time.monotonic()

    def read(self, folder: Path) -> tuple[S, NDArray[np.int64]]:
        """Add the sums of all files; returns them with the image count of each block.

        A file is ignored, and its blocks are computed again, if it is incomplete or shares a block with another file.
        """
        states = []
        for file in sorted(folder.glob("sums-*.npz")):
            try:
                check_archive(file)
                with np.load(file) as opened:
                    arrays = {name: opened[name] for name in opened.files}
                blocks, sums = arrays.pop("blocks"), self.make()
                sums.load(arrays)
                states.append((blocks, sums))
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
                continue  # incomplete, or removed by another process that has finished
        totals, counts = self.make(), np.full(self.blocks, UNFINISHED)
        for blocks, sums in sorted(states, key=lambda state: -(state[0] != UNFINISHED).sum()):
            if len(blocks) != self.blocks:
                raise InputError(f"{folder} holds sums of another image count; remove it and run the command again")
            if not ((blocks != UNFINISHED) & (counts != UNFINISHED)).any():
                counts = np.maximum(counts, blocks)
                totals.merge(sums)
        return totals, counts

    def finish(self, rows: Rows | None) -> tuple[S, NDArray[np.int64]] | None:
        """The sums of all processes, or None if other processes are still at work."""
        if self.folder is None:
            return self.sums, self.counts
        if (self.counts != UNFINISHED).any():
            self.save(rows)
        totals, counts = self.read(self.folder)
        return None if (counts == UNFINISHED).any() else (totals, counts)


def forget(folder: Path) -> None:
    """Remove the stored state; another process may do so at the same time."""
    for file in (*folder.glob("sums-*.npz"), folder / FEATURES):
        discard(file)


def check_fit(images: Dataset, features: Features, show: tuple[int, ...] = ()) -> None:
    """Check that a feature network supports the channels and the size of images.

    Args:
        images: the images.
        features: the feature network.
        show: numbers of the channels that it will see, if they are not those that the images show.

    Raises:
        InputError: it does not.
    """
    if (len(images.size) == 3) != features.clips:
        what, needs = ("images", "clips") if features.clips else ("videos", "images")
        raise InputError(f"the features {features.name} need {needs}, and these are {what}; choose other features")
    channels, needed = len(show) or seen_channels(images), features.channels
    if needed not in (None, channels):
        seen, need = counted(channels, "channel"), f"the features {features.name} need {needed}"
        if needed is not None and images.channels not in (1, 3) and needed <= images.channels:
            raise InputError(
                f"images that show {seen} of {images.channels}; {need}; choose {counted(needed, 'channel')} with show, "
                "or choose other features"
            )
        raise InputError(f"images of {seen}; {need}; choose other features")
    if features.size not in (None, tuple(images.size)):
        actual, expected = ("x".join(map(str, size or ())) for size in (images.size, features.size))
        raise InputError(
            f"images of {actual}; the features {features.name} need {expected}; give a size, or choose other features"
        )
