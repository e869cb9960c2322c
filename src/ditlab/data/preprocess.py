"""Resize images of any mode, type and size to arrays of one shape.

"crop" is the preprocessing of ADM and DiT: halve with a box filter while both sides are at least twice the target,
resize bicubically to cover the target, and crop the center. "letterbox" pads, "stretch" changes the aspect ratio.
Channels that Pillow has no image for are resized one by one with the same filters.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from ditlab.core.errors import InputError, lookup
from ditlab.core.units import counted
from ditlab.core.values import EIGHT_BITS, PixelValues
from ditlab.data.buckets import Native
from ditlab.data.color import has_more_bits, to_srgb
from ditlab.data.decode import ORIENTATION, gray_numbers, turned
from ditlab.data.ranges import plain
from ditlab.data.sources.base import MAX_PIXELS, Raster, Unreadable

Fit = Literal["crop", "letterbox", "stretch"]
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow converts RGB to gray
STRIP = 2**22  # pixels that are converted at a time
Fill = int | float | tuple[int, ...]


@dataclass(frozen=True)
class Preprocess:
    """Settings with which images are brought to one size."""

    size: tuple[int, int] | None  # (height, width); None leaves the size as it is
    fit: Fit = "crop"
    flip: bool = False  # add a mirrored copy of each image
    background: str = "white"  # color of transparent parts, and of the bars of letterboxed images
    channels: int | None = None  # 1 gray, 3 RGB, 4 RGB and transparency, or the bands of files; None: those of an image
    values: PixelValues = EIGHT_BITS  # type of the numbers; with another type than uint8, the range of bars
    native: Native | None = None  # without a size: each image gets the size of its bucket, see `ditlab.data.buckets`

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"size {self.size[0]}x{self.size[1]}; give sides of 1 or more")
        if self.channels is not None and self.channels < 1:
            raise InputError(f"channels is {self.channels}; give 1 for gray, 3 for RGB, or the bands of the files")
        lookup(FITS, self.fit, "fit")
        color(self.background)

    def __call__(self, image: Image.Image | Raster) -> Raster:
        """Resize an image to an array (height, width, channels): uint8, or the float32 numbers of other types.

        Raises:
            Unreadable: other channels, values that are out of range or not finite, or broken EXIF data.
        """
        if self.values.dtype != "uint8":
            return self._resized_numbers(as_numbers(image, self.channels, self.values, self.background))
        eight_bit = as_eight_bits(image, self.channels, self.background)
        if isinstance(eight_bit, Image.Image):
            mode = MODES[self.channels or len(eight_bit.getbands())]
            if self.fit == "letterbox" and mode == "RGB":
                eight_bit = _converted(eight_bit, mode)  # because bars can have a color
            return _pixels(_converted(self._fitted(eight_bit, self._fill), mode))
        layers = (Image.fromarray(np.ascontiguousarray(layer)) for layer in np.moveaxis(eight_bit, -1, 0))
        return np.concatenate([_pixels(self._fitted(layer, self._fill)) for layer in layers], -1)

    def _resized_numbers(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Numbers (H, W, C) resized channel by channel; bars get the level of the background between black and white.

        Bicubic interpolation can go beyond the numbers at an edge. As with 8 bits, the result stays within black and
        white, and within the numbers of the image.
        """
        if self.size is None:
            return numbers
        count = numbers.shape[-1]
        low, high = (_for_each(bound, count) for bound in (self.values.low, self.values.high))
        levels = np.array(color(self.background) if count == 3 else [self._fill("L")] * count) / 255
        resized = []
        for layer, black, white, level in zip(np.moveaxis(numbers, -1, 0), low, high, levels, strict=True):
            fill = partial(_between, black, white, level)
            fitted = self._fitted(Image.fromarray(np.ascontiguousarray(layer)), fill)
            resized.append(np.clip(_pixels(fitted), min(black, layer.min()), max(white, layer.max())))
        return np.concatenate(resized, -1).astype(np.float32)

    def _fitted(self, image: Image.Image, fill: Callable[[str], Fill]) -> Image.Image:
        return image if self.size is None else FITS[self.fit](image, self.size, fill)

    def _fill(self, mode: str) -> Fill:
        """The background as a color of a mode of 8 bits."""
        return ImageColor.getcolor("#{:02x}{:02x}{:02x}".format(*color(self.background)), mode)


MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels -> mode of Pillow."""


def _pixels(image: Image.Image) -> Raster:
    """The pixels of an image as an array (height, width, channels)."""
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """An image in a mode; Pillow would copy an image that has this mode."""
    return image if image.mode == mode else image.convert(mode)


def _between(low: float, high: float, share: float, mode: str) -> float:
    return low + share * (high - low)


def _for_each(bound: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return bound * channels if len(bound) == 1 else bound


def as_eight_bits(
    image: Image.Image | Raster, channels: int | None, background: str = "white"
) -> Image.Image | NDArray[np.uint8]:
    """Convert an image to 8 bits: an image of Pillow in mode L, RGB or RGBA, or an array (H, W, C) of other channels.

    Args:
        image: of any type; numbers of more bits are reduced as in `to_rgb`.
        channels: 4 keeps transparency; the mode may still have to be converted to another channel count.
        background: color behind transparent parts.

    Raises:
        Unreadable: other channels, values that are out of range, or broken EXIF data.
    """
    if isinstance(image, Image.Image):
        if channels is not None and channels not in MODES:
            raise Unreadable(f"mode {image.mode}, not {counted(channels, 'channel')}")
        return to_rgba(image) if channels == 4 else to_rgb(image, background)
    array = _reduced(_plain(image))
    count = array.shape[-1]
    if count in (1, 3) and channels in (*MODES, None):
        return Image.fromarray(np.ascontiguousarray(array[..., 0] if count == 1 else array))
    if channels not in (count, None):
        raise Unreadable(f"{counted(count, 'channel')}, not {channels}")
    return array


def as_numbers(
    image: Image.Image | Raster, channels: int | None, values: PixelValues, background: str = "white"
) -> NDArray[np.float32]:
    """The numbers (H, W, C) of an image, float32.

    Args:
        image: of any type; images of 8 bits are scaled so that black is `values.low` and white `values.high`.
        channels: gray becomes RGB and RGB gray on request; otherwise the channels of the image must be these.
        values: what the numbers of the data are.
        background: color behind transparent parts of images of 8 bits.

    Raises:
        Unreadable: other channels, or numbers that are not finite.
    """
    if isinstance(image, Image.Image) and not has_more_bits(image):
        shown = _pixels(to_rgb(image, background)).astype(np.float32)
        shown /= np.float32(255)
        low, high = (np.array(bound, np.float32) for bound in (values.low, values.high))
        return _with_channels(shown, channels) * (high - low) + low
    numbers = file_numbers(image).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise Unreadable("values that are not finite")
    return _with_channels(numbers, channels)


def file_numbers(image: Image.Image | Raster) -> Raster:
    """The numbers (H, W, C) of an image of Pillow with one channel of more than 8 bits, or of an array, as they are.

    Raises:
        Unreadable: they are no real numbers, or the EXIF data are broken.
    """
    return _plain(_gray(image) if isinstance(image, Image.Image) else image)


def _with_channels(numbers: NDArray[np.float32], channels: int | None) -> NDArray[np.float32]:
    count = numbers.shape[-1]
    if channels in (count, None):
        return numbers
    if (count, channels) == (3, 1):
        return numbers @ LUMINANCE[:, None]
    if count == 1 and channels == 3:
        return np.repeat(numbers, 3, -1)
    raise Unreadable(f"{counted(count, 'channel')}, not {channels}")


def _plain(array: Raster) -> Raster:
    try:
        return plain(array)
    except ValueError as error:
        raise Unreadable(str(error)) from None


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Convert an image of any mode to 8-bit gray ("L") or "RGB".

    EXIF rotation and color profiles are applied, and transparent parts are blended with the background. 16-bit values
    are divided by 257; floating-point values must be in 0..1.

    Raises:
        Unreadable: values are out of range, or the EXIF data are broken.
    """
    if has_more_bits(image):
        return Image.fromarray(_reduced(_gray(image))[..., 0])
    image = to_srgb(upright(image))
    if image.has_transparency_data:
        return _blended(image, background)
    return _converted(image, "L" if image.mode in ("1", "L") else "RGB")


def _blended(image: Image.Image, background: str) -> Image.Image:
    """An image with transparency on a background, converted in strips: the steps take 16 bytes for each pixel."""
    result, top = Image.new("RGB", image.size), 0
    for strip in strips(image):
        paper = Image.new("RGBA", strip.size, color(background))
        result.paste(Image.alpha_composite(paper, strip.convert("RGBA")).convert("RGB"), (0, top))
        top += strip.height
    return result


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """Rows of an image, some millions of pixels at a time."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows)))


def to_rgba(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit "RGBA"; like `to_rgb`, but transparency is kept.

    Raises:
        Unreadable: values are out of range, or the EXIF data are broken.
    """
    return _converted(to_rgb(image) if has_more_bits(image) else to_srgb(upright(image)), "RGBA")


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation of an image.

    Raises:
        Unreadable: the EXIF data are broken.
    """
    try:
        return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow parses EXIF data only now, and raises exceptions of many types
        raise Unreadable(f"broken EXIF data ({error})") from error


def _gray(image: Image.Image) -> Raster:
    """The numbers (H, W, 1) of an image of one channel, as it is displayed."""
    try:
        numbers = gray_numbers(image)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    try:
        orientation = image.getexif().get(ORIENTATION, 1)  # Pillow has turned TIFF images already, and says so here
    except Exception as error:
        raise Unreadable(f"broken EXIF data ({error})") from error
    return turned(numbers[..., None], orientation)


def _reduced(array: Raster) -> NDArray[np.uint8]:
    """Scale numbers from 0..65535, or floats from 0..1, to 0..255.

    Others are rejected, because clipping them would go unnoticed.
    """
    if array.dtype == np.uint8:
        return array
    top = 1 if array.dtype.kind == "f" else 65535
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= top):  # also true of NaN
        raise Unreadable(f"values from {low:g} to {high:g}, not within 0..{top}")
    result = np.empty(array.shape, np.uint8)
    rows = max(1, STRIP // math.prod(array.shape[1:]))
    for start in range(0, len(array), rows):  # as float64 at once, an image would take 24 bytes for each number
        part = slice(start, start + rows)
        result[part] = (array[part].astype(np.float64) * (255 / top)).round()
    return result


def color(name: str) -> tuple[int, ...]:
    """The RGB values 0..255 of a color, which is a name or #rrggbb."""
    try:
        return ImageColor.getrgb(name)[:3]  # a background cannot be transparent itself
    except ValueError:
        raise InputError(f'background "{name}" is not a color; give a name such as white, or #rrggbb') from None


def halved(image: Image.Image, height: int, width: int) -> Image.Image:
    """Halve an image with a box filter while both sides are at least twice the given height and width."""
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def crop(image: Image.Image, size: tuple[int, int], fill: Callable[[str], Fill]) -> Image.Image:
    """Resize to cover the target size, and crop the center."""
    height, width = size
    image = halved(image, height, width)
    scale = max(height / image.height, width / image.width)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if (pixels := covering[0] * covering[1]) > MAX_PIXELS:  # a narrow image
        raise Unreadable(f"would have {pixels:,} pixels when it is resized to cover {height}x{width}")
    image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def letterbox(image: Image.Image, size: tuple[int, int], fill: Callable[[str], Fill]) -> Image.Image:
    """Resize to fit into the target size, and add bars of the color that `fill` returns for the mode of the image."""
    height, width = size
    scale = min(height / image.height, width / image.width)
    inner = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    image = stretch(image, inner, fill)
    canvas: Image.Image = Image.new(image.mode, (width, height), fill(image.mode))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def stretch(image: Image.Image, size: tuple[int, int], fill: Callable[[str], Fill]) -> Image.Image:
    """Resize to the target size without keeping the aspect ratio."""
    height, width = size
    return halved(image, height, width).resize((width, height), Image.Resampling.BICUBIC)


FITS = {"crop": crop, "letterbox": letterbox, "stretch": stretch}
