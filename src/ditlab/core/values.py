"""The numbers that pixels hold: their type and range, and how they become the values of a network and of a display.

A tensor of images is either uint8, as files of 8 bits hold them, or float32 in the scale of the network, in which
`PixelValues.low` is -1 and `PixelValues.high` is 1. `PixelValues` converts between those and the numbers of the files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting


@dataclass(frozen=True)
class PixelValues:
    """What the pixels of a data set or of a model are. The default is ordinary images: 8 bits, 0..255."""

    dtype: str = "uint8"
    """Type of the numbers in the files: uint8, uint16, int16, int32, float32."""
    low: tuple[float, ...] = (0.0,)
    """The number that is -1 for the network and black on a display, for each channel or once for all."""
    high: tuple[float, ...] = (255.0,)
    """The number that is 1 for the network and white on a display."""
    mean: tuple[float, ...] = ()
    """With `std`: the network's value is (number - mean) / std; `low` and `high` apply to displays only."""
    std: tuple[float, ...] = ()
    shown: tuple[int, ...] = ()
    """Numbers of the one or three channels of a display, from 1; by default the only one, or the first three."""

    @classmethod
    def read(cls, content: Mapping[str, Any] | None) -> Self:
        """The values that a configuration holds; None is ordinary images."""
        with interpreting(f"the description {str(content)[:100]} of pixels", "write the file that holds it again"):
            fields: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in (content or {}).items()}
            values = cls(**fields)
            if any(not math.isfinite(number) for part in (values.low, values.high, values.mean) for number in part):
                raise ValueError("a number is not finite")
            if not all(low < high for low, high in zip(values.low, values.high, strict=True)):
                raise ValueError("low is not below high")
            if len(values.mean) != len(values.std) or not all(0 < deviation < math.inf for deviation in values.std):
                raise ValueError("std does not fit")
            torch.empty(0, dtype=getattr(torch, values.dtype))
        return values

    def describe(self) -> dict[str, Any]:
        """The content of a configuration, from which `read` makes the values again."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def summary(self) -> str:
        """Type and range in words: "uint16, 0..4095"."""
        low, high = min(self.low), max(self.high)
        if self.mean:
            how = "standardized by the mean and deviation of each channel"
            return f"{self.dtype}, {how}, shown from {low:g} to {high:g}"
        various = len({*self.low}) > 1 or len({*self.high}) > 1
        return f"{self.dtype}, {low:g}..{high:g}" + (", with a range for each channel" if various else "")

    def shown_of(self, channels: int) -> tuple[int, ...]:
        """Numbers, from 1, of the channels that a display of images with `channels` channels shows."""
        return self.shown or ((1, 2, 3) if channels >= 3 else (1,))

    def loses(self, channels: int) -> bool:
        """Whether a display of images with `channels` channels holds less than their numbers."""
        return not self.eight_bits or sorted(self.shown_of(channels)) != list(range(1, channels + 1))

    def showing(self, shown: Sequence[int], channels: int) -> Self:
        """These values, with other channels on displays.

        Args:
            shown: numbers of one or three channels, from 1.
            channels: channels of the images.

        Raises:
            InputError: another number of channels, or a channel that the images do not have.
        """
        if not can_show(shown, channels):
            numbers = ", ".join(map(str, shown)) or "none"
            raise InputError(f"shown channels {numbers}; give one or three numbers from 1 to {channels}")
        return replace(self, shown=tuple(shown))

    @property
    def eight_bits(self) -> bool:
        """Whether images are uint8 tensors, which `Batch.x` and the autoencoders take as they are."""
        return self.dtype == "uint8" and self.low == (0.0,) and self.high == (255.0,) and not self.mean

    def normalized(self, numbers: Tensor) -> Tensor:
        """Convert the numbers of files (B, C, ...) to the scale of the network, float32."""
        center, scale = self._center_and_scale(numbers.ndim)
        return (numbers.float() - center) / scale

    def restored(self, x: Tensor) -> Tensor:
        """Convert images (B, C, ...) in the scale of the network to numbers of the type and range of the files.

        uint8 images are returned unchanged.
        """
        if x.dtype == torch.uint8:
            return x
        center, scale = self._center_and_scale(x.ndim)
        numbers, dtype = x.float() * scale + center, getattr(torch, self.dtype)
        if not self.mean:
            numbers = numbers.clamp(self._column(self.low, x.ndim), self._column(self.high, x.ndim))
        if dtype.is_floating_point:
            return numbers.to(dtype)
        bounds = torch.iinfo(dtype)
        return numbers.double().round().clamp(bounds.min, bounds.max).to(dtype)

    def displayed(self, x: Tensor) -> Tensor:
        """Convert images (B, C, ...) to uint8 with one channel or three: for PNG files, previews and features."""
        places = [number - 1 for number in self.shown_of(x.shape[1])]
        windowed = self._windowed(x)
        selected = windowed if places == list(range(x.shape[1])) else windowed[:, places]
        return selected if x.dtype == torch.uint8 else ((selected.float() + 1) * 127.5).round().clamp(0, 255).byte()

    def share(self, x: Tensor) -> Tensor:
        """Convert images (B, C, ...) to float32 from 0 (`low`, or 0 of uint8 images) to 1 (`high`, or 255)."""
        return x.float() / 255 if x.dtype == torch.uint8 else ((self._windowed(x) + 1) / 2).clamp(0, 1)

    def _windowed(self, x: Tensor) -> Tensor:
        """Images in the scale in which `low` is -1 and `high` is 1; uint8 images are returned unchanged."""
        if x.dtype == torch.uint8 or not self.mean:
            return x
        center, scale = self._center_and_scale(x.ndim)
        low, high = self._column(self.low, x.ndim), self._column(self.high, x.ndim)
        return (x.float() * scale + center - (low + high) / 2) / ((high - low) / 2)

    def _center_and_scale(self, ndim: int) -> tuple[Tensor, Tensor]:
        if self.mean:
            return self._column(self.mean, ndim), self._column(self.std, ndim)
        low, high = self._column(self.low, ndim), self._column(self.high, ndim)
        return (low + high) / 2, (high - low) / 2

    @staticmethod
    def _column(numbers: tuple[float, ...], ndim: int) -> Tensor:
        """One number for each channel as a tensor (1, C, 1, ...)."""
        return torch.tensor(numbers, dtype=torch.float32).reshape(1, -1, *[1] * (ndim - 2))


def can_show(shown: Sequence[int], channels: int) -> bool:
    """Whether these are numbers, from 1, of one or three of the channels of an image."""
    return len(shown) in (1, 3) and all(1 <= number <= channels for number in shown)


EIGHT_BITS = PixelValues()


def check_finite(x: Tensor, message: Callable[[int], str]) -> None:
    """Check that a batch (B, ...) is finite.

    Args:
        x: the batch.
        message: the message of the error for the number of the first image that is not finite.

    Raises:
        InputError: a value is not finite.
    """
    if not (finite := x.isfinite().flatten(1).all(1).cpu()).all():
        raise InputError(message(int((~finite).nonzero()[0])))


def network_scale(images: Tensor) -> Tensor:
    """Convert uint8 images to -1..1; images that are float are in the scale of the network already."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
