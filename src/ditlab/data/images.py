"""A data set of image files: images are decoded and resized when they are read, and unreadable ones are replaced."""

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data.base import Dataset, spread
from ditlab.data.identity import Stamps, content_hash, scan
from ditlab.data.preprocess import Preprocess, as_array, to_rgb
from ditlab.data.sources import Source, Unreadable

Array = NDArray[np.uint8]
SIDES_SWAPPED_FROM = 5  # EXIF orientations from here on exchange height and width
ORIENTATION = 0x0112  # EXIF tag


class Images(Dataset):
    """The images of a source, resized to one size.

    With `preprocess.flip` there are 2 N images: image i + N is image i mirrored. If an image cannot be read, the next
    readable image takes its place in the batch, and `skipped` lists its name.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess | None = None,
        *,
        report: Path | None = None,
        max_skipped: float = 0.05,
    ) -> None:
        """Without `preprocess`, all images of the source must already have the same size.

        Args:
            source: where the images come from.
            preprocess: how they are brought to one size.
            report: CSV file with names and reasons of skipped images; created when the first image is skipped.
            max_skipped: largest share of the images that may be skipped. One image may be skipped even if its share is
                larger, unless this is 0.

        Raises:
            InputError: there is no `preprocess`, and the images differ in size.
        """
        self.source, self.report, self.max_skipped = source, report, max_skipped
        self.skipped: dict[str, str] = {}
        self.reported = read_names(report)
        self.lock = Lock()
        self.pool = ThreadPoolExecutor()  # decoding releases the interpreter lock
        self.flip = preprocess is not None and preprocess.flip
        self.classes = source.classes
        self.labels = torch.cat([source.labels] * (2 if self.flip else 1))
        self.make: Callable[[int], Array]
        self.size: tuple[int, int]
        if preprocess is None:
            self.size, self.channels = self._common_shape()
            self.make = self._unchanged
        else:
            self.size, self.channels = preprocess.size, preprocess.channels
            self.preprocessing = asdict(preprocess) | {"size": list(preprocess.size)}
            self.make = lambda i: preprocess(source.read(i))

    def fetch(self, indices: Tensor) -> Batch:
        pairs = list(self.pool.map(self._readable_from, indices.tolist()))
        return self._batch([array for _, array in pairs], torch.tensor([index for index, _ in pairs]))

    def fetch_readable(self, indices: Tensor) -> Batch:
        arrays = list(self.pool.map(self._read, indices.tolist()))
        readable = torch.tensor([array is not None for array in arrays])
        return self._batch([array for array in arrays if array is not None], indices[readable])

    def stamps(self) -> Stamps:
        return scan(self.source.stamp, self.source.labels.numpy(), self.pool)

    def content_hash(self, i: int) -> int:
        try:
            return content_hash(self.source.content(i))
        except Exception:  # as `Source.read`: an image that cannot be read has no content
            return content_hash(b"")

    def _batch(self, arrays: list[Array], indices: Tensor) -> Batch:
        empty = np.empty((0, *self.size, self.channels), np.uint8)
        stacked = torch.from_numpy(np.stack(arrays) if arrays else empty)
        return Batch(stacked.permute(0, 3, 1, 2).contiguous(), self.condition(indices))

    def _readable_from(self, i: int) -> tuple[int, Array]:
        """Index and pixels of the first readable image, starting at index i."""
        for step in range(len(self)):
            array = self._read(index := (i + step) % len(self))
            if array is not None:
                return index, array
        raise InputError(f"none of the {len(self.source)} images can be read")

    def _read(self, index: int) -> Array | None:
        i = index % len(self.source)
        try:
            array = self.make(i)
        except Unreadable as error:
            self._skip(self.source.name(i), str(error))
            return None
        return np.ascontiguousarray(array[:, ::-1]) if index >= len(self.source) else array

    def _skip(self, name: str, reason: str) -> None:
        with self.lock:
            if name in self.skipped:
                return
            self.skipped[name] = reason
            count, total = len(self.skipped), len(self.source)
            if self.report is not None and name not in self.reported:
                append_report(self.report, name, reason)
                self.reported.add(name)
        if count > max(1, self.max_skipped * total) or not self.max_skipped:
            raise InputError(
                f"{count} of {total} images cannot be read, the last one is {name} ({reason}); repair them, or allow "
                f"a greater share than {self.max_skipped} (max_skipped); it is {count / total:.3g} so far"
            )

    def _unchanged(self, i: int) -> Array:
        array = as_array(to_rgb(self.source.read(i)), self.channels)
        if array.shape[:2] != self.size:
            raise Unreadable(f"{array.shape[0]}x{array.shape[1]}, not {self.size[0]}x{self.size[1]}")
        return array

    def _common_shape(self) -> tuple[tuple[int, int], int]:
        """(height, width) of all images, and their channels: 1 if all are gray, else 3. Only headers are read."""
        first: tuple[str, tuple[int, int]] | None = None
        gray = True
        for i, header in enumerate(spread(self.pool, self._header, len(self.source))):
            if header is None:
                continue
            size, is_gray = header
            gray = gray and is_gray
            first = first or (self.source.name(i), size)
            if size != first[1]:
                raise InputError(
                    f"{self.source.name(i)} has {size[0]}x{size[1]} pixels (height x width) but {first[0]} has "
                    f"{first[1][0]}x{first[1][1]}; give a size (data.size) to resize all images"
                )
        if first is None:
            raise InputError(f"none of the {len(self.source)} images can be read, beginning with {self.source.name(0)}")
        return first[1], 1 if gray else 3

    def _header(self, i: int) -> tuple[tuple[int, int], bool] | None:
        """(height, width) of an image as it is displayed, and whether it is gray; None if it cannot be read."""
        try:
            with self.source.raw(i) as image:
                swapped = image.getexif().get(ORIENTATION, 1) >= SIDES_SWAPPED_FROM
                size = (image.width, image.height) if swapped else (image.height, image.width)
                return size, image.mode in ("1", "L", "I;16", "I") and not image.has_transparency_data
        except Exception:  # `_read` will skip it and record the reason
            return None


def read_names(file: Path | None) -> set[str]:
    """Names in a report that an earlier part of the same run wrote."""
    if file is None or not file.exists():
        return set()
    with file.open(newline="", encoding="utf-8") as opened:
        return {row["name"] for row in csv.DictReader(opened)}


def append_report(file: Path, name: str, reason: str) -> None:
    """Append the name of a skipped image and the reason to a CSV file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        if opened.tell() == 0:
            writer.writerow(["name", "reason"])
        writer.writerow([name, reason])


def write_folder(dataset: Dataset, folder: Path, count: int) -> None:
    """Write the first `count` images as PNG files, one sub-folder for each class."""
    for part in torch.split(torch.arange(min(count, len(dataset))), 256):
        batch = dataset.fetch(part)
        for i, image, label in zip(part.tolist(), batch.x, dataset.labels[part].tolist(), strict=True):
            class_folder = folder / (dataset.classes[label] if dataset.classes else "")
            class_folder.mkdir(parents=True, exist_ok=True)
            array = image.permute(1, 2, 0).numpy()
            Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(class_folder / f"{i:06d}.png")
