"""The contract of a source: images by index, with names and columns.

Images are decoded when they are read. A name takes about a hundred bytes of memory, so a million images fit easily.
"""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self, final, overload

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditlab.conditioning import ClassLabels
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, SourceError
from ditlab.core.spelling import all_nfc, nfc
from ditlab.data.base import caption_texts
from ditlab.data.budget import DECODING
from ditlab.data.decode import Raster as Raster
from ditlab.data.decode import frames, stacked
from ditlab.data.decode import open_image as open_image
from ditlab.data.identity import Stamp
from ditlab.data.reading import Reading

DIGITS = 1000  # of a number in a name; Python converts at most 4,300
MIN_SIDE = Preparation().min_side  # smaller images are icons or accidents
MAX_PIXELS = Preparation().max_pixels  # a file of some kilobytes may decode to gigabytes
PIXEL_SETTINGS = frozenset(
    {"size", "pixels", "multiple", "fit", "flip", "gray", "channels", "background", "range", "show"}
    | {"min_side", "max_pixels", "max_skipped"}
)
"""Names of the settings of `Preparation` that say how images are read and resized."""
CLIP_SETTINGS = frozenset({"frames", "fps", "seconds", "stride", "frame_multiple"})
"""Names of the settings of `Preparation` that say which frames of a file are a clip."""


ClipFile = Path | BinaryIO | list[Path]
"""What a clip is read from: a path, an open file, or the images of its frames in order."""


class Unreadable(Exception):  # noqa: N818 - a property of a file and not an error of the user
    """An image that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Column:
    """One value for each image of a source, used for conditions and extra inputs."""

    values: Tensor | Sequence[str]  # (N,) class indices, (N, ...) numbers, or N texts
    classes: list[str] = field(default_factory=list)  # names of class indices; empty for other columns


class Texts(Sequence[Any], ABC):
    """Texts, or lists of texts, that are read when they are needed."""

    @abstractmethod
    def text(self, i: int) -> Any:
        """Text i."""

    @abstractmethod
    def state(self, i: int) -> str:
        """What differs if text i may have changed, without reading it."""

    @overload
    def __getitem__(self, i: int) -> Any: ...
    @overload
    def __getitem__(self, i: slice) -> list[Any]: ...
    def __getitem__(self, i: Any) -> Any:
        return [self.text(j) for j in range(*i.indices(len(self)))] if isinstance(i, slice) else self.text(i)


class Source(ABC):
    """Images by index, with names and columns.

    The first column holds the class labels, which are 0 where `classes` is empty (an unconditional source).
    """

    uses: ClassVar[frozenset[str]] = PIXEL_SETTINGS
    """Names of the settings of `Preparation` that have an effect on this source; others are rejected."""
    columns: dict[str, Column]
    """"label" comes first; further columns hold captions ("caption") or numbers."""
    reading: Reading
    """What was chosen and left out."""
    min_side: int = MIN_SIDE
    """Shortest side in pixels; smaller images cannot be used."""
    channels: int | None = None
    """Number of channels of arrays whose shape does not show which axis they are."""
    max_pixels: int = MAX_PIXELS
    """Largest number of pixels; larger images cannot be used."""
    parts: Sequence[str] = ()
    """Names of all parts of the data set, if it is divided and this source is one of them."""
    division: Mapping[str, Any] = {}
    """The settings `held_out` and `split`, if `held_out` divides the data set."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def label_column(self) -> Column:
        """The first column."""
        return next(iter(self.columns.values()))

    @property
    def classes(self) -> list[str]:
        """Class names; empty for an unconditional source."""
        return self.label_column.classes

    @property
    def labels(self) -> Tensor:
        """Class labels (N,) int64."""
        values = self.label_column.values
        assert isinstance(values, Tensor)
        return values

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of image i, with single spaces between words; empty where there are none.

        Raises:
            InputError: a caption is no text.
        """
        if "caption" not in self.columns:
            return ()
        return caption_texts(self.columns["caption"].values[i], self.name(i))

    @abstractmethod
    def name(self, i: int) -> str:
        """Name of image i in reports and messages."""

    @abstractmethod
    def raw(self, i: int) -> Image.Image | Raster:
        """Image i, opened and not necessarily decoded, or its pixels; it may raise any exception of its reader."""

    def stamp(self, i: int) -> Stamp:
        """Name, size and time of image i, without reading it; sources whose images may change override this."""
        return Stamp(nfc(self.name(i)))

    def key(self, i: int) -> str:
        """Name of image i in the source, which does not depend on the place of the source: that of its stamp."""
        return self.stamp(i).name

    def content(self, i: int) -> bytes:
        """The bytes of image i as they are stored, for a hash; sources with times in their stamps override this."""
        return b""

    @property
    def nearby(self) -> int:
        """Number of images, from the first, that checks before the work read; all, unless reading is expensive."""
        return len(self)

    def fetched_files(self, mixed: int) -> Tensor | None:
        """The number (N,) of the file that is fetched whole to read each image; None where no file is fetched.

        Args:
            mixed: files whose images are read in a common random order.

        Raises:
            InputError: the files cannot be kept on this machine as long as they are needed.
        """
        return None

    def expect(self, indices: Sequence[int]) -> None:
        """Prepare for reading these images soon, in the background."""
        return

    def file(self, i: int) -> "ClipFile":
        """The file of clip i: its path, its content, or the images of its frames."""
        return io.BytesIO(self.content(i))

    @final
    def read(self, i: int, min_side: int | None = None, pages: int = 1) -> Image.Image | Raster:
        """Image i, decoded; arguments and errors as in `decoded`."""
        with self.decoded(i, min_side, pages) as image:
            return image

    @final
    @contextmanager
    def decoded(self, i: int, min_side: int | None = None, pages: int = 1) -> Iterator[Image.Image | Raster]:
        """Image i, decoded, for the time of a block; blocks in other threads wait if there is no room for more pixels.

        Args:
            i: number of the image.
            min_side: shortest side in pixels, instead of that of the source.
            pages: a TIFF file with this number of pages, each of one channel, is an image with these channels.

        Raises:
            Unreadable: missing, broken, animated, with several pages, with a side of less than `min_side` pixels, or
                with more than `max_pixels`.
        """
        min_side = self.min_side if min_side is None else min_side
        with unreadable():
            image = self.raw(i)
            width, height = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
            numbers = [] if isinstance(image, np.ndarray) else _numbers(image, pages)
            if min(width, height) < min_side:
                raise Unreadable(f"only {width}x{height} pixels; min_side is {min_side}")
            if width * height > self.max_pixels:
                raise Unreadable(f"{width}x{height} pixels; max_pixels is {self.max_pixels:,}")
        with DECODING.taken(width * height * max(len(numbers), 1)):
            with unreadable():
                if isinstance(image, Image.Image):
                    if len(numbers) > 1:
                        image = stacked(image, numbers)
                    else:
                        image.load()
            yield image


class NamedSource(Source):
    """A source that a string names, such as a folder. Those that are made of other data have no name."""

    @classmethod
    @abstractmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        """Whether a string names a source of this class with these settings."""

    @classmethod
    @abstractmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Open the source that a string names.

        Raises:
            InputError: the source does not exist, or its parts contradict each other.
        """


@contextmanager
def unreadable() -> Iterator[None]:
    """Report what goes wrong in the enclosed block, which reads an image, as a reason.

    Raises:
        Unreadable: something went wrong.
    """
    try:
        yield
    except (Unreadable, NameError, SourceError):  # the latter two are never the image's fault
        raise
    except Exception as error:  # Pillow's decoders raise exceptions of many types on broken files
        raise Unreadable(_reason(error)) from error


def _numbers(image: Image.Image, pages: int) -> list[int]:
    """Numbers of the pages of an image that is not decoded yet; only TIFF files have several."""
    # An MPO is a camera's JPEG followed by a preview or depth map.
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return []
    if image.format != "TIFF":
        raise Unreadable("animated")
    if len(numbers := frames(image)) not in (1, pages):
        raise Unreadable(f"has {len(numbers)} pages; give channels = {len(numbers)} if they are channels")
    return numbers


def _reason(error: Exception) -> str:
    """The reason in one line, without paths and addresses, so that the same fault has the same reason everywhere."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def natural(path: str | Path) -> list[tuple[int, str]]:
    """Sort key that compares numbers by value, 2 before 10, and that is the same in both encodings of a letter."""
    parts = re.split(r"(\d+)", nfc(str(path)))
    return [(int(part), "") if part.isdecimal() and len(part) <= DIGITS else (-1, part) for part in parts]


def reads_clips(settings: Preparation) -> bool:
    """Whether settings ask for clips instead of images."""
    return settings.frames is not None or settings.seconds is not None


def label_column(labels: Sequence[int], classes: list[str]) -> Column:
    """A column of class indices; names are composed (NFC).

    Raises:
        InputError: two classes have the same name, such as two folders whose names differ in their encoding only, a
            name is no text, or a label is the index of no class.
    """
    if others := [name for name in classes if not isinstance(name, str)]:  # of a damaged file
        raise InputError(f"a class has the name {others[0]!r}, which is no text; repair the list of the classes")
    names, most = all_nfc(classes), max(labels, default=0)
    if most >= max(1, len(names)):
        raise InputError(f"image {labels.index(most)} has the label {most}, but there are {len(names)} classes")
    if len(set(names)) < len(set(classes)):
        name = next(name for i, name in enumerate(names) if name in names[:i] and classes.count(classes[i]) == 1)
        raise InputError(f'two classes have the name "{name}", in different encodings; rename one of them')
    return Column(torch.tensor(labels, dtype=torch.long), names)


def column_of_texts(texts: list[str], names: list[str] | None, where: str) -> Column:
    """A column of class indices from labels that are strings.

    Args:
        texts: the label of each image; all empty for a source without labels.
        names: class names in order of their index; a label may then be an index too, as `ClassLabels` reads it. If
            None, the sorted labels.
        where: where the labels come from, for messages.

    Raises:
        InputError: a label that is not among the names, or is a number that may be several classes.
    """
    if not any(texts):
        return label_column([0] * len(texts), [])
    texts = all_nfc(texts)
    names = None if names is None else all_nfc(names)
    classes = names or sorted(set(texts), key=natural)
    labels = ClassLabels(len(classes), classes)
    index: dict[str, int] = {}
    for text in dict.fromkeys(texts):
        try:
            index[text] = labels.index(text)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return label_column([index[text] for text in texts], classes)
