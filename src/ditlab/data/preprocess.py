"""Resize images of any mode and size to uint8 arrays of one shape.

"crop" is the preprocessing of ADM and DiT: halve with a box filter while both sides are at least twice the target,
resize bicubically to cover the target, and crop the center. "letterbox" pads, "stretch" changes the aspect ratio.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from ditlab.core.errors import InputError, lookup
from ditlab.data.sources.base import Unreadable

Fit = Literal["crop", "letterbox", "stretch"]


@dataclass(frozen=True)
class Preprocess:
    """Settings with which images are brought to one size."""

    size: tuple[int, int]  # (height, width)
    fit: Fit = "crop"
    flip: bool = False  # add a mirrored copy of each image
    background: str = "white"  # color of transparent parts, and of the bars of letterboxed images
    channels: int = 3

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise InputError(f"size {self.size[0]}x{self.size[1]}; give sides of 1 or more")
        if self.channels not in (1, 3):
            raise InputError(f"channels is {self.channels}; give 1 for gray or 3 for RGB")
        lookup(FITS, self.fit, "fit")
        color(self.background)

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize an image to an array (height, width, channels) uint8.

        Raises:
            Unreadable: values are out of range, or the EXIF data are broken.
        """
        fitted = FITS[self.fit](to_rgb(image, self.background), self.size, self.background)
        return as_array(fitted, self.channels)


def as_array(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """The pixels of an image as an array (height, width, channels) uint8, with 1 or 3 channels."""
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Convert an image of any mode to 8-bit gray ("L") or "RGB".

    EXIF rotation is applied, and transparent parts are blended with the background. 16-bit values are divided by 257;
    floating-point values must be in 0..1.

    Raises:
        Unreadable: values are out of range, or the EXIF data are broken.
    """
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow parses EXIF data only now, and raises exceptions of many types
        raise Unreadable(f"broken EXIF data ({error})") from error
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        return _eight_bits(image, 65535)
    if image.mode == "F":
        return _eight_bits(image, 1)
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, color(background))
        return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _eight_bits(image: Image.Image, top: int) -> Image.Image:
    """Scale gray values from 0..top to 0..255; other values are rejected, because clipping them would go unnoticed."""
    values = np.asarray(image).astype(np.float64)
    if not (values.min() >= 0 and values.max() <= top):  # also true of NaN
        raise Unreadable(f"values from {values.min():g} to {values.max():g}, not within 0..{top}")
    return Image.fromarray((values * (255 / top)).round().astype(np.uint8))


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


def crop(image: Image.Image, size: tuple[int, int], background: str) -> Image.Image:
    """Resize to cover the target size, and crop the center."""
    height, width = size
    image = halved(image, height, width)
    scale = max(height / image.height, width / image.width)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def letterbox(image: Image.Image, size: tuple[int, int], background: str) -> Image.Image:
    """Resize to fit into the target size, and add bars of the background color."""
    height, width = size
    scale = min(height / image.height, width / image.width)
    inner = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    image = stretch(image.convert("RGB"), inner, background)
    canvas = Image.new("RGB", (width, height), color(background))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def stretch(image: Image.Image, size: tuple[int, int], background: str) -> Image.Image:
    """Resize to the target size without keeping the aspect ratio."""
    height, width = size
    return halved(image, height, width).resize((width, height), Image.Resampling.BICUBIC)


FITS = {"crop": crop, "letterbox": letterbox, "stretch": stretch}
