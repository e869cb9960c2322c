"""Pictures to statistics: batch by batch, on several processes, and from where an interrupted run stopped.

Work is cut into blocks of pictures that belong to one process each. A process keeps the sums of the blocks that it has
done, and writes them to a file of its own now and then; whoever finds all blocks done adds all files up.
"""

import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from ditlab.data import Dataset
from ditlab.data.samples import BLOCK, shared_array
from ditlab.errors import InputError
from ditlab.evaluation.features import Features
from ditlab.evaluation.statistics import Statistics, Totals
from ditlab.files import replacing
from ditlab.sampling import progress_bar, watch

SAVE_EVERY = 30.0  # seconds
LEFT = -1  # in place of the count of a block that is not done

Rows = NDArray[np.float32]


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
    check_fit(pictures, features)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    chosen = np.linspace(0, count - 1, min(keep, count)).round().astype(int)  # numbers of the pictures that are kept
    rows = kept_rows(folder, (len(chosen), features.dimension)) if keep else None
    starts = range(0, count, BLOCK)
    journal = Journal(folder, rank, len(starts))
    mine = [block for block in range(rank, len(starts), world) if journal.known[block] == LEFT]
    labelled = features.reads is not None and features.reads == pictures.classes
    with progress_bar(console) as progress:
        left = sum(min(BLOCK, count - starts[block]) for block in mine)
        moved = watch(pictures, progress, what, count if world == 1 else left, left)
        for block in mine:
            start = starts[block]
            fetch = pictures.fetch if whole else pictures.fetch_readable
            batch = fetch(torch.arange(start, min(count, start + BLOCK)))
            for part in torch.split(torch.arange(len(batch.labels)), batch_size):
                extracted = features(batch.images[part])
                journal.totals.add(start + part, extracted, batch.labels[part] if labelled else None)
                if rows is not None:
                    first, last = np.searchsorted(chosen, [start + int(part[0]), start + int(part[-1]) + 1])
                    rows[first:last] = extracted.features.numpy()[chosen[first:last] - start - int(part[0])]
            moved(min(BLOCK, count - start))
            journal.tick(block, len(batch.labels), rows)
    found = journal.finish(rows)
    if found is None:
        return None
    totals, counts = found
    if rows is not None and counts.sum() < count:  # unreadable pictures leave gaps at the ends of blocks
        rows = rows[chosen % BLOCK < counts[chosen // BLOCK]]
    return Gathered(totals.statistics(features.name, rows), int(counts.sum()))


def kept_rows(folder: Path | None, shape: tuple[int, int]) -> Rows:
    """Room for features, on disk if there is a folder."""
    if folder is None:
        return np.zeros(shape, np.float32)
    rows: Rows = shared_array(folder / "features.f32", shape, "f4")
    return rows


class Journal:
    """The sums of this process and the count of pictures of each block in them, in a file from time to time."""

    def __init__(self, folder: Path | None, rank: int, blocks: int) -> None:
        self.folder, self.blocks, self.saved = folder, blocks, time.monotonic()
        self.totals, self.mine, self.known = Totals(), *(np.full(blocks, LEFT) for _ in range(2))
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
        if isinstance(rows, np.memmap):
            rows.flush()
        arrays: dict[str, Any] = {"blocks": self.mine, **self.totals.arrays()}
        with replacing(self.file) as draft, draft.open("wb") as opened:
            np.savez(opened, **arrays)
            opened.flush()
            os.fsync(opened.fileno())
        self.saved = time.monotonic()

    def read(self, folder: Path) -> tuple[Totals, NDArray[np.int64]]:
        """The sums of all files, and the counts of the blocks in them.

        A file that is torn, or has blocks that another one has too, does not count: its blocks are done again.
        """
        found = []
        for file in sorted(folder.glob("sums-*.npz")):
            try:
                with np.load(file) as opened:
                    arrays = {name: opened[name] for name in opened.files}
                found.append((arrays.pop("blocks"), Totals.from_arrays(arrays)))
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
                continue  # another process may also have finished, and taken it away
        totals, counts = Totals(), np.full(self.blocks, LEFT)
        for blocks, sums in sorted(found, key=lambda each: -(each[0] != LEFT).sum()):
            if len(blocks) != self.blocks:
                raise InputError(f"{folder} holds sums of another count; remove it and give the command again")
            if not ((blocks != LEFT) & (counts != LEFT)).any():
                counts = np.maximum(counts, blocks)
                totals.merge(sums)
        return totals, counts

    def finish(self, rows: Rows | None) -> tuple[Totals, NDArray[np.int64]] | None:
        """The sums of everything, or None if other processes still work."""
        if self.folder is None:
            return self.totals, self.mine
        if (self.mine != LEFT).any():
            self.save(rows)
        totals, counts = self.read(self.folder)
        return None if (counts == LEFT).any() else (totals, counts)


def check_fit(pictures: Dataset, features: Features) -> None:
    """Refuse pictures that the features cannot take."""
    if features.channels not in (None, pictures.channels):
        raise InputError(
            f"pictures of {pictures.channels} channels; the features {features.name} take {features.channels}"
        )
    if features.size not in (None, tuple(pictures.size)):
        raise InputError(f"pictures of {pictures.size}; the features {features.name} take {features.size}")
