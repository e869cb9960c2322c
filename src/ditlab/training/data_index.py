"""The images that a run was trained on, in `images.npz` of the run folder, and whether they are still the same.

A start costs a look at each file (its size and time) and no reading. Hashes, which decide after a copy or a checkout
that changes the times only, are kept for data of up to `HASHED_IMAGES` images and `HASHED_BYTES`; reading these takes
about a second. With larger data, a run asks before it resumes on images with other times.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from ditlab.core.spelling import all_nfc, nfc
from ditlab.data import Dataset
from ditlab.data.identity import Changes, Stamps, compare

FILE = "images.npz"
HASHED_IMAGES, HASHED_BYTES = 10_000, 256 * 2**20


@dataclass(frozen=True)
class DataIndex:
    """The present images of a data set, compared with those that a run folder lists."""

    dataset: Dataset
    stamps: Stamps
    """The present images, with the hashes that are known or affordable."""
    changes: Changes | None
    """What has changed since the run was started or last resumed; None if the folder has no list."""
    saved: Stamps | None = None
    """The list in the folder."""

    @classmethod
    def of(cls, folder: Path, dataset: Dataset) -> Self:
        """Compare a data set with the list in a run folder."""
        present = replace(dataset.stamps(), classes=all_nfc(dataset.classes))
        before = Stamps.load(folder / FILE)
        if before is None:
            return cls(dataset, present, None)
        changes, present = compare(before, present, dataset.content_hash)
        repaired = {nfc(name) for name in dataset.reported}  # nothing was trained on images that could not be read
        return cls(dataset, present, changes.without(repaired), before)

    def save(self, folder: Path) -> None:
        """Write the list of the present images into a run folder."""
        stamps = self.stamps
        if len(stamps) <= HASHED_IMAGES and stamps.sizes.sum() <= HASHED_BYTES:
            stamps = stamps.hashed(np.arange(len(stamps)), self.dataset.content_hash)
        if self.saved is None or not stamps.equal(self.saved):
            stamps.save(folder / FILE)
