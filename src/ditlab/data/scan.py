"""Read the headers of all images of a source: their size, channels, type of numbers and color profile."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from ditlab.core.errors import InputError
from ditlab.core.terminal import make_console
from ditlab.core.units import counted, none_can
from ditlab.data.base import spread
from ditlab.data.color import State, profile_state
from ditlab.data.decode import (
    HEIGHT,
    ORIENTATION,
    SIDES_SWAPPED_FROM,
    WIDTH,
    frames,
    gray_type,
    has_exif,
    is_gray,
    is_reduced,
    tag,
)
from ditlab.data.ranges import common_type, type_name
from ditlab.data.sources.base import Source, Unreadable, unreadable

T = TypeVar("T")
SHOWN_FROM = 10_000  # images from which reading their headers takes seconds, so that a progress bar is shown


@dataclass(frozen=True)
class Header:
    """What the header of an image says."""

    size: tuple[int, int]  # (height, width) as displayed
    channels: int
    dtype: str = "uint8"
    profile: State = ""
    reduced: bool = False  # from 16 bits for each color to 8


@dataclass
class Scan:
    """The headers of the images that can be read."""

    first: dict[int, str] = field(default_factory=dict)
    """Channels -> name of the first image with this number of channels."""
    types: Counter[str] = field(default_factory=Counter)
    profiles: Counter[State] = field(default_factory=Counter)
    reduced: int = 0
    broken: list[int] = field(default_factory=list)
    """Indices of the images whose header cannot be read."""
    size: tuple[int, int] | None = None
    """(height, width) of the first image."""
    unread: int = 0
    """Images whose header was not read."""
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    """(height, width) of each image, None where the header cannot be read; empty if they were not asked for."""

    @property
    def dtype(self) -> str:
        """The type that holds the numbers of all images."""
        return common_type(self.types)

    def channels(self, setting: int | None) -> int:
        """The channels with which all images are read: those of the setting; else 1 if all are gray, 3, or their own.

        Raises:
            InputError: some images have other channels.
        """
        counts = sorted(self.first)
        channels = setting or counts[-1]
        convertible = {1: {1, 3}, 3: {1, 3}, 4: {1, 3, 4} if self.dtype == "uint8" else {4}}.get(channels, {channels})
        for count in counts:
            if count not in convertible:
                others = f"; {self.first[channels]} has {channels}" if channels in self.first else f", not {channels}"
                raise InputError(
                    f"{self.first[count]} has {counted(count, 'channel')}{others}; give channels (data.channels) that "
                    "all images have, or move the others away"
                )
        return channels

    def notes(self) -> list[str]:
        """What is converted, one line each."""
        lines = {
            "with a color profile, converted to sRGB": self.profiles["converted"],
            "with a broken color profile, read as sRGB": self.profiles["broken"],
            "of more than 8 bits with a color profile, which is not applied": self.profiles["unused"],
            "of 16 bits per color, read at 8 bits (because of their color profile or transparency, or because tifffile "
            "or imagecodecs is not installed)": self.reduced,
        }
        if self.dtype == "uint8":
            lines["of more than 8 bits, reduced to 8 because others have 8"] = (
                self.types.total() - (self.types["uint8"])
            )
        notes = [f"{counted(count, 'image')} {what}" for what, count in lines.items() if count]
        read = self.types.total() + len(self.broken)
        return [f"the headers of the first {read:,} images are read"] * (self.unread > 0) + notes


def scan(
    source: Source, pool: ThreadPoolExecutor, channels: int | None, *, same_size: bool, sizes: bool = False
) -> Scan:
    """Read the headers of all images.

    Args:
        source: the images.
        pool: threads that read.
        channels: pages of a TIFF file that are the channels of an image.
        same_size: refuse images of different sizes.
        sizes: return the sizes of all images.

    Raises:
        InputError: no image can be read, or they differ in size.
    """
    result = Scan()
    count, reason = source.nearby, ""
    result.unread = len(source) - count
    headers = spread(pool, lambda i: read_header(source, i, channels, displayed=same_size or sizes), count)
    for i, header in enumerate(with_progress(headers, count, "reading headers")):
        if sizes:
            result.sizes.append(header.size if isinstance(header, Header) else None)
        if not isinstance(header, Header):  # it will be skipped when it is read
            reason = reason or header
            result.broken.append(i)
            continue
        if result.size is None:
            result.size, first = header.size, i
        if same_size and header.size != result.size:
            raise InputError(
                f"{source.name(i)} has {_sides(header.size)} pixels (height x width) but {source.name(first)} has "
                f"{_sides(result.size)}; give a size (data.size) to resize all images"
            )
        if header.channels not in result.first:
            result.first[header.channels] = source.name(i)
        result.types[header.dtype] += 1
        result.profiles[header.profile] += 1
        result.reduced += header.reduced
    if result.size is None:
        begin = ", beginning with " if count > 1 else ": "
        raise InputError(f"{none_can(count, 'image')} be read{begin}{source.name(0)} ({reason}); check the files")
    return result


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def with_progress(results: Iterable[T], count: int, text: str, shown_from: int = SHOWN_FROM) -> Iterable[T]:
    """Pass results on with a progress bar on standard error, if there are many and it is a terminal."""
    console = make_console(stderr=True)
    hidden = count < shown_from or not console.is_terminal
    return results if hidden else track(results, text, count, console=console, transient=True)


def read_header(source: Source, i: int, pages: int | None = None, *, displayed: bool = True) -> Header | str:
    """The header of an image, or the reason why it cannot be read.

    Args:
        source: the images.
        i: index of the image.
        pages: pages of a TIFF file that are the channels of an image.
        displayed: as for `image_header`.
    """
    try:
        with unreadable():
            image = source.raw(i)
            if isinstance(image, np.ndarray):
                return array_header(image)
            with image:
                return image_header(image, pages, displayed=displayed)
    except Unreadable as error:
        return str(error)


def array_header(array: NDArray[Any]) -> Header:
    """The header of pixels (H, W, C)."""
    return Header((array.shape[0], array.shape[1]), array.shape[2], type_name(array.dtype))


def image_header(image: Image.Image, pages: int | None = None, *, displayed: bool = True) -> Header:
    """The header of an image that need not be decoded.

    Args:
        image: the image.
        pages: as for `read_header`.
        displayed: whether the size must be that of the image as it is displayed, for which PNG files are read whole.

    Raises:
        ValueError: a TIFF file with several pages, unless `pages` is their number.
    """
    gray = is_gray(image)
    channels = 1 if gray and not image.has_transparency_data else 3
    dtype = type_name(gray_type(image)) if gray else "uint8"
    reduced = is_reduced(image)  # first, because reading the EXIF data can decode the image
    if image.format == "TIFF" and getattr(image, "is_animated", False) and (count := len(frames(image))) > 1:
        if count != pages:
            raise ValueError(f"has {count} pages; give channels = {count} if they are channels")
        channels = count
    size = displayed_size(image) if displayed else (image.height, image.width)
    return Header(size, channels, dtype, profile_state(image), reduced)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image as it is displayed; it need not be decoded."""
    if image.format == "TIFF":  # Pillow swaps the sides when it opens the file, in recent versions only
        (width,), (height,), (orientation,) = (tag(image, number) for number in (WIDTH, HEIGHT, ORIENTATION))
    else:
        (width, height), orientation = image.size, image.getexif().get(ORIENTATION, 1) if has_exif(image) else 1
    return (width, height) if orientation >= SIDES_SWAPPED_FROM else (height, width)
