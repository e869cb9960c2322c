"""Divide the images of a source into a training part and a held-out part.

A hash of the name of an image decides its part. The division depends neither on the machine nor on the order of the
images, and it stays the same for all images when others are added.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.data.decode import Raster
from ditlab.data.identity import Stamp
from ditlab.data.sources.base import ClipFile, Column, Source, Texts

TRAIN, HELD_OUT = "train", "val"
"""Names of the two parts."""


class Part(Source):
    """Some images of another source."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        """The images with these indices (n,)."""
        self.source, self.indices, self.reading = source, indices, source.reading
        self.columns = {name: _taken(column, indices) for name, column in source.columns.items()}
        self.min_side, self.max_pixels, self.channels = source.min_side, source.max_pixels, source.channels

    def name(self, i: int) -> str:
        return self.source.name(int(self.indices[i]))

    def raw(self, i: int) -> Image.Image | Raster:
        return self.source.raw(int(self.indices[i]))

    def stamp(self, i: int) -> Stamp:
        return self.source.stamp(int(self.indices[i]))

    def key(self, i: int) -> str:
        return self.source.key(int(self.indices[i]))

    def content(self, i: int) -> bytes:
        return self.source.content(int(self.indices[i]))

    @property
    def nearby(self) -> int:
        return int(np.searchsorted(self.indices, self.source.nearby))

    def fetched_files(self, mixed: int) -> Tensor | None:
        files = self.source.fetched_files(mixed)
        return None if files is None else files[torch.from_numpy(self.indices)]

    def expect(self, indices: Sequence[int]) -> None:
        self.source.expect(self.indices[list(indices)].tolist())

    def file(self, i: int) -> ClipFile:
        return self.source.file(int(self.indices[i]))


class PartTexts(Texts):
    """Some texts of others."""

    def __init__(self, texts: Texts, indices: NDArray[np.int64]) -> None:
        """The texts with these indices (n,)."""
        self.texts, self.indices = texts, indices

    def __len__(self) -> int:
        return len(self.indices)

    def state(self, i: int) -> str:
        return self.texts.state(int(self.indices[i]))

    def text(self, i: int) -> Any:
        return self.texts.text(int(self.indices[i]))


def divide(source: Source, share: float, part: str, where: str) -> Part:
    """The training part or the held-out part of a source.

    Args:
        source: all images.
        share: share of the images of each class that are held out.
        part: `TRAIN` or `HELD_OUT`.
        where: the name of the source, for messages.

    Raises:
        InputError: no image is held out.
    """
    names = (source.key(i).encode("utf-8", "surrogateescape") for i in range(len(source)))
    hashes = (int.from_bytes(blake2b(name, digest_size=8).digest(), "big") for name in names)
    places = np.fromiter(hashes, np.uint64, len(source)) / 2.0**64
    held_out = held_out_indices(places, source.labels.numpy(), share)
    if not len(held_out):
        raise InputError(
            f"held_out is {share:g}, which holds out none of {counted(len(source), 'image')} of {where}; give a "
            "greater share, or more images of a class"
        )
    training = np.setdiff1d(np.arange(len(source)), held_out)
    result = Part(source, held_out if part == HELD_OUT else training)
    result.parts, result.division = (TRAIN, HELD_OUT), {"held_out": share, "split": part}
    count = f"{len(held_out):,} of {counted(len(source), 'image')}"
    described = {TRAIN: f"{count} held out, as {HELD_OUT}", HELD_OUT: f"{count}; the others are {TRAIN}"}
    result.reading.split = f"{part} ({described[part]})"
    return result


def held_out_indices(places: NDArray[np.float64], labels: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """The indices of the held-out images, in order.

    Those are held out whose place is below the share. Each class keeps an image for training; a class in which at least
    one image is expected to be held out has one.

    Args:
        places: (N,) numbers in 0..1, one for each image, which do not depend on the other images.
        labels: (N,) the classes.
        share: share of the images that are held out.
    """
    order = np.lexsort((places, labels))
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    chosen = []
    for group in groups:  # the images of a class by their places
        least, most = int(share * len(group) >= 1), len(group) - 1
        chosen.append(group[: min(max(int((places[group] < share).sum()), least), most)])
    return np.sort(np.concatenate(chosen))


def _taken(column: Column, indices: NDArray[np.int64]) -> Column:
    """Some values of a column; texts that are not in memory are not read."""
    values = column.values
    if isinstance(values, Tensor):
        return Column(values[torch.from_numpy(indices)], column.classes)
    if isinstance(values, Texts):
        return Column(PartTexts(values, indices), column.classes)
    return Column([values[i] for i in indices.tolist()], column.classes)
