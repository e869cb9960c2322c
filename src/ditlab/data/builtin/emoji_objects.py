"""What captioned emoji show: the name of each object, the colors and skin tones that it comes in, and their glyphs.

Names are those of Unicode's CLDR, in lower case. An object with one clear hue also comes in other colors: its hue is
turned about the gray axis, which leaves black outlines, white and gray as they are. People come in skin tones.
"""

import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ditlab.data.builtin.emoji import font_file

HUES = {"red": 0.0, "yellow": 50.0, "green": 120.0, "blue": 220.0, "purple": 285.0}
"""Colors of objects, as angles about the gray axis in degrees."""
NEAR = 22.0  # degrees up to which an object has one of these colors from the start
COLORED, UNIFORM = 0.3, 0.8  # least share of an emoji that has color, and least agreement of its hues, to turn them
BRIGHT = 0.45  # least brightness of its color, 0..1, for a yellow variant; a dark yellow is brown
WORDS = (*HUES, "orange", "pink", "brown", "black", "white", "grey", "light blue")
TONE = re.compile(r"_(light|medium-light|medium|medium-dark|dark)_skin_tone")
HUE_SIDE, SIDE = 40, 160  # pixels of the glyph from which the hue is measured, and from which images are made


class Variant(NamedTuple):
    """An appearance of an object."""

    word: str
    """Its color or skin tone; empty if it is not named."""
    text: str
    """The code points of its emoji."""
    turn: float = 0.0
    """Degrees by which its hue is turned."""


class Shown(NamedTuple):
    """An object and its appearances."""

    name: str
    variants: tuple[Variant, ...]
    """The first one is that of the font; the others have another color or skin tone."""
    tones: bool
    """Whether its variants are skin tones."""

    def phrase(self, variant: int) -> str:
        """The object in words: "apple", "blue apple" or "astronaut with dark skin"."""
        word = self.variants[variant].word
        if not word:
            return self.name
        return f"{self.name} with {word} skin" if self.tones else f"{word} {self.name}"


def plain_name(name: str) -> str:
    """A name of the package emoji as words of ASCII letters: ":piñata:" is "pinata"."""
    text = name.strip(":").replace("_", " ").lower()
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


@lru_cache(maxsize=4)
def objects_of(emoji: tuple[str, ...]) -> tuple[Shown, ...]:
    """The objects that some emoji show, in the order of the emoji; a name that comes again is left out.

    Args:
        emoji: the emoji, with all skin tones that are to be shown.
    """
    from emoji import EMOJI_DATA

    known: dict[str, list[Variant]] = {}
    tones: dict[str, list[Variant]] = {}
    for text in emoji:
        full = EMOJI_DATA[text]["en"]
        found = TONE.findall(full)
        if len(found) > 1:
            continue  # couples of two skin tones
        name = plain_name(TONE.sub("", full))
        (tones if found else known).setdefault(name, []).append(Variant(found[0] if found else "", text))
    plain = [(name, variants[0].text) for name, variants in known.items()]
    with ThreadPoolExecutor() as pool:
        colors = list(pool.map(lambda pair: None if pair[0] in tones else clear_color(glyph(pair[1], HUE_SIDE)), plain))
    objects: dict[str, Shown] = {}
    for (name, text), color in zip(plain, colors, strict=True):
        shown = with_tones(name, text, tones[name]) if name in tones else with_colors(name, text, color)
        objects.setdefault(shown.name, shown)
    return tuple(objects.values())


def with_tones(name: str, text: str, tones: Sequence[Variant]) -> Shown:
    """A person, or a part of one, without a skin tone and in all of them."""
    return Shown(name, (Variant("", text), *sorted(tones, key=lambda tone: tone.word)), tones=True)


def with_colors(name: str, text: str, color: tuple[float, float] | None) -> Shown:
    """An object in all colors if it has one clear color (its hue and brightness), otherwise as it is.

    The color in a name such as "red apple" is left out if the object comes in others.
    """
    if color is None:
        return Shown(name, (Variant("", text),), tones=False)
    hue, brightness = color
    name = next((name.removeprefix(f"{word} ") for word in WORDS if name.startswith(f"{word} ")), name)
    distances = {word: abs((goal - hue + 180) % 360 - 180) for word, goal in HUES.items()}
    own = min(distances, key=lambda word: distances[word])
    own = own if distances[own] <= NEAR else ""
    others = [word for word in HUES if word != own and (word != "yellow" or brightness >= BRIGHT)]
    turned = (Variant(word, text, (HUES[word] - hue) % 360) for word in others)
    return Shown(name, (Variant(own, text), *turned), tones=False)


@lru_cache(maxsize=8)
def font(side: int) -> ImageFont.FreeTypeFont:
    """The color font at a size in pixels."""
    return ImageFont.truetype(font_file(), side, layout_engine=ImageFont.Layout.RAQM)


def glyph(text: str, side: int) -> NDArray[np.float32]:
    """An emoji (n, n, 4) in the middle of a square that it fills in one direction: RGB times alpha, and alpha, 0..1."""
    canvas = Image.new("RGBA", (2 * side, 2 * side), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((side // 3, side // 3), text, font=font(side), embedded_color=True)
    cut = canvas.crop(canvas.getbbox())
    length = max(cut.size)
    square = Image.new("RGBA", (length, length), (0, 0, 0, 0))
    square.paste(cut, ((length - cut.width) // 2, (length - cut.height) // 2))
    values: NDArray[np.float32] = np.asarray(square, np.float32) / np.float32(255)
    values[..., :3] *= values[..., 3:]
    return values


def hue_angles(rgb: NDArray[np.float32]) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Cosine-like and sine-like parts of colors (..., 3) in the plane across the gray axis."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return red - (green + blue) / 2, (green - blue) * np.float32(np.sqrt(0.75))


def clear_color(values: NDArray[np.float32]) -> tuple[float, float] | None:
    """The hue of an emoji (n, n, 4) in degrees, and the brightness of its color, 0..1.

    None if too little of it has color, or if it has several hues.
    """
    x, y = hue_angles(values[..., :3])
    strength = np.hypot(x, y)
    colored = strength > 0.2
    if colored.sum() < COLORED * (values[..., 3] > 0.5).sum():
        return None
    across, along = x[colored].sum(), y[colored].sum()
    if np.hypot(across, along) < UNIFORM * strength[colored].sum():
        return None
    return float(np.degrees(np.arctan2(along, across)) % 360), float(values[..., :3][colored].mean())


def turning(degrees: float) -> NDArray[np.float32]:
    """The matrix (3, 3) that turns colors about the gray axis; 120 degrees make red green."""
    angle = np.radians(degrees)
    third, part = (1 - np.cos(angle)) / 3, np.sin(angle) / np.sqrt(3)
    a, b, c = np.cos(angle) + third, third - part, third + part
    return np.array([[a, b, c], [c, a, b], [b, c, a]], np.float32)
