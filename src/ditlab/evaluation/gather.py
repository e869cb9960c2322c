"""Pictures to statistics: batch by batch, on several processes, and from where an interrupted run stopped.

Work is cut into blocks of pictures that belong to one process each. A process keeps the sums of the blocks that it has
done, and writes them to a file of its own now and then; whoever finds all blocks done adds all files up.
"""

import os
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
from ditlab.core.io import replacing
from ditlab.core.progress import progress_bar
from ditlab.data import Dataset
from ditlab.data.npz import BLOCK
from ditlab.data.rows import RowFile, row_file
from ditlab.evaluation.features import Extracted, Features
from ditlab.evaluation.statistics import Kept, Statistics, Sums, Totals
from ditlab.inference.samples import watch

SAVE_EVERY = 30.0  # seconds
LEFT = -1  # in place of the count of a block that is not done
FEATURES = "features.f32"

S = TypeVar("S", bound=Sums)


@dataclass(frozen=True)
class Gathered:
    """What was gathered."""

    statistics: Statistics
    count: int  # pictures that could be read


def gather(
    pictures: Dataset,
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
    """Statistics of the first `count` pictures.

    Args:
        pictures: a data set; a model's pictures are drawn now.
        count: how many.
        features: the network.
        console: where progress is shown.
        keep: how many of the features themselves to keep, spread evenly over the pictures; in a file if there is a
            folder.
        whole: put the next readable picture in the place of one that is not, so that numbers stay what they are.
        batch_size: pictures given to the features at a time.
        what: the word beside the progress bar.
        folder: where an interrupted run is taken up again; None keeps nothing.
        rank, world: number of this process, and of all.

    Returns:
        None if other processes still work.

    Raises:
        InputError: pictures that do not suit the features, or features that are not finite.
    """
    kept = Rows(folder, spread_evenly(count, keep), features.dimension) if keep else None
    passed = pass_through(
        pictures, count, features, Totals, console, kept=kept, whole=whole, batch_size=batch_size, what=what,
        folder=folder, rank=rank, world=world,
    )  # fmt: skip
    if passed is None:
        return None
    totals, counts = passed
    found = totals.statistics(features.name, None if kept is None else kept.of(counts))
    return Gathered(found, int(counts.sum()))


def pass_through(
    pictures: Dataset,
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
    """Any sums of the first `count` pictures, and how many pictures of each block could be read.

    Sums take in a block at a time, whatever the batch size. Arguments as in `gather`, but for:

    Args:
        make: sums of nothing.
        kept: where features themselves are kept.

    Returns:
        None if other processes still work.
    """
    check_fit(pictures, features)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, BLOCK)
    journal = Journal(folder, rank, len(starts), make)
    mine = [block for block in range(rank, len(starts), world) if journal.known[block] == LEFT]
    labelled = features.reads is not None and features.reads == pictures.classes
    with progress_bar(console) as progress:
        left = sum(min(BLOCK, count - starts[block]) for block in mine)
        moved = watch(pictures, progress, what, count if world == 1 else left, left)
        for block in mine:
            start = starts[block]
            fetch = pictures.fetch if whole else pictures.fetch_readable
            batch = fetch(torch.arange(start, min(count, start + BLOCK)))
            if len(batch.labels):
                numbers = start + torch.arange(len(batch.labels))
                extracted = joined([features(part) for part in torch.split(batch.x, batch_size)])
                check_finite(extracted, numbers)
                journal.sums.add(numbers, extracted, batch.labels if labelled else None)
                if kept is not None:
                    kept.keep(start, extracted.features)
            moved(min(BLOCK, count - start))
            journal.tick(block, len(batch.labels), kept)
    return journal.finish(kept)


def joined(parts: list[Extracted]) -> Extracted:
    """What was extracted of consecutive pictures, as one."""

    def of(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return Extracted(torch.cat([part.features for part in parts]), of("spatial"), of("probabilities"))


def check_finite(extracted: Extracted, numbers: Tensor) -> None:
    """Refuse features that are not numbers, and name the first such picture."""
    for values in (extracted.features, extracted.spatial):
        if values is not None and not values.isfinite().all():
            bad = int(numbers[~values.isfinite().all(1)][0])
            raise InputError(f"the features of picture {bad} hold NaN or infinity; look at that picture")


def spread_evenly(total: int, count: int) -> NDArray[np.int64]:
    """So many of the numbers 0 to total - 1, or all."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


class Rows:
    """Features of chosen pictures, in a file if there is a folder."""

    def __init__(self, folder: Path | None, chosen: NDArray[np.int64], dimension: int) -> None:
        self.chosen, shape = chosen, (len(chosen), dimension)
        self.values: Kept
        if folder is None:
            self.values = np.zeros(shape, np.float32)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.values = row_file(folder / FEATURES, shape, np.float32)

    def keep(self, start: int, features: Tensor) -> None:
        """Take the chosen ones of consecutive features (n, D), whose first has the number `start`."""
        first, last = np.searchsorted(self.chosen, [start, start + len(features)])
        values = features.numpy()[self.chosen[first:last] - start]
        if isinstance(self.values, RowFile):
            self.values.write(int(first), values)
        else:
            self.values[first:last] = values

    def flush(self) -> None:
        """Wait until they are on the disk."""
        if isinstance(self.values, RowFile):
            self.values.flush()

    def of(self, counts: NDArray[np.int64]) -> Kept:
        """Those that are there, where blocks have so many pictures: unreadable ones leave gaps at their ends."""
        there = self.chosen % BLOCK < counts[self.chosen // BLOCK]
        if there.all():
            return self.values
        return self.values.only(there) if isinstance(self.values, RowFile) else self.values[there]


class Journal(Generic[S]):
    """The sums of this process and the count of pictures of each block in them, in a file from time to time."""

    def __init__(self, folder: Path | None, rank: int, blocks: int, make: Callable[[], S]) -> None:
        self.folder, self.blocks, self.make, self.saved = folder, blocks, make, time.monotonic()
        self.sums, self.mine, self.known = make(), *(np.full(blocks, LEFT) for _ in range(2))
        if folder is not None:
            _, self.known = self.read(folder)
            self.file = folder / f"sums-{rank}-{len(list(folder.glob(f'sums-{rank}-*.npz')))}.npz"

    def tick(self, block: int, count: int, rows: Rows | None) -> None:
        """A block is done."""
        self.mine[block] = count
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save(rows)

    def save(self, rows: Rows | None) -> None:
        """Write the sums; the features that belong to them first."""
        if self.folder is None:
            return
        if rows is not None:
            rows.flush()
        arrays: dict[str, Any] = {"blocks": self.mine, **self.sums.arrays()}
        with replacing(self.file) as draft, draft.open("wb") as opened:
            np.savez(opened, **arrays)
            opened.flush()
            os.fsync(opened.fileno())
        self.saved = time.monotonic()

    def read(self, folder: Path) -> tuple[S, NDArray[np.int64]]:
        """The sums of all files, and the counts of the blocks in them.

        A file that is torn, or has blocks that another one has too, does not count: its blocks are done again.
        """
        found = []
        for file in sorted(folder.glob("sums-*.npz")):
            try:
                with np.load(file) as opened:
                    arrays = {name: opened[name] for name in opened.files}
                blocks, sums = arrays.pop("blocks"), self.make()
                sums.load(arrays)
                found.append((blocks, sums))
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
                continue  # another process may also have finished, and taken it away
        totals, counts = self.make(), np.full(self.blocks, LEFT)
        for blocks, sums in sorted(found, key=lambda each: -(each[0] != LEFT).sum()):
            if len(blocks) != self.blocks:
                raise InputError(f"{folder} holds sums of another count; remove it and give the command again")
            if not ((blocks != LEFT) & (counts != LEFT)).any():
                counts = np.maximum(counts, blocks)
                totals.merge(sums)
        return totals, counts

    def finish(self, rows: Rows | None) -> tuple[S, NDArray[np.int64]] | None:
        """The sums of everything, or None if other processes still work."""
        if self.folder is None:
            return self.sums, self.mine
        if (self.mine != LEFT).any():
            self.save(rows)
        totals, counts = self.read(self.folder)
        return None if (counts == LEFT).any() else (totals, counts)


def forget(folder: Path) -> None:
    """Take away what was kept to go on with; another process may have finished, and do so, at the same time."""
    for file in (*folder.glob("sums-*.npz"), folder / FEATURES):
        file.unlink(missing_ok=True)


def check_fit(pictures: Dataset, features: Features) -> None:
    """Refuse pictures that the features cannot take."""
    if features.channels not in (None, pictures.channels):
        raise InputError(
            f"pictures of {pictures.channels} channels; the features {features.name} take {features.channels}"
        )
    if features.size not in (None, tuple(pictures.size)):
        raise InputError(f"pictures of {pictures.size}; the features {features.name} take {features.size}")
