"""Two colored shapes in relation, with captions: "a red circle left of a blue square". Nothing needs to be installed.

The two shapes of an image differ in color and in shape. Some pairs of a color and a shape are held out: each color
misses one shape, and each shape one color. Held-out images have such a pair as the first or the second shape.
"""

from itertools import product
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data.base import Dataset

COLORS = {
    "red": (230, 60, 50), "green": (60, 190, 80), "blue": (60, 110, 240), "yellow": (245, 215, 60),
    "purple": (170, 80, 215), "white": (245, 245, 245),
}  # fmt: skip
GROUND = (28, 28, 32)  # color of the background
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
RELATIONS = {"left of": (0.0, -1.0), "right of": (0.0, 1.0), "above": (-1.0, 0.0), "below": (1.0, 0.0)}
"""Relation of the first shape to the second one -> direction from the middle of the image, (down, right)."""
APART, ALONG, ACROSS = 0.25, 0.02, 0.12  # distance from the middle, and most deviations, as shares of the side
SIDES = (0.38, 0.46)  # least and largest side of a shape, as shares of the image
COUNT, HELD_OUT = 40_000, 4_000
SUFFIX, DEFAULT = "-held-out", 16
SUPERSAMPLING = 4


class Thing(NamedTuple):
    """A colored shape, as positions in `COLORS` and `SHAPES`."""

    color: int
    shape: int


THINGS = [Thing(*pair) for pair in product(range(len(COLORS)), range(len(SHAPES)))]


def is_held_out(thing: Thing) -> bool:
    """Whether a pair of color and shape is held out; each color and each shape is in one of these pairs."""
    return thing.shape == (thing.color + 2) % len(SHAPES)


@final
class ColoredShapes(Dataset):
    """RGB images (3, size, size) of two colored shapes, with captions; the classes are the relations."""

    def __init__(self, size: int = DEFAULT, held_out: bool = False, count: int | None = None, seed: int = 0) -> None:
        """Open the images for training, or those with held-out pairs.

        Args:
            size: height and width in pixels.
            held_out: whether each image has a held-out pair of color and shape.
            count: number of images.
            seed: decides everything that is random.

        Raises:
            InputError: the size is out of range.
        """
        if not 16 <= size <= 256:
            raise InputError(f"colored shapes of size {size}; give 16 to 256")
        self.classes, self.channels, self.size = [*RELATIONS], 3, (size, size)
        rng = np.random.default_rng([seed, int(held_out)])
        count = count or (HELD_OUT if held_out else COUNT)
        scenes = np.array(possible(held_out))
        self.scenes = torch.from_numpy(scenes[rng.integers(len(scenes), size=count)])
        """The truth (N, 3): positions of the two things in `THINGS`, and of the relation in `RELATIONS`."""
        self.places = torch.from_numpy(rng.uniform(-1, 1, (count, 2, 3)).astype(np.float32))
        self.labels = self.scenes[:, 2]
        self.held_out_name = "" if held_out else f"colored-shapes-{size}{SUFFIX}"

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(draw(self.scenes[indices], self.places[indices], self.size[0]), self.condition(indices))

    def captions(self, i: int) -> tuple[str, ...]:
        """The caption of image i, and the same with the shapes in the other order."""
        first, second, relation = self.scenes[i].tolist()
        names = [*RELATIONS]
        opposite = names[relation ^ 1]  # relations come in pairs of opposites
        return caption(first, names[relation], second), caption(second, opposite, first)


def open_colored_shapes(name: str) -> ColoredShapes:
    """Open "colored-shapes" (16x16 pixels) or "colored-shapes-SIZE", also with "-held-out".

    Raises:
        InputError: the name has no size from 16 to 256.
    """
    stem = name.removesuffix(SUFFIX).removeprefix("colored-shapes").removeprefix("-")
    if stem and not stem.isdecimal():
        raise InputError(f'data "{name}" has no size; give colored-shapes-SIZE, such as colored-shapes-32')
    return ColoredShapes(int(stem or DEFAULT), held_out=name.endswith(SUFFIX))


def possible(held_out: bool) -> list[tuple[int, int, int]]:
    """All scenes: two things that differ in color and shape, and a relation; with a held-out pair or without."""
    return [
        (i, j, relation)
        for (i, first), (j, second) in product(enumerate(THINGS), repeat=2)
        if first.color != second.color and first.shape != second.shape
        and (is_held_out(first) or is_held_out(second)) == held_out
        for relation in range(len(RELATIONS))
    ]  # fmt: skip


def caption(first: int, relation: str, second: int) -> str:
    """Two things, as positions in `THINGS`, and their relation in words."""
    return f"a {phrase(first)} {relation} a {phrase(second)}"


def phrase(thing: int) -> str:
    """A thing in words, such as "red circle"."""
    color, shape = THINGS[thing]
    return f"{[*COLORS][color]} {SHAPES[shape]}"


def draw(scenes: Tensor, places: Tensor, size: int) -> Tensor:
    """Images (B, 3, size, size) uint8 of scenes (B, 3) at places (B, 2, 3): side, deviation along and across, -1..1."""
    colors, ground = torch.tensor([*COLORS.values()]) / 255, torch.tensor(GROUND) / 255
    things, directions = torch.tensor(THINGS), torch.tensor([*RELATIONS.values()])[scenes[:, 2]]  # (B, 2)
    image = ground[:, None, None].expand(len(scenes), 3, size, size)
    for i, sign in enumerate((1, -1)):  # the second thing is opposite
        side = sum(SIDES) / 2 + places[:, i, 0] * (SIDES[1] - SIDES[0]) / 2
        along, across = APART + ALONG * places[:, i, 1], ACROSS * places[:, i, 2]
        center = 0.5 + sign * directions * along[:, None] + directions.flip(1) * across[:, None]
        thing = things[scenes[:, i]]
        cover = coverage(thing[:, 1], center, side, size)[:, None]
        image = torch.lerp(image, colors[thing[:, 0]][:, :, None, None].expand_as(image), cover)
    return image.mul(255).round().byte()


def coverage(shapes: Tensor, center: Tensor, side: Tensor, size: int) -> Tensor:
    """Share of each pixel (B, size, size) that shapes (B,) cover, at centers (B, 2) and with sides (B,) of shares."""
    fine = (torch.arange(size * SUPERSAMPLING) + 0.5) / (size * SUPERSAMPLING)
    down = ((fine - center[:, :1]) * 2 / side[:, None])[:, :, None]  # -1..1 within the shape
    right = ((fine - center[:, 1:]) * 2 / side[:, None])[:, None, :]
    across, radius = right.abs(), torch.hypot(down, right)
    square = torch.maximum(down.abs(), across)
    inside = torch.stack([
        radius <= 1,
        square <= 0.88,
        (down <= 0.9) & (across <= (down + 1) / 1.9),
        down.abs() + across <= 1,
        (torch.minimum(down.abs(), across) <= 0.32) & (square <= 1),
        (radius <= 1) & (radius >= 0.5),
    ], 1)  # fmt: skip
    chosen = inside[torch.arange(len(shapes)), shapes].float()
    return F.avg_pool2d(chosen[:, None], SUPERSAMPLING)[:, 0]
