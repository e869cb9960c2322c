"""The numbers that pixels hold: their type and range, and how they become the values of a network and of a display.

A tensor of images is either uint8, as files of 8 bits hold them, or float32 in the scale of the network, in which
`PixelValues.low` is -1 and `PixelValues.high` is 1. `PixelValues` converts between those and the numbers of the files.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor


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
        fields: Any = {
            key: tuple(value) if isinstance(value, list) else value for key, value in (content or {}).items()
        }
        return cls(**fields)

    def describe(self) -> dict[str, Any]:
        """The content of a configuration, from which `read` makes the values again."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def text(self) -> str:
        """The values in words, for summaries."""
        if self.mean:
            numbers = [", ".join(f"{number:.4g}" for number in row) for row in (self.mean, self.std)]
            return f"{self.dtype} with mean {numbers[0]} and deviation {numbers[1]}"
        ranges = list(dict.fromkeys(zip(self.low, self.high, strict=True)))
        return f"{self.dtype} from " + ", ".join(f"{low:g} to {high:g}" for low, high in ranges)

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
        channels = x.shape[1]
        shown = self.shown or ((1, 2, 3) if channels >= 3 else (1,))
        selected = x if len(shown) == channels and not self.shown else x[:, [number - 1 for number in shown]]
        if x.dtype == torch.uint8:
            return selected
        if self.mean:
            selected = self._windowed(x)[:, [number - 1 for number in shown]]
        return ((selected.float() + 1) * 127.5).round().clamp(0, 255).byte()

    def _windowed(self, x: Tensor) -> Tensor:
        """Images in the scale in which `low` is -1 and `high` is 1."""
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


EIGHT_BITS = PixelValues()


def network_scale(images: Tensor) -> Tensor:
    """Convert uint8 images to -1..1; images that are float are in the scale of the network already."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
