"""What feature networks see of images that are not gray or RGB with 8 bits: the shown channels, as 8 bits."""

from dataclasses import replace

import torch
from rich.console import Console

from ditlab.core.terminal import say
from ditlab.core.types import Batch
from ditlab.core.values import PixelValues
from ditlab.data import Dataset
from ditlab.inference.card import words


def seen_channels(images: Dataset) -> int:
    """Number of channels that a feature network sees: one or three."""
    return len(images.values.shown_of(images.channels))


def remarks_on_seen(images: Dataset) -> list[str]:
    """A line on what a feature network sees of these images; empty for gray and RGB images with 8 bits."""
    if not images.values.loses(images.channels):
        return []
    shown = images.values.shown_of(images.channels)
    return [f"features see {words(shown)} of {images.channels}, as 8 bits"]


def report_seen(images: Dataset, console: Console) -> None:
    """Print what a feature network sees of these images, unless they are ordinary ones."""
    for line in remarks_on_seen(images):
        say(console, line)


class Converted(Dataset):
    """The images of a data set in the scale and with the shown channels of other values."""

    def __init__(self, images: Dataset, values: PixelValues) -> None:
        self.images, self.values = images, values
        self.labels, self.classes, self.channels, self.size = (
            images.labels,
            images.classes,
            images.channels,
            images.size,
        )
        self.preprocessing = images.preprocessing

    def fetch(self, indices: torch.Tensor) -> Batch:
        return self._converted(self.images.fetch(indices))

    def fetch_readable(self, indices: torch.Tensor) -> Batch:
        return self._converted(self.images.fetch_readable(indices))

    def _converted(self, batch: Batch) -> Batch:
        numbers = self.images.values.restored(batch.x)
        return replace(batch, x=numbers if self.values.eight_bits else self.values.normalized(numbers))


def converted(images: Dataset, values: PixelValues) -> Dataset:
    """Real images with the values of a model, so that features see both in one scale.

    Images of another type are returned unchanged.
    """
    same = images.values == values or images.values.dtype != values.dtype
    return images if same else Converted(images, values)
