"""Find the type and the range of the numbers in a data set."""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from ditlab.core.errors import InputError
from ditlab.core.values import PixelValues, can_show

SAMPLE = 4096
"""Images whose numbers are read to find the range: all of a smaller data set, otherwise a seeded sample."""
CHECKED = 256
"""Images whose numbers are compared with a range that the user gave."""
STANDARDIZE = "standardize"
TYPES = {
    "bool": "uint8",
    "uint8": "uint8",
    "int8": "int16",
    "uint16": "uint16",
    "int16": "int16",
    "int32": "int32",
    "uint32": "int32",
    "int64": "int32",
    "uint64": "int32",
    "float16": "float32",
    "float32": "float32",
    "float64": "float32",
}
"""Type of an array -> type with which its numbers are kept."""


def type_name(dtype: DTypeLike) -> str:
    """The type with which numbers are kept: uint8, uint16, int16, int32 or float32.

    Raises:
        ValueError: they are no real numbers.
    """
    name = np.dtype(dtype).name
    if name not in TYPES:
        raise ValueError(f"numbers of type {name}; give integers or floats")
    return TYPES[name]


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Convert numbers to the type with which they are kept; true becomes 255.

    Raises:
        ValueError: they are no real numbers, or are beyond the range of int32.
    """
    name = type_name(array.dtype)
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if name == "int32" and array.dtype != np.int32 and array.size:
        low, high = array.min(), array.max()
        if low < -(2**31) or high >= 2**31:
            raise ValueError(f"values from {low} to {high}, beyond the range of int32")
    return array if array.dtype.name == name and array.dtype.isnative else array.astype(name)


def common_type(names: Iterable[str]) -> str:
    """The type that holds the numbers of all types; uint8 if one of them is, because the others are then reduced."""
    names = set(names)
    return "uint8" if "uint8" in names else type_name(np.result_type(*names))


def sampled(count: int, most: int | None = None) -> torch.Tensor:
    """Indices of up to `most` (default: `SAMPLE`) images whose numbers are read, in ascending order."""
    most = most or SAMPLE
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


@dataclass
class Bounds:
    """Running smallest and largest numbers, sums and sums of squares of each channel."""

    count: int = 0
    low: NDArray[np.float64] = field(default_factory=lambda: np.array(math.inf))
    high: NDArray[np.float64] = field(default_factory=lambda: np.array(-math.inf))
    total: NDArray[np.float64] = field(default_factory=lambda: np.array(0.0))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.array(0.0))

    def add(self, numbers: NDArray[Any]) -> None:
        """Take in numbers (..., C)."""
        rows = numbers.reshape(-1, numbers.shape[-1]).astype(np.float64)
        self.count += len(rows)
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        self.total, self.squares = self.total + rows.sum(0), self.squares + np.square(rows).sum(0)


def find_values(
    dtype: str,
    channels: int,
    setting: str = "",
    show: tuple[int, ...] = (),
    numbers: Callable[[], Iterable[NDArray[Any]]] = tuple,
) -> PixelValues:
    """The type and range of the numbers of a data set.

    Without a setting, numbers of 8 bits are 0..255. The range of others is that of the numbers themselves: integers
    from 0 are 0..2^k - 1 for the smallest k that holds them; floats are 0..1 or -1..1 if they lie within, and
    otherwise, like integers with a sign, from the smallest to the largest.

    Args:
        dtype: type of the numbers.
        channels: their channels.
        setting: "LOW,HIGH"; "standardize" for the mean and deviation of each channel; or empty.
        show: numbers of the channels that are displayed, from 1.
        numbers: reads the numbers (..., C) of images; called only if the range depends on them.

    Raises:
        InputError: the setting is no range, the channels do not exist, or all numbers are equal.
    """
    if show and not can_show(show, channels):
        raise InputError(f"show is {', '.join(map(str, show))}; give one or three channels from 1 to {channels}")
    if is_given(setting):
        low, high = parse_range(setting)
        return PixelValues(dtype, (low,), (high,), shown=show)
    if dtype == "uint8" and not setting:
        return PixelValues(shown=show)
    bounds = Bounds()
    for array in numbers():
        bounds.add(array)
    if not bounds.count:
        raise InputError("no image can be read to find the range of its numbers")
    if setting:
        return standardized(dtype, bounds, show)
    low, high = found_range(dtype, float(bounds.low.min()), float(bounds.high.max()))
    return PixelValues(dtype, (low,), (high,), shown=show)


def parse_range(setting: str) -> tuple[float, float]:
    """The numbers of "LOW,HIGH".

    Raises:
        InputError: another form, or LOW is not below HIGH.
    """
    try:
        low, high = (float(part) for part in setting.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not -math.inf < low < high < math.inf:
        raise InputError(f'range is "{setting}"; give LOW,HIGH such as -1024,3071, or {STANDARDIZE}')
    return low, high


def found_range(dtype: str, low: float, high: float) -> tuple[float, float]:
    """The range for numbers from `low` to `high`; see `find_values`."""
    if dtype != "float32" and low >= 0:
        return 0.0, float((1 << max(1, int(high).bit_length())) - 1)
    if dtype == "float32" and low >= 0 and high <= 1:
        return 0.0, 1.0
    if dtype == "float32" and low >= -1 and high <= 1:
        return -1.0, 1.0
    if low == high:
        raise InputError(f"all numbers are {low:g}; give a range (data.range)")
    return low, high


def standardized(dtype: str, bounds: Bounds, show: tuple[int, ...]) -> PixelValues:
    """The mean and deviation of each channel; displays show it from its smallest to its largest number.

    They are rounded to 7 digits, because the last digits of sums depend on the machine.
    """
    mean = bounds.total / bounds.count
    deviation = np.sqrt(np.maximum(bounds.squares / bounds.count - np.square(mean), 0))
    constant = np.flatnonzero(bounds.low == bounds.high)
    if len(constant):
        raise InputError(
            f"all numbers of channel {constant[0] + 1} are {bounds.low[constant[0]]:g}, which cannot be standardized; "
            "give a range (data.range) or other channels"
        )

    def rounded(numbers: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(float(f"{number:.7g}") for number in numbers)

    return PixelValues(dtype, rounded(bounds.low), rounded(bounds.high), rounded(mean), rounded(deviation), show)


def is_given(setting: str) -> bool:
    """Whether a setting is a range, which does not depend on the numbers of the images."""
    return setting not in ("", STANDARDIZE)


def given_range(values: PixelValues, total: int, numbers: Callable[[], Iterable[NDArray[Any]]]) -> str:
    """One sentence about a range that the user gave, and about how much of it the numbers of images use.

    Args:
        values: the values with that range.
        total: images of the data set.
        numbers: reads the numbers (..., C) of up to `CHECKED` images.
    """
    low, high = values.low[0], values.high[0]
    bounds, count, outside = Bounds(), 0, 0
    with suppress(InputError):  # no image can be read, which is reported elsewhere
        for array in numbers():
            bounds.add(array)
            count, outside = count + array.size, outside + int(((array < low) | (array > high)).sum())
    line = summary(values, 0, total)
    if not count:
        return line
    least, most = float(bounds.low.min()), float(bounds.high.max())
    used = max(0.0, min(most, high) - max(least, low)) / (high - low)
    images = f"{'all' if total <= CHECKED else f'a sample of {CHECKED:,}'} images"
    line += f"; the numbers of {images} are from {least:g} to {most:g}, {100 * used:.3g} % of this range"
    return line + (f", and {100 * outside / count:.3g} % of them lie outside of it" if outside else "")


def summary(values: PixelValues, images: int, total: int) -> str:
    """One sentence about values that are not those of 8 bits, for the report on what was read.

    Args:
        values: the values.
        images: how many images were read to find them; 0 if they were set.
        total: images of the data set.
    """
    found = f", from {'all' if images == total else f'a sample of {images:,}'} images" if images else ""
    if values.mean:
        return f"{values.dtype} numbers, standardized by the mean and deviation of each channel{found}"
    return f"{values.dtype} numbers, of which {values.low[0]:g} is black and {values.high[0]:g} is white{found}"
