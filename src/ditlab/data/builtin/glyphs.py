"""A built-in data set that scales: letters in the faces of the DejaVu fonts, at any size from 16 to 256.

Place, scale, rotation, stroke and colours of picture i are drawn from (seed, i) alone and do not depend on the size,
so a picture is the same everywhere, in any batch, and only finer when larger. Nothing is stored.
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
from ditlab.core.types import Batch, Condition
from ditlab.data.base import Dataset

CLASSES = list(string.ascii_uppercase)
FACES = [
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
]  # fmt: skip
COUNT, HELD_OUT = 50_000, 2600
FINER = 3  # letters are drawn so many times larger and reduced, which smooths their edges
MARGIN = 0.04  # share of the side that stays free around every letter


class Look(NamedTuple):
    """All that is drawn for a picture; lengths are shares of its side."""

    letter: int
    face: int
    height: float
    angle: float  # degrees
    stroke: float
    across: float  # place within the free room, 0 left to 1 right
    down: float
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]


@final
class Glyphs(Dataset):
    """RGB pictures (3, size, size) of the letters A to Z, in equal numbers."""

    def __init__(self, size: int = 32, count: int = COUNT, seed: int = 0, held_out: bool = False) -> None:
        """The held-out pictures of a seed are never among its training pictures.

        Raises:
            InputError: a size, count or seed that is not supported, or matplotlib (whose fonts these are) missing.
        """
        if not 16 <= size <= 256:
            raise InputError(f"glyphs of size {size}; give 16 to 256")
        for name, value in (("count", count), ("seed", seed)):
            if value < 0:
                raise InputError(f"glyphs with {name} {value}; give 0 or more")
        font_folder()
        self.classes, self.channels, self.size = CLASSES, 3, (size, size)
        self.labels = torch.arange(count) % len(CLASSES)
        self.stream = [seed, int(held_out)]
        self.pool = ThreadPoolExecutor() if size >= 64 else None  # below, threads would wait for each other

    def look(self, i: int) -> Look:
        """What picture i shows, the same at every size."""
        return draw_look(np.random.default_rng([*self.stream, i]), int(self.labels[i]))

    def fetch(self, indices: Tensor) -> Batch:
        each = map if self.pool is None else self.pool.map
        arrays = np.empty((len(indices), *self.size, 3), np.uint8)  # (B, H, W, 3)
        for row, picture in zip(arrays, each(self._draw, indices.tolist()), strict=True):
            row[:] = picture
        return Batch(torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous(), Condition(label=self.labels[indices]))

    def _draw(self, i: int) -> NDArray[np.uint8]:
        return np.asarray(render(self.look(i), self.size[0]))


def named_glyphs(name: str) -> Glyphs:
    """The data set called "glyphs" (32 pixels) or "glyphs-SIZE"; with "-held-out", letters that no training sees.

    Raises:
        InputError: a name without a size from 16 to 256.
    """
    whole = name.removesuffix("-held-out")
    size = "32" if whole == "glyphs" else whole.removeprefix("glyphs-")
    if not size.isdecimal():  # "glyphs-" too
        raise InputError(f'data "{name}"; give glyphs-SIZE, such as glyphs-32')
    return Glyphs(int(size)) if whole == name else Glyphs(int(size), HELD_OUT, held_out=True)


def draw_look(chance: np.random.Generator, letter: int) -> Look:
    """Draw everything but the letter; another order of the draws would be another data set."""
    height, angle, stroke = chance.uniform(0.5, 0.85), chance.uniform(-20, 20), chance.uniform(0, 0.03)
    across, down = chance.uniform(0, 1, 2)
    face = int(chance.integers(len(FACES)))
    dark, light = chance.integers(0, 110, 3), chance.integers(145, 256, 3)
    ink, paper = (dark, light) if chance.random() < 0.5 else (light, dark)
    return Look(letter, face, height, angle, stroke, across, down, tuple(ink.tolist()), tuple(paper.tolist()))


def render(look: Look, size: int) -> Image.Image:
    """The picture (size, size) of a look; the letter lies wholly inside."""
    mask = letter_mask(look, size * FINER)
    picture = Image.new("RGB", (size, size), look.paper)
    picture.paste(look.ink, (0, 0), mask.reduce(FINER))
    return picture


def letter_mask(look: Look, side: int) -> Image.Image:
    """The turned letter as coverage (side, side), shrunk where it would not fit."""
    margin = FINER * max(1, round(side / FINER * MARGIN))  # a whole pixel of the finished picture at least
    room = side - 2 * margin
    letter = tight_letter(look, side).rotate(look.angle, Image.Resampling.BILINEAR, expand=True)
    letter = letter.crop(letter.getbbox())
    if max(letter.size) > room:
        shrink = room / max(letter.size)
        letter = letter.resize([max(1, int(length * shrink)) for length in letter.size], Image.Resampling.BILINEAR)
    left = margin + round(look.across * (room - letter.width))
    top = margin + round(look.down * (room - letter.height))
    mask = Image.new("L", (side, side))
    mask.paste(letter, (left, top))
    return mask


def tight_letter(look: Look, side: int) -> Image.Image:
    """The upright letter, cropped to its ink; its capital height is `look.height` of the side."""
    points = round(look.height * side / 0.73)  # capitals of DejaVu are 0.73 em high
    stroke = round(look.stroke * side)
    font = face(FACES[look.face], points)
    left, top, right, bottom = font.getbbox(CLASSES[look.letter], stroke_width=stroke)
    canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(canvas).text(
        (1 - left, 1 - top), CLASSES[look.letter], fill=255, font=font, stroke_width=stroke, stroke_fill=255
    )
    return canvas


@lru_cache(maxsize=600)  # all that 32 pixels need; an open font takes 0.2 MB, and 256 pixels would open 4,000
def face(name: str, points: int) -> ImageFont.FreeTypeFont:
    """A font in a size; the basic layout, so that pictures do not depend on optional text libraries."""
    return ImageFont.truetype(font_folder() / f"{name}.ttf", points, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def font_folder() -> Path:
    """Where matplotlib keeps its fonts; it is found but not imported, which would take a second."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        raise InputError("glyphs are drawn with the fonts that matplotlib brings; pip install 'ditlab[glyphs]'")
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
