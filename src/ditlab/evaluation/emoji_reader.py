"""Read what an image of an emoji shows: the background, and the object and its color by comparison with true renders.

A true render is the object in one of its colors or skin tones, at one of the scales and places of the data set. Images
are compared at 16x16 pixels by the cosine of their differences from the background.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.data.builtin.emoji_captions import BACKGROUNDS, UNPLACED, VIEWS, EmojiCaptions, Renderer

SIDE = 16  # pixels at which images are compared
RENDERED = 2 * SIDE  # pixels at which true images are rendered, where a shift is a whole pixel
FAR = 40.0  # distance (0..255) from every background color, from which a background is not recognized
CLEAR = 0.88  # least cosine to the true render of an image that counts as clear
CHUNK = 40  # objects that are compared at a time


class Read(NamedTuple):
    """What images show, as positions in the lists of the data set."""

    background: Tensor  # (N,) int64, -1 for another color
    object: Tensor  # (N,) int64
    variant: Tensor  # (N,) int64
    cosines: Tensor  # (N, pairs) float32, to the most similar view of each object in each variant


class EmojiReader:
    """Reads images of the objects of a data set.

    Args:
        data: the data set, training or held-out.
    """

    def __init__(self, data: EmojiCaptions) -> None:
        self.data, self.renderer = data, Renderer(data.objects, RENDERED)
        self.pairs = torch.tensor([(i, v) for i, shown in enumerate(data.objects) for v in range(len(shown.variants))])
        self.colors = torch.tensor([*BACKGROUNDS.values()]) / 255  # (K, 3)
        self.views = len(VIEWS) if int(data.scenes[:, 3].max()) >= UNPLACED else UNPLACED

    @torch.inference_mode()
    def read(self, images: Tensor) -> Read:
        """Read images (N, 3, H, W) uint8, with equal sides of 16 pixels or more."""
        images = images.float() / 255
        frame = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], 2)
        around = frame.median(2).values  # (N, 3)
        distances = torch.cdist(around, self.colors)
        background = distances.argmin(1)
        color = self.colors[background]
        background = background.where(distances.amin(1) < FAR / 255, -1)
        small = F.interpolate(images, (SIDE, SIDE), mode="area")
        cosines = self.compare((small - around[:, :, None, None]).flatten(2), color)
        best = self.pairs[cosines.argmax(1)]
        return Read(background, best[:, 0], best[:, 1], cosines)

    def compare(self, differences: Tensor, color: Tensor) -> Tensor:
        """Cosines (N, pairs) between images and true renders on the same background, for the most similar view.

        Args:
            differences: (N, 3, pixels), images minus the background.
            color: (N, 3) the background.
        """
        # On a background c, a render minus its background is rgb - alpha c, so its products with an image are linear in
        # the layers.
        across = -torch.einsum("ncp,nc->np", differences, color)[:, None]
        query = torch.cat([differences, across], 1).flatten(1)  # (N, 4 pixels)
        length = differences.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None]
        parts = []
        for pairs in torch.split(self.pairs, CHUNK):
            layers = self.layers(pairs)  # (pairs, views, 4, pixels)
            rgb, alpha = layers[:, :, :3], layers[:, :, 3]
            squares = rgb.square().sum((2, 3)), alpha.square().sum(2), torch.einsum("pvcx,pvx->pvc", rgb, alpha)
            norms = squares[0] + color.square().sum(1)[:, None, None] * squares[1]
            norms = (norms - 2 * torch.einsum("nc,pvc->npv", color, squares[2])).clamp(min=1e-6).sqrt()
            products = query @ layers.flatten(2).flatten(0, 1).T
            products = torch.unflatten(products, 1, layers.shape[:2])  # (N, pairs, views)
            parts.append((products / norms).amax(2) / length)
        return torch.cat(parts, 1)

    def layers(self, pairs: Tensor) -> Tensor:
        """The renders of pairs (P, 2) of object and variant in all views: (P, views, 4, pixels)."""
        scenes = torch.zeros(len(pairs), self.views, 4, dtype=torch.long)
        scenes[:, :, :2], scenes[:, :, 3] = pairs[:, None], torch.arange(self.views)
        layers = self.renderer.layers(scenes.flatten(0, 1))
        small = F.avg_pool2d(layers, RENDERED // SIDE).flatten(2)
        return torch.unflatten(small, 0, (len(pairs), self.views))

    def outcomes(self, images: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Whether images (N, 3, H, W) uint8 show the scenes with these indices (N,), aspect by aspect: (N,) bool each.

        "both" is object and background, "all" also the color or skin tone of the object. "clear" images are at least
        0.88 similar to the true render. In "swapped" images, object and background have each other's color.
        """
        read, scenes = self.read(images), self.data.scenes[indices]
        right = {"object": read.object == scenes[:, 0], "background": read.background == scenes[:, 2]}
        right["variant"] = right["object"] & (read.variant == scenes[:, 1])
        right["both"] = right["object"] & right["background"]
        right["all"] = right["variant"] & right["background"]
        position = {(i, v): row for row, (i, v) in enumerate(self.pairs.tolist())}
        rows = torch.tensor([position[i, v] for i, v in scenes[:, :2].tolist()])
        right["clear"] = right["all"] & (read.cosines.gather(1, rows[:, None])[:, 0] >= CLEAR)
        names, word = [*BACKGROUNDS], [[variant.word for variant in shown.variants] for shown in self.data.objects]
        asked = [(word[i][v], names[b]) for i, v, b, _ in scenes.tolist()]
        seen = [
            (word[i][v], names[b] if b >= 0 else "")
            for i, v, b in zip(read.object.tolist(), read.variant.tolist(), read.background.tolist(), strict=True)
        ]
        swaps = [a != a[::-1] and s == a[::-1] for a, s in zip(asked, seen, strict=True)]
        right["swapped"] = torch.tensor(swaps, dtype=torch.bool)
        return right
