"""Survey a data set before training: classes, sizes, unreadable files, duplicates, and a contact sheet."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.terminal import cell
from ditlab.core.units import counted, none_can, sides_of
from ditlab.core.values import PixelValues
from ditlab.data.base import spread
from ditlab.data.buckets import Buckets, Native, Size
from ditlab.data.captions import CaptionStatistics
from ditlab.data.color import has_more_bits, profile_state
from ditlab.data.preprocess import Preprocess, file_numbers, strips, to_rgb
from ditlab.data.ranges import find_values, is_given
from ditlab.data.reading import Reading
from ditlab.data.sources import Raster, Source, Unreadable
from ditlab.report.sheets import check_sheet, contact_sheet, save_sheet, to_pil

ROWS, COLUMNS, THUMBNAIL = 16, 8, 64
PROFILES = {"converted": "converted to sRGB", "broken": "broken, read as sRGB", "unused": "not applied to 16 bits"}
NAME = 24  # characters of a class name beside its row


class Properties(NamedTuple):
    """The properties of one image."""

    size: tuple[int, int]  # height, width
    mode: str  # of Pillow, or the type of the numbers
    channels: int
    bounds: tuple[float, float] | None  # smallest and largest number of an image of more than 8 bits
    dtype: str
    profile: str  # what happens to the color profile, see `ditlab.data.color`
    content: str  # hash of size and pixels, so that a copy in another file format is a duplicate


@dataclass(frozen=True)
class Bucket:
    """The images that are resized and cropped to one of several sizes."""

    images: int
    cropped: float  # mean share of an image that is cropped
    most: float  # largest share


@dataclass(frozen=True)
class Survey:
    """The result of a survey."""

    images: int
    classes: dict[str, int]  # readable images of each class
    sizes: dict[str, int]  # HEIGHTxWIDTH -> images, most frequent first
    short_side: tuple[int, int, int]  # min, median, max
    modes: dict[str, int]
    channels: dict[int, int]  # channels -> images
    ranges: dict[str, tuple[float, float]]  # type of numbers other than 8 bits -> smallest and largest number
    profiles: dict[str, int]  # what happens to color profiles -> images
    duplicates: list[list[str]]  # names of images with equal pixels
    unreadable: dict[str, str]  # name -> reason
    reading: Reading  # what was chosen and left out
    captions: CaptionStatistics | None = None  # None if there are no captions
    enlarged: int = 0  # images with a side that is shorter than the size to which they are resized
    buckets: dict[str, "Bucket"] = field(default_factory=dict)  # with size native: size -> its images

    def tables(self) -> list[Table]:
        """The survey as tables for the terminal."""
        summary = Table("property", "value", title=counted(self.images, "image"))
        summary.add_row("conditions", cell(self.reading.conditions))
        if self.reading.split:
            summary.add_row("split", cell(self.reading.split))
        for note in self.reading.notes:
            summary.add_row("note", cell(note))
        if self.enlarged:
            summary.add_row("smaller than the size", f"{self.enlarged:,}")
        summary.add_row("unreadable", f"{len(self.unreadable):,}")
        summary.add_row("duplicates", f"{sum(len(group) - 1 for group in self.duplicates):,}")
        summary.add_row("short side, min / median / max", " / ".join(map(str, self.short_side)))
        summary.add_row("modes", ", ".join(f"{mode} {count:,}" for mode, count in self.modes.items()))
        summary.add_row("channels", ", ".join(f"{channels}: {count:,}" for channels, count in self.channels.items()))
        for dtype, (low, high) in self.ranges.items():
            summary.add_row(f"{dtype} numbers", f"{low:g} to {high:g}")
        for state, count in self.profiles.items():
            summary.add_row("color profiles", f"{PROFILES[state]} {count:,}")
        classes = [count_table("class", self.classes)] if self.classes else []
        captions = [self.captions.table()] if self.captions else []
        tables = [summary, *classes, *captions, count_table("height x width", self.sizes)]
        if self.buckets:
            tables.append(bucket_table(self.buckets))
        tables += reading_tables(self.reading, self.unreadable)
        if self.duplicates:
            groups = [", ".join(group[:4]) + (", ..." if len(group) > 4 else "") for group in self.duplicates]
            tables.append(first_rows(Table("duplicates"), [[cell(group)] for group in groups]))
        return tables


def reading_tables(reading: Reading, unreadable: dict[str, str]) -> list[Table]:
    """Tables of what was left out, and of what cannot be read; none if there is nothing."""
    tables = []
    if reading.left_out:
        tables.append(Table("left out", "files", "example"))
        for reason, left in reading.left_out.items():
            tables[-1].add_row(cell(reason), f"{left.count:,}", literal(left.example))
    if unreadable:
        rows = [[literal(name), cell(reason)] for name, reason in unreadable.items()]
        tables.append(first_rows(Table("unreadable", "reason"), rows))
    return tables


def first_rows(table: Table, rows: Sequence[Sequence[Text]]) -> Table:
    """Add the first rows to a table, and how many more there are."""
    for row in rows[:ROWS]:
        table.add_row(*row)
    if len(rows) > ROWS:
        table.add_row(f"and {len(rows) - ROWS:,} more")
    return table


def bucket_table(buckets: dict[str, Bucket], counted: str = "images") -> Table:
    """A table of the sizes to which images are resized, and of what is cropped."""
    table = Table("resized to", counted, "cropped on average", "at most", title="batches are of one of these sizes")
    for size, bucket in buckets.items():
        table.add_row(size, f"{bucket.images:,}", f"{bucket.cropped:.1%}", f"{bucket.most:.1%}")
    return table


def buckets_of(sizes: Sequence[Size], native: Native) -> dict[str, Bucket]:
    """The buckets of images with these sizes (height, width)."""
    return contents_of(Buckets.nearest(sizes, native))


def contents_of(buckets: Buckets, readable: torch.Tensor | None = None) -> dict[str, Bucket]:
    """The images or clips of each bucket, by its size; of these only the `readable` ones (N,) bool, if it is given."""
    losses = torch.tensor(buckets.losses)
    members = [images if readable is None else images[readable[images]] for images in buckets.members]
    return {
        sides_of(size): Bucket(len(images), float(losses[images].mean()), float(losses[images].max()))
        for size, images in zip(buckets.sizes, members, strict=True)
        if len(images)
    }


def count_table(what: str, counts: dict[str, int], counted: str = "images") -> Table:
    """A table of counts: the first rows, and the sum of the others."""
    table = Table(what, counted)
    for name, count in list(counts.items())[:ROWS]:
        table.add_row(literal(name), f"{count:,}")
    if len(counts) > ROWS:
        table.add_row(f"and {len(counts) - ROWS:,} more", f"{sum(list(counts.values())[ROWS:]):,}")
    return table


def literal(name: str) -> Text:
    """A name on one line, cut at the edge of the screen; brackets in it are not markup."""
    return cell(name, no_wrap=True, overflow="ellipsis")


def survey(
    source: Source, console: Console, size: tuple[int, int] | None = None, native: Native | None = None
) -> Survey:
    """Decode every image once, with a progress bar.

    Args:
        source: the images.
        console: where progress is shown.
        size: (height, width) to which the images will be resized.
        native: instead of a size, the budget of images that keep their aspect ratio.
    """
    classes = Counter(dict.fromkeys(source.classes, 0))
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    channels: Counter[int] = Counter()
    profiles: Counter[str] = Counter()
    ranges: dict[str, tuple[float, float]] = {}
    shapes: list[tuple[int, int]] = []
    enlarged = 0
    names_by_content: defaultdict[str, list[str]] = defaultdict(list)
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        results = spread(pool, lambda i: _inspect(source, i), len(source))
        bar = track(results, "inspecting", len(source), console=console, disable=not console.is_terminal)
        for i, result in enumerate(bar):
            if isinstance(result, str):
                unreadable[source.name(i)] = result
                continue
            if source.classes:
                classes[source.classes[int(source.labels[i])]] += 1
            sizes["{}x{}".format(*result.size)] += 1
            modes[result.mode] += 1
            channels[result.channels] += 1
            profiles[result.profile] += bool(result.profile)
            if result.bounds is not None:
                low, high = ranges.get(result.dtype, result.bounds)
                ranges[result.dtype] = min(low, result.bounds[0]), max(high, result.bounds[1])
            shapes.append(result.size)
            enlarged += size is not None and (result.size[0] < size[0] or result.size[1] < size[1])
            names_by_content[result.content].append(source.name(i))
    sides = sorted(map(min, shapes))
    short_side = (sides[0], sides[len(sides) // 2], sides[-1]) if sides else (0, 0, 0)
    duplicates = [names for names in names_by_content.values() if len(names) > 1]
    return Survey(
        images=len(source),
        classes=dict(classes),
        sizes=dict(sizes.most_common()),
        short_side=short_side,
        modes=dict(modes.most_common()),
        channels=dict(sorted(channels.items())),
        ranges=ranges,
        profiles=dict(+profiles),
        duplicates=duplicates,
        unreadable=unreadable,
        reading=source.reading,
        captions=CaptionStatistics.of(source),
        enlarged=enlarged,
        buckets={} if native is None or not shapes else buckets_of(shapes, native),
    )


def _inspect(source: Source, i: int) -> Properties | str:
    """The properties of image i, or the reason why it cannot be read."""
    try:
        with source.decoded(i) as image:
            return _properties(image)
    except Unreadable as error:
        return str(error)


def _properties(image: Image.Image | Raster) -> Properties | str:
    """The properties of an image, or the reason why it cannot be used."""
    if isinstance(image, Image.Image) and not has_more_bits(image):
        displayed = to_rgb(image)
        size, channels = (displayed.height, displayed.width), len(displayed.getbands())
        content = _hash((strip.convert("RGB").tobytes() for strip in strips(displayed)), displayed.size)
        return Properties(size, image.mode, channels, None, "uint8", profile_state(image), content)
    numbers = file_numbers(image)
    mode, profile = (image.mode, profile_state(image)) if isinstance(image, Image.Image) else (numbers.dtype.name, "")
    bounds = None if numbers.dtype == np.uint8 else (float(numbers.min()), float(numbers.max()))
    if bounds is not None and not np.isfinite(bounds).all():
        return "values that are not finite"
    # Equal numbers of different types are equal; those of 8 bits are shown differently.
    content = _hash((np.ascontiguousarray(numbers, numbers.dtype if bounds is None else "f8").data,), numbers.shape)
    height, width, channels = numbers.shape
    return Properties((height, width), mode, channels, bounds, numbers.dtype.name, profile, content)


def _hash(pixels: Iterable[bytes | memoryview], shape: tuple[int, ...]) -> str:
    content = hashlib.blake2b(digest_size=16)
    for part in pixels:
        content.update(part)
    content.update(repr(shape).encode())
    return content.hexdigest()


def _thumbnail(image: Image.Image | Raster, thumbnail: Preprocess, settings: Preparation) -> Image.Image:
    """A small image; numbers of more than 8 bits are shown from the given range, or that which they have in the image.

    Raises:
        InputError: the settings show channels that the image does not have, or have no valid range.
    """
    if isinstance(image, Image.Image) and not has_more_bits(image):
        array = thumbnail(image)
        if not (settings.show or is_given(settings.range)):
            return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        image = array
    numbers = file_numbers(image)
    try:
        values = find_values(numbers.dtype.name, numbers.shape[-1], numbers=lambda: [numbers])
    except InputError:  # all numbers are equal
        values = PixelValues(numbers.dtype.name, (0.0,), (1.0,))
    if is_given(settings.range):
        values = find_values(numbers.dtype.name, numbers.shape[-1], settings.range)
    if settings.show:
        values = values.showing(settings.show, numbers.shape[-1])
    pixels = torch.from_numpy(replace(thumbnail, values=values, channels=None)(numbers)).permute(2, 0, 1)[None]
    shown = values.displayed(pixels if values.eight_bits else values.normalized(pixels))
    return to_pil(shown)[0].convert("RGB")


def sample_sheet(
    source: Source, path: Path, preprocess: Preprocess | None = None, settings: Preparation | None = None
) -> None:
    """Write a contact sheet: a row for each of up to 16 classes, with its first 8 readable images.

    Args:
        source: the images.
        path: the PNG file.
        preprocess: how the images will be resized; the sheet shows its aspect ratio, bars and colors.
        settings: the range and the shown channels.

    Raises:
        InputError: no image can be read, the file exists and is no contact sheet, or there are no such channels.
    """
    check_sheet(path)
    height, width = (1, 1) if preprocess is None or preprocess.size is None else preprocess.size
    size = (round(THUMBNAIL * min(1, height / width)), round(THUMBNAIL * min(1, width / height)))
    size = (max(1, size[0]), max(1, size[1]))
    thumbnail = Preprocess(size, channels=3) if preprocess is None else replace(preprocess, size=size)
    rows: list[list[Image.Image]] = []
    for label in range(min(ROWS, max(1, len(source.classes)))):
        row: list[Image.Image] = []
        for i in (source.labels == label).nonzero().flatten().tolist():
            if len(row) == COLUMNS:
                break
            try:
                row.append(_thumbnail(source.read(i), thumbnail, settings or Preparation()))
            except Unreadable:
                continue
        rows.append(row)
    shown = [row for row in rows if row]
    names = [cut(name) for name, row in zip(source.classes, rows, strict=False) if row]
    if not shown:
        raise InputError(f"{none_can(len(source), 'image')} be read for {path}; omit the contact sheet")
    save_sheet(contact_sheet(shown, names or None), path)


def cut(name: str) -> str:
    """A name, shortened to at most 24 characters."""
    return name if len(name) <= NAME else name[: NAME - 3] + "..."
