"""Read what an image of two colored shapes shows: colors by direction from the background, shapes by templates."""

from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.data.builtin.colored_shapes import COLORS, GROUND, RELATIONS, SHAPES, SIDES, THINGS, ColoredShapes, coverage

SIDE = 32  # pixels at which shapes are compared
WINDOW = 20  # side of the square around a shape in which it is compared
FAINT = 0.25  # cover of a pixel that does not count, 0..1
LEAST = 0.02  # share of the image that a shape covers at least
SCALES, OFFSETS = (0.0, 0.25, 0.5, 0.75, 1.0), (-0.5, -0.25, 0.0, 0.25, 0.5)  # of templates: between `SIDES`, in pixels


class Read(NamedTuple):
    """What images show: the left or upper shape first."""

    colors: Tensor  # (N, 2) int64, in `COLORS`; -1 where there are no two shapes
    shapes: Tensor  # (N, 2) int64, in `SHAPES`
    upright: Tensor  # (N,) bool, whether one shape is above the other


class ShapeReader:
    """Reads images of two colored shapes.

    Args:
        data: the data set, training or held-out.
    """

    def __init__(self, data: ColoredShapes) -> None:
        self.data = data
        self.ground = torch.tensor(GROUND) / 255
        self.rays = torch.tensor([*COLORS.values()]) / 255 - self.ground  # (K, 3)
        size = data.size[0]
        cases = torch.tensor([*product(range(len(SHAPES)), SCALES, OFFSETS, OFFSETS)])  # (T, 4)
        side = SIDES[0] + (SIDES[1] - SIDES[0]) * cases[:, 1]
        cover = coverage(cases[:, 0].long(), 0.5 + cases[:, 2:] / size, side, size)
        self.templates, self.template_shapes = windows(resized(cover[:, None])[:, 0]), cases[:, 0].long()

    @torch.inference_mode()
    def read(self, images: Tensor) -> Read:
        """Read images (N, 3, H, W) uint8."""
        x = resized(images.float() / 255)
        difference = x - self.ground[:, None, None]
        directions = torch.einsum("kc,nchw->nkhw", F.normalize(self.rays), difference)  # along each color
        nearest = directions.argmax(1, keepdim=True)
        share = (directions / self.rays.norm(dim=1)[:, None, None]).clamp(0, 1)
        cover = share * (nearest == torch.arange(len(COLORS))[:, None, None])  # (N, K, S, S)
        area, colors = cover.mean((2, 3)).topk(2, dim=1)  # (N, 2)
        chosen = cover[torch.arange(len(x))[:, None], colors]  # (N, 2, S, S)
        similar = windows(chosen.flatten(0, 1)) @ self.templates.T  # (2 N, T)
        shapes = torch.unflatten(self.template_shapes[similar.argmax(1)], 0, (-1, 2))
        first, second = centers(chosen[:, 0]), centers(chosen[:, 1])
        apart = second - first  # (N, 2): down, right
        upright = apart[:, 0].abs() > apart[:, 1].abs()
        reversed_order = torch.where(upright, apart[:, 0], apart[:, 1]) < 0
        order = torch.stack([reversed_order, ~reversed_order], 1).long()
        colors = colors.gather(1, order).where((area > LEAST).all(1, keepdim=True), -1)
        return Read(colors, shapes.gather(1, order), upright)

    def outcomes(self, images: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Whether images (N, 3, H, W) uint8 show the scenes with these indices (N,), aspect by aspect: (N,) bool each.

        "colors" and "shapes" are the two that are asked for, wherever they are. "swapped" has the colors exchanged and
        all else right: an error of binding. "relation" has both things right in wrong places.
        """
        read, scenes = self.read(images), self.data.scenes[indices]
        directions = torch.tensor([*RELATIONS.values()])[scenes[:, 2]]  # (N, 2)
        upright = directions[:, 0] != 0
        second_first = directions.sum(1) > 0  # the first thing of the caption is the right or the lower one
        things = torch.tensor(THINGS)[torch.where(second_first[:, None], scenes[:, :2].flip(1), scenes[:, :2])]
        colors, shapes = things[:, :, 0], things[:, :, 1]  # (N, 2), the left or upper one first

        def same(a: Tensor, b: Tensor) -> Tensor:
            return (a == b).all(1)

        in_place, axis = same(read.shapes, shapes) & same(read.colors, colors), read.upright == upright
        crossed = same(read.shapes, shapes.flip(1)) & same(read.colors, colors.flip(1))
        return {
            "colors": same(read.colors.sort(1).values, colors.sort(1).values),
            "shapes": same(read.shapes.sort(1).values, shapes.sort(1).values),
            "all": in_place & axis,
            "swapped": axis & same(read.shapes, shapes) & same(read.colors, colors.flip(1)),
            "relation": crossed | (in_place & ~axis),
        }


def resized(images: Tensor) -> Tensor:
    """Images (N, C, H, W) with the side at which shapes are compared."""
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)


def solid(cover: Tensor) -> Tensor:
    """Covers (N, S, S) without their faint parts."""
    return cover * (cover > FAINT)


def centers(cover: Tensor) -> Tensor:
    """The centers of mass (N, 2) of covers (N, S, S), in pixels."""
    cover = solid(cover)
    weight = cover / cover.sum((1, 2), keepdim=True).clamp(min=1e-6)
    steps = torch.arange(SIDE) + 0.5
    return torch.stack([(weight.sum(2) * steps).sum(1), (weight.sum(1) * steps).sum(1)], 1)


def windows(cover: Tensor) -> Tensor:
    """Squares around the centers of covers (N, S, S), as vectors of length 1: (N, pixels)."""
    padded = F.pad(solid(cover), (WINDOW // 2,) * 4)
    steps = centers(cover).round().long()[:, :, None] + torch.arange(WINDOW)  # (N, 2, window), after padding
    rows, columns = steps[:, 0, :, None], steps[:, 1, None]
    return F.normalize(padded[torch.arange(len(cover))[:, None, None], rows, columns].flatten(1))
