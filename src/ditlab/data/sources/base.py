"""The contract of a source: images by index, with names and columns.

Images are decoded when they are read. A name takes about a hundred bytes of memory, so a million images fit easily.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, final

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.spelling import all_nfc, nfc
from ditlab.data.identity import Stamp

MIN_SIDE = 8  # smaller images are icons or accidents


class Unreadable(Exception):  # noqa: N818 - a property of a file and not an error of the user
    """An image that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Column:
    """One value for each image of a source, used for conditions and extra inputs."""

    values: Tensor | Sequence[str]  # (N,) class indices, (N, ...) numbers, or N texts
    classes: list[str] = field(default_factory=list)  # names of class indices; empty for other columns


class Source(ABC):
    """Images by index, with names and columns.

    The first column holds the class labels, which are 0 where `classes` is empty (an unconditional source).
    """

    columns: dict[str, Column]
    has_labels = True
    """Whether the source has its own labels, so that a label file cannot be given."""

    @classmethod
    @abstractmethod
    def matches(cls, text: str, labels: str) -> bool:
        """Whether a string names a source of this class; `labels` is a label file, or empty."""

    @classmethod
    @abstractmethod
    def from_text(cls, text: str, labels: str) -> Self:
        """Open the source that a string names.

        Raises:
            InputError: the source does not exist, or its parts contradict each other.
        """

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

    @abstractmethod
    def name(self, i: int) -> str:
        """Name of image i in reports and messages."""

    @abstractmethod
    def raw(self, i: int) -> Image.Image:
        """Image i, opened and not necessarily decoded; it may raise any exception of Pillow."""

    def stamp(self, i: int) -> Stamp:
        """Name, size and time of image i, without reading it; sources whose images may change override this."""
        return Stamp(nfc(self.name(i)))

    def content(self, i: int) -> bytes:
        """The bytes of image i as they are stored, for a hash; sources with times in their stamps override this."""
        return b""

    @final
    def read(self, i: int, min_side: int = MIN_SIDE) -> Image.Image:
        """Image i, decoded.

        Raises:
            Unreadable: missing, broken, animated, or with a side of less than `min_side` pixels.
        """
        try:
            image = self.raw(i)
            # An MPO is a camera's JPEG followed by a preview or depth map.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise Unreadable("animated")
            if min(image.size) < min_side:
                raise Unreadable(f"only {image.width}x{image.height} pixels")
            image.load()
        except Unreadable:
            raise
        except Exception as error:  # Pillow's decoders raise exceptions of many types on broken files
            raise Unreadable(_reason(error)) from error
        return image


def _reason(error: Exception) -> str:
    """The reason in one line, without paths and addresses, so that the same fault has the same reason everywhere."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def natural(path: str | Path) -> list[tuple[int, str]]:
    """Sort key that compares numbers by value, 2 before 10, and that is the same in both encodings of a letter."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", nfc(str(path)))]


def label_column(labels: Sequence[int], classes: list[str]) -> Column:
    """A column of class indices; names are composed (NFC).

    Raises:
        InputError: two classes have the same name, such as two folders whose names differ in their encoding only.
    """
    names = all_nfc(classes)
    if len(set(names)) < len(set(classes)):
        name = next(name for i, name in enumerate(names) if name in names[:i] and classes.count(classes[i]) == 1)
        raise InputError(f'two classes have the name "{name}", in different encodings; rename one of them')
    return Column(torch.tensor(labels, dtype=torch.long), names)


def column_of_texts(texts: list[str], names: list[str] | None, where: str) -> Column:
    """A column of class indices from labels that are strings.

    Args:
        texts: the label of each image; all empty for a source without labels.
        names: class names in order of their index, by which a label may be a number too; if None, the sorted labels.
        where: where the labels come from, for messages.

    Raises:
        InputError: a label that is not among the names.
    """
    if not any(texts):
        return label_column([0] * len(texts), [])
    texts = all_nfc(texts)
    names = None if names is None else all_nfc(names)
    classes = names or sorted(set(texts), key=natural)
    index = {name: i for i, name in enumerate(classes)} | {str(i): i for i in range(len(classes)) if names}
    unknown = [text for text in texts if text not in index]
    if unknown:
        raise InputError(f'label "{unknown[0]}" in {where} is not among its {len(classes)} classes')
    return label_column([index[text] for text in texts], classes)
