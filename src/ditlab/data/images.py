"""A data set of image files: images are decoded and resized when they are read, and unreadable ones are replaced."""

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.io import replacing
from ditlab.core.types import Batch
from ditlab.core.units import counted, none_can
from ditlab.data.base import Dataset, spread
from ditlab.data.buckets import Buckets
from ditlab.data.check import UnreadableImagesError, check_images, require
from ditlab.data.export import folder_names
from ditlab.data.identity import Stamps, content_hash, read_stamps
from ditlab.data.kept import KeptSizes
from ditlab.data.preprocess import Preprocess
from ditlab.data.ranges import CHECKED, find_values, given_range, is_given, sampled, summary
from ditlab.data.scan import scan, with_progress
from ditlab.data.sources import Raster, Source, Unreadable
from ditlab.data.sources.base import unreadable

PREPROCESSING = ("size", "fit", "flip", "background", "channels")
"""Settings of `Preprocess` that `Dataset.preprocessing` records."""
NATIVE = "native"  # their size, if images keep their aspect ratio


class Images(Dataset):
    """The images of a source, of one size, channel count and type.

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
        range: str = "",
        show: tuple[int, ...] = (),
    ) -> None:
        """Read the headers of all images and, if their type needs it, the range of their numbers.

        Args:
            source: where the images come from.
            preprocess: how they are brought to one size. Without it, or without its size, all must have the same size.
                Its channels, unless they are set, and its values are those of the data.
            report: CSV file with names and reasons of skipped images; created when the first image is skipped.
            max_skipped: largest share of the images that may be skipped. One image may be skipped even if its share is
                larger, unless this is 0.
            range: the numbers that become black and white; see `ditlab.data.ranges.find_values`.
            show: numbers of the channels that are displayed, from 1.

        Raises:
            InputError: no image can be read, or the images differ in size, channels or type.
        """
        self.source, self.report, self.max_skipped = source, report, max_skipped
        self.skipped: dict[str, str] = {}
        self.reported: set[str] = read_names(report)
        self.lock = Lock()
        self.pool = ThreadPoolExecutor()  # decoding releases the interpreter lock
        preprocess = preprocess or Preprocess(None)
        self.flip, native = preprocess.flip, preprocess.native
        self.classes = source.classes
        self.labels = torch.cat([source.labels] * (2 if self.flip else 1))
        same = preprocess.size is None and native is None
        found = scan(source, self.pool, preprocess.channels, same_size=same, sizes=native is not None)
        if range and len(found.types) > 1 and found.dtype == "uint8":
            raise InputError(
                f"range is {range}, but the images have different types ({', '.join(sorted(found.types))}); convert "
                "them to one type, or remove the range"
            )
        assert found.size is not None
        self.without_header = found.broken
        self.size, self.channels = preprocess.size or found.size, found.channels(preprocess.channels)
        self.kept = KeptSizes(None if native is None else Buckets.nearest(found.sizes, native), len(source))
        self._divide(self.kept.buckets)
        self.pages = preprocess.channels or 1
        self.preprocess = replace(preprocess, channels=self.channels)
        self.values = find_values(found.dtype, self.channels, range, show, lambda: self._numbers(found.dtype))
        self.preprocess = replace(self.preprocess, values=self.values)
        self.preprocessing = self._recorded() if preprocess != Preprocess(None) or not self.values.eight_bits else {}
        self.preprocessing |= source.division
        notes = [*source.reading.notes, *found.notes(), *([] if self.buckets is None else self.buckets.notes())]
        if not self.values.eight_bits:
            notes.append(
                given_range(self.values, len(source), lambda: self._numbers(found.dtype, CHECKED))
                if is_given(range)
                else summary(self.values, len(sampled(len(source))), len(source))
            )
        self.reading = replace(source.reading, notes=notes)

    def _divide(self, buckets: Buckets | None) -> None:
        """Give the images and their mirrored copies the sizes of their buckets, if there are several."""
        if buckets is not None:
            self.buckets = buckets.mirrored() if self.flip else buckets
            self.size = buckets.sizes[buckets.frequent]

    def _recorded(self) -> dict[str, Any]:
        """How the images are converted, for the files of what is made of them."""
        settings = asdict(self.preprocess)
        recorded = {key: settings[key] for key in PREPROCESSING} | {"size": list(self.size)}
        if self.preprocess.native is not None:
            recorded |= {"size": NATIVE, **asdict(self.preprocess.native)}
        return recorded if self.values.eight_bits else recorded | {"values": self.values.describe()}

    def _numbers(self, dtype: str, most: int | None = None) -> Iterator[NDArray[Any]]:
        """The numbers (H, W, C) of up to `most` images, from which the range is found."""
        indices = sampled(len(self.source), most).tolist()
        unsized = replace(self.preprocess, size=None, values=replace(self.values, dtype=dtype))

        def read(position: int) -> Raster | str:
            try:
                with self.source.decoded(indices[position], pages=self.pages) as image:
                    return unsized(image)
            except Unreadable as error:
                return str(error)

        results = spread(self.pool, read, len(indices), chunk=64)
        reason = ""
        readable = 0
        for position, result in enumerate(with_progress(results, len(indices), "finding the range")):
            if isinstance(result, str):
                reason = reason or f"{self.source.name(indices[position])}: {result}"
                continue
            readable += 1
            yield result
        if not readable:
            raise InputError(f"no image can be read to find the range of its numbers ({reason}); check the files")

    def fetch(self, indices: Tensor) -> Batch:
        pairs = list(self.pool.map(self._readable_from, indices.tolist()))
        return self._batch([array for _, array in pairs], torch.tensor([index for index, _ in pairs]))

    def fetch_readable(self, indices: Tensor) -> Batch:
        arrays = list(self.pool.map(self._read, indices.tolist()))
        readable = torch.tensor([array is not None for array in arrays])
        return self._batch([array for array in arrays if array is not None], indices[readable])

    def captions(self, i: int) -> tuple[str, ...]:
        return self.source.captions(i % len(self.source))

    def stamps(self) -> Stamps:
        return read_stamps(self.source.stamp, self.source.labels.numpy(), self.pool)

    def content_hash(self, i: int) -> int:
        with suppress(Unreadable), unreadable():
            return content_hash(self.source.content(i))
        return content_hash(b"")  # an image that cannot be read has no content

    def _batch(self, arrays: list[Raster], indices: Tensor) -> Batch:
        empty = np.empty((0, *self.size, self.channels), np.uint8)
        if len({array.shape for array in arrays}) > 1:
            raise InputError("the images have several sizes (data.size is native), and here they must have one; set it")
        stacked = torch.from_numpy(np.stack(arrays) if arrays else empty).permute(0, 3, 1, 2).contiguous()
        x = stacked if self.values.eight_bits else self.values.normalized(stacked)
        return Batch(x, self.condition(indices), index=indices)

    def _readable_from(self, i: int) -> tuple[int, Raster]:
        """Index and pixels of the first readable image, starting at index i."""
        alike = Buckets.alike(self.buckets, i, len(self))  # of the same size, so that they fit into the batch
        for index in alike:
            array = self._read(index)
            if array is not None:
                return index, array
        raise InputError(f"{none_can(len(self.source), 'image')} be read")

    def _read(self, index: int) -> Raster | None:
        array = self.kept.get(index % len(self.source), self._decode)
        return array if array is None or index < len(self.source) else np.ascontiguousarray(array[:, ::-1])

    def _decode(self, i: int) -> Raster | None:
        size, preprocess = self.size, self.preprocess
        if self.buckets is not None:
            size = self.buckets.size_of(i)
            height, width = size
            preprocess = replace(preprocess, size=(height, width))
        try:
            with self.source.decoded(i, pages=self.pages) as image:
                array = preprocess(image)
            if array.shape != (*size, self.channels):  # the file was changed, or its header is wrong
                raise Unreadable("{}x{} pixels with {}".format(*array.shape[:2], counted(array.shape[2], "channel")))
        except Unreadable as error:
            self._skip(self.source.name(i), str(error))
            return None
        return array

    def readable(self, index: int) -> bool:
        """Whether an image can be read; `skipped` then lists it, even beyond the allowed share."""
        try:
            return self._read(index) is not None
        except UnreadableImagesError:
            return False

    def relist(self) -> set[str]:
        """Restart the report with the images that this data set could not read; returns the names that it listed."""
        names, self.reported = self.reported, set(self.skipped)
        if self.report is not None:
            self.report.unlink(missing_ok=True)
            for name, reason in self.skipped.items():
                append_report(self.report, name, reason)
        return names

    def check(self, console: Console, *, resumed: bool) -> None:
        check_images(self, console, resumed=resumed)

    def _skip(self, name: str, reason: str) -> None:
        with self.lock:
            if name in self.skipped:
                return
            self.skipped[name] = reason
            if self.report is not None and name not in self.reported:
                append_report(self.report, name, reason)
                self.reported.add(name)
        require(self)


def read_names(file: Path | None) -> set[str]:
    """Names in a report that an earlier part of the same run wrote."""
    if file is None or not file.exists():
        return set()
    with interpreting(file, "remove it"), file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return {row["name"] for row in csv.DictReader(opened)}


def append_report(file: Path, name: str, reason: str) -> None:
    """Append the name of a skipped image and the reason to a CSV file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        if opened.tell() == 0:
            writer.writerow(["name", "reason"])
        writer.writerow([name, reason])


def write_folder(dataset: Dataset, folder: Path, count: int) -> int:
    """Write the first `count` images as PNG files, or as `.npy` what those cannot hold; a folder for each class.

    The folder is written completely or not at all. Images that cannot be read are left out, and the others are numbered
    in order.

    Returns:
        The number of images that were written.

    Raises:
        InputError: there is none.
    """
    with replacing(folder.resolve()) as draft:
        written = write_images(dataset, draft, count)
        if count and not written:
            name, reason = next(iter(dataset.skipped.items()))
            raise InputError(f"{none_can(len(dataset), 'image')} be read: {name} ({reason}); check the files")
    return written


def write_images(dataset: Dataset, folder: Path, count: int) -> int:
    """Write the images of `write_folder` one after another; returns their number."""
    folders, written = folder_names(dataset.classes) or [""], 0
    folder.mkdir()
    for part in torch.split(torch.arange(min(count, len(dataset))), 256):
        batch = dataset.fetch_readable(part)
        labels = batch.labels.tolist() if dataset.classes else [0] * len(batch)
        for i, image, label in zip(range(written, written + len(batch)), batch.x, labels, strict=True):
            class_folder = folder / folders[label]
            class_folder.mkdir(parents=True, exist_ok=True)
            array = dataset.values.restored(image[None])[0].permute(1, 2, 0).numpy()
            plain = dataset.values.eight_bits and array.shape[2] in (1, 3, 4)
            with (class_folder / f"{i:06d}.{'png' if plain else 'npy'}").open("wb") as file:
                if plain:
                    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, format="PNG")
                else:
                    np.save(file, array)
        written += len(batch)
    return written
