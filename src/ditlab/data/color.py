"""Convert images with an embedded ICC color profile to sRGB, as color-managed readers do.

The profile is applied with the perceptual intent (relative colorimetric if the profile has no tables). Images without a
profile, and those whose profile is sRGB, keep their bits. The chunks gAMA and cHRM of PNG files are ignored: most files
that have them were written with wrong values, and viewers differ in whether they follow them.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

from ditlab.core.errors import InputError

State = Literal["", "converted", "broken", "unused"]
"""What happens to the color profile of an image: there is none, or it is sRGB; the image is converted; the profile is
broken or does not fit the image, which is then read as sRGB; the image has more than 8 bits and is not converted."""
SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
BASES = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK", "LAB": "LAB"}
"""Mode -> the mode that a profile applies to; RGB for all other modes of 8 bits."""
GRID = 9  # levels of each channel with which a profile is compared with sRGB


@dataclass(frozen=True)
class Conversion:
    """How the images of a mode with a profile become sRGB."""

    state: State
    transform: ImageCms.ImageCmsTransform | None = None
    table: tuple[int, ...] = ()
    """The new value of each gray value, instead of a transform."""


def has_more_bits(image: Image.Image) -> bool:
    """Whether an image of Pillow has one channel of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def profile_state(image: Image.Image) -> State:
    """What `to_srgb` does with the color profile of an image, which need not be decoded."""
    profile = image.info.get("icc_profile")
    if not profile:
        return ""
    if has_more_bits(image):
        return "unused"
    return _conversion(profile, BASES.get(image.mode, "RGB")).state


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image with a color profile to sRGB; other images are returned as they are.

    Args:
        image: of any mode. Gray images stay gray and transparency is kept; CMYK and Lab become RGB.
    """
    if profile_state(image) != "converted":
        return image
    conversion = _conversion(image.info["icc_profile"], BASES.get(image.mode, "RGB"))
    if conversion.table:
        return _toned(image, conversion.table)
    if image.mode not in ("RGB", "RGBA", "CMYK", "LAB"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode == "RGB" and image.has_transparency_data:  # one color is transparent
        image = image.convert("RGBA")
    assert conversion.transform is not None
    if image.mode != "RGBA":
        return conversion.transform.apply(image)
    converted = conversion.transform.apply(image.convert("RGB"))
    converted.putalpha(image.getchannel("A"))
    return converted


def _toned(image: Image.Image, table: tuple[int, ...]) -> Image.Image:
    """A gray image with other gray values; transparency is kept."""
    if image.mode == "1" or (image.mode == "L" and not image.has_transparency_data):
        return image.convert("L").point(table)
    gray, alpha = image.convert("LA").split()
    return Image.merge("LA", (gray.point(table), alpha))


@lru_cache(maxsize=64)
def _conversion(profile: bytes, mode: str) -> Conversion:
    """The conversion of images of a mode (L, RGB, CMYK or LAB) with a profile; building it takes milliseconds."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = SPACES.get(opened.profile.xcolor_space, "")
        if space != mode and (mode, space) != ("L", "RGB"):  # a gray image with a profile of RGB has its tone curve
            return Conversion("broken")
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE  # exact, and used once for a table
        transform = ImageCms.buildTransform(opened, _srgb(), space, "RGB", flags=flags)
        if mode == "L":
            ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
            toned = np.asarray(transform.apply(ramp.convert(space)).convert("L"))[0]
            same = np.abs(toned.astype(int) - np.arange(256)).max() <= 1
            return Conversion("") if same else Conversion("converted", table=tuple(toned.tolist()))
        if mode == "RGB" and _changes_little(transform):
            return Conversion("")
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return Conversion("broken")
    return Conversion("converted", transform)


def _changes_little(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform to sRGB changes no color by more than two of 255 levels, which is rounding."""
    levels = np.linspace(0, 255, GRID).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(GRID, -1, 3)
    converted = np.asarray(transform.apply(Image.fromarray(colors))).astype(int)
    return bool(np.abs(converted - colors).max() <= 2)


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    try:
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    except ImportError:  # Pillow can be built without it
        raise InputError("Pillow lacks LittleCMS, with which color profiles are read; install Pillow's wheel") from None
