"""A data set of image files: images are decoded and resized when they are read, and unreadable ones are replaced."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.io import replace_text, replacing
from ditlab.core.types import Batch
from ditlab.core.units import counted, none_can
from ditlab.core.values import PixelValues
from ditlab.data.base import Dataset, numbered, spread
from ditlab.data.buckets import Buckets
from ditlab.data.export import folder_names
from ditlab.data.file_dataset import FileDataset
from ditlab.data.kept import KeptSizes
from ditlab.data.preprocess import Preprocess
from ditlab.data.ranges import CHECKED, find_values, given_range, is_given, sampled, summary
from ditlab.data.scan import scan, with_progress
from ditlab.data.sources import Raster, Source, Unreadable
from ditlab.report.videos import save_video

PREPROCESSING = ("size", "fit", "flip", "background", "channels")
"""Settings of `Preprocess` that `Dataset.preprocessing` records."""
NATIVE = "native"  # their size, if images keep their aspect ratio


class Images(FileDataset):
    """The images of a source, of one size, channel count and type.

    With `preprocess.flip` there are 2 N images: image i + N is image i mirrored. If an image cannot be read, the next
    readable image takes its place in the batch, and `skipped` lists its name.
    """

    what = "image"

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
        super().__init__(source, report=report, max_skipped=max_skipped)
        preprocess = preprocess or Preprocess(None)
        self.flip, native = preprocess.flip, preprocess.native
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
            native = self.preprocess.native
            recorded |= {"size": NATIVE, "pixels": native.pixels, "multiple": native.multiple}
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

    def fetched_files(self, mixed: int) -> Tensor | None:
        files = self.source.fetched_files(mixed)
        return None if files is None else torch.cat([files] * (2 if self.flip else 1))

    def expect(self, indices: Tensor) -> None:
        self.source.expect((indices % len(self.source)).tolist())

    def _batch(self, arrays: list[Raster], indices: Tensor) -> Batch:
        empty = np.empty((0, *self.size, self.channels), np.uint8)
        if len({array.shape for array in arrays}) > 1:
            raise InputError("the images have several sizes (data.size is native), and here they must have one; set it")
        stacked = torch.from_numpy(np.stack(arrays) if arrays else empty).permute(0, 3, 1, 2).contiguous()
        x = stacked if self.values.eight_bits else self.values.normalized(stacked)
        return Batch(x, self.condition(indices), index=indices)

    def _read(self, index: int) -> Raster | None:
        array = self.kept.get(index % len(self.source), self._decode)
        return array if array is None or index < len(self.source) else np.ascontiguousarray(array[:, ::-1])

    def _decode(self, i: int) -> Raster | None:
        size, preprocess = self.size, self.preprocess
        if self.buckets is not None:
            height, width = size = self.buckets.size_of(i)
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


def write_folder(dataset: Dataset, folder: Path, count: int) -> int:
    """Write the first `count` images as PNG files, or as `.npy` what those cannot hold; a folder for each class.

    Videos become WebP files without loss, of 8 frames per second. Captions go into `metadata.jsonl`.

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
            raise InputError(f"{none_can(len(dataset), dataset.noun)} be read: {name} ({reason}); check the files")
    return written


def write_images(dataset: Dataset, folder: Path, count: int) -> int:
    """Write the images of `write_folder` one after another; returns their number."""
    folders, written = folder_names(dataset.classes) or [""], 0
    captioned: list[str] = []  # lines of the table
    folder.mkdir()
    for part in torch.split(torch.arange(min(count, len(dataset))), 256):
        batch = numbered(dataset.fetch_readable(part), part)
        assert batch.index is not None  # of data sets that leave out images
        labels = batch.labels.tolist() if dataset.classes else [0] * len(batch)
        for index, image, label in zip(batch.index.tolist(), batch.x, labels, strict=True):
            class_folder = folder / folders[label]
            class_folder.mkdir(parents=True, exist_ok=True)
            file = write_image(dataset.values, image, class_folder / f"{written:06d}")
            if captions := dataset.captions(index):
                captioned.append(json.dumps({"file_name": file.relative_to(folder).as_posix(), "caption": captions}))
            written += 1
    if captioned:
        replace_text(folder / "metadata.jsonl", "\n".join(captioned) + "\n")
    return written


def write_image(values: PixelValues, image: Tensor, place: Path) -> Path:
    """Write an image (C, H, W) or a video (C, T, H, W), see `write_folder`; returns the file, `place` with a suffix."""
    array = values.restored(image[None])[0].movedim(0, -1).numpy()
    if array.ndim == 4:
        file = place.with_suffix(".webp")
        save_video(array, file)
    elif values.eight_bits and array.shape[2] in (1, 3, 4):
        file = place.with_suffix(".png")
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, format="PNG")
    else:
        file = place.with_suffix(".npy")
        np.save(file, array)
    return file
