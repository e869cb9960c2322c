"""Rendered letters in the DejaVu fonts, at any size from 16x16 to 256x256 pixels.

Position, scale, rotation, stroke and colors of image i depend on (seed, i) only, and not on the size: the same image
has finer detail at a larger size. Images are rendered when they are first read; nothing is stored on disk.
"""

import importlib.util
import string
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data.base import Dataset
from ditlab.data.kept import Kept

CLASSES = list(string.ascii_uppercase)
FACES = [
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
]  # fmt: skip
COUNT, HELD_OUT = 50_000, 2600
SUPERSAMPLING = 3  # letters are rendered at this multiple of the size and reduced, which smooths their edges
MARGIN = 0.04  # share of the side that stays free around every letter
SUFFIX = "-held-out"


class Appearance(NamedTuple):
    """The random properties of an image; lengths are shares of its side."""

    letter: int
    face: int
    height: float
    angle: float  # degrees
    stroke: float
    across: float  # horizontal position within the free space, from 0 (left) to 1 (right)
    down: float  # vertical position, from 0 (top) to 1 (bottom)
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]


@final
class Glyphs(Dataset):
    """RGB images (3, size, size) of the letters A to Z, in equal numbers."""

    features = "glyphs"

    def __init__(self, size: int = 32, count: int = COUNT, seed: int = 0, held_out: bool = False) -> None:
        """A data set of `count` letters; held-out letters of a seed differ from its training letters.

        Args:
            size: height and width in pixels.
            count: number of images.
            seed: seed of all random properties.
            held_out: whether the letters are held-out ones.

        Raises:
            InputError: size, count or seed is out of range, or matplotlib, which provides the fonts, is not installed.
        """
        if not 16 <= size <= 256:
            raise InputError(f"glyphs of size {size}; give 16 to 256")
        for name, value in (("count", count), ("seed", seed)):
            if value < 0:
                raise InputError(f"glyphs with {name} {value}; give 0 or more")
        font_folder()
        self.classes, self.channels, self.size = CLASSES, 3, (size, size)
        self.labels = torch.arange(count) % len(CLASSES)
        self.held_out_name = "" if held_out else f"glyphs-{size}{SUFFIX}"
        self.stream = [seed, int(held_out)]
        self.kept = Kept(count)
        self.pool = ThreadPoolExecutor() if size >= 64 else None  # smaller images are too quick for threads to pay off

    def appearance(self, i: int) -> Appearance:
        """The random properties of image i, the same at every size."""
        return random_appearance(np.random.default_rng([*self.stream, i]), int(self.labels[i]))

    def fetch(self, indices: Tensor) -> Batch:
        apply = map if self.pool is None else self.pool.map
        arrays = np.empty((len(indices), *self.size, 3), np.uint8)  # (B, H, W, 3)
        for row, image in zip(arrays, apply(lambda i: self.kept.get(i, self._render), indices.tolist()), strict=True):
            row[:] = image
        return Batch(torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous(), self.condition(indices))

    def _render(self, i: int) -> NDArray[np.uint8]:
        return np.asarray(render(self.appearance(i), self.size[0]))


def open_glyphs(name: str) -> Glyphs:
    """Open the data set "glyphs-SIZE", or "glyphs-SIZE-held-out" with letters that are never used in training.

    Raises:
        InputError: the name has no size from 16 to 256.
    """
    held_out = name.endswith(SUFFIX)
    size = name.removesuffix(SUFFIX).removeprefix("glyphs-")
    if not size.isdecimal():
        raise InputError(f'data "{name}" has no size; give glyphs-SIZE, such as glyphs-32{SUFFIX if held_out else ""}')
    return Glyphs(int(size), HELD_OUT, held_out=True) if held_out else Glyphs(int(size))


def random_appearance(rng: np.random.Generator, letter: int) -> Appearance:
    """Sample the properties of a letter; another order of the random numbers would give another data set."""
    height, angle, stroke = rng.uniform(0.5, 0.85), rng.uniform(-20, 20), rng.uniform(0, 0.03)
    across, down = rng.uniform(0, 1, 2)
    face = int(rng.integers(len(FACES)))
    dark, light = rng.integers(0, 110, 3), rng.integers(145, 256, 3)
    ink, paper = (dark, light) if rng.random() < 0.5 else (light, dark)
    colors = tuple(ink.tolist()), tuple(paper.tolist())
    return Appearance(letter, face, height, angle, stroke, across, down, *colors)


def render(appearance: Appearance, size: int) -> Image.Image:
    """Render a letter as an image (size, size); it lies entirely inside the image."""
    mask = letter_mask(appearance, size * SUPERSAMPLING)
    image = Image.new("RGB", (size, size), appearance.paper)
    image.paste(appearance.ink, (0, 0), mask.reduce(SUPERSAMPLING))
    return image


def letter_mask(appearance: Appearance, side: int) -> Image.Image:
    """Coverage (side, side) of the rotated letter, which is shrunk if it does not fit."""
    margin = SUPERSAMPLING * max(1, round(side / SUPERSAMPLING * MARGIN))  # at least one pixel of the final image
    space = side - 2 * margin
    letter = tight_letter(appearance, side).rotate(appearance.angle, Image.Resampling.BILINEAR, expand=True)
    letter = letter.crop(letter.getbbox())
    if max(letter.size) > space:
        shrink = space / max(letter.size)
        letter = letter.resize([max(1, int(length * shrink)) for length in letter.size], Image.Resampling.BILINEAR)
    left = margin + round(appearance.across * (space - letter.width))
    top = margin + round(appearance.down * (space - letter.height))
    mask = Image.new("L", (side, side))
    mask.paste(letter, (left, top))
    return mask


def tight_letter(appearance: Appearance, side: int) -> Image.Image:
    """The upright letter, cropped to its ink; its height is the share `appearance.height` of the side."""
    points = round(appearance.height * side / 0.73)  # capitals of DejaVu are 0.73 em high
    stroke = round(appearance.stroke * side)
    letter, font = CLASSES[appearance.letter], face(FACES[appearance.face], points)
    left, top, right, bottom = font.getbbox(letter, stroke_width=stroke)
    canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), letter, fill=255, font=font, stroke_width=stroke, stroke_fill=255)
    return canvas


@lru_cache(maxsize=600)  # images of 32 pixels need 600 fonts; one takes 0.2 MB, and 256 pixels would need 4,000
def face(name: str, points: int) -> ImageFont.FreeTypeFont:
    """A font at a size. The basic layout makes images independent of optional text libraries."""
    return ImageFont.truetype(font_folder() / f"{name}.ttf", points, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def font_folder() -> Path:
    """The folder of matplotlib's fonts; matplotlib is located and not imported, which would take a second."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise InputError("glyphs are rendered with the fonts of matplotlib; pip install 'ditlab[glyphs]'")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
