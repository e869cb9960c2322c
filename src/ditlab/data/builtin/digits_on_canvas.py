"""The handwritten digits of `digits` on dark canvases of three aspect ratios: images of several sizes that train fast.

Canvas and position of image i depend on i only. Each digit occurs `PLACES` times.
"""

from typing import final

import numpy as np
import torch
from torch import Tensor

from ditlab.core.errors import lookup
from ditlab.core.types import Batch
from ditlab.data.base import Dataset
from ditlab.data.buckets import Buckets
from ditlab.data.builtin.digits import digits, held_out_digits

NAME = "digits-on-canvas"
CANVASES = ((20, 12), (16, 16), (12, 20))
PLACES = 12
HELD_OUT_NAME = f"{NAME}-held-out"


@final
class DigitsOnCanvas(Dataset):
    """Gray images of one digit, at its own size of 8x8 pixels, anywhere on a canvas."""

    def __init__(self, *, held_out: bool = False, canvases: tuple[tuple[int, int], ...] = CANVASES) -> None:
        """Place the digits.

        Args:
            held_out: whether the digits are those that are never used in training.
            canvases: (height, width) of the canvases, in equal numbers; sides of 8 or more.
        """
        self.digits = held_out_digits() if held_out else digits()
        count = PLACES * len(self.digits)
        self.classes, self.channels = self.digits.classes, 1
        self.labels = self.digits.labels.repeat(PLACES)
        self.held_out_name = "" if held_out else HELD_OUT_NAME
        of = (torch.arange(count) + torch.arange(count) // len(self.digits)) % len(canvases)
        self.buckets = Buckets(tuple(canvases), of, max(height * width for height, width in canvases))
        self.size = canvases[self.buckets.frequent]
        self.shares = torch.from_numpy(np.random.default_rng(int(held_out)).random((count, 2)))

    def place(self, i: int) -> tuple[int, int]:
        """The row and the column of the digit of image i."""
        assert self.buckets is not None
        row, column = (
            int(share * (side - 7)) for share, side in zip(self.shares[i], self.buckets.size_of(i), strict=True)
        )
        return row, column

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(torch.stack([self.image(i) for i in indices.tolist()]), self.condition(indices))

    def image(self, i: int) -> Tensor:
        """Image i: (1, height, width) uint8."""
        assert self.buckets is not None
        row, column = self.place(i)
        canvas = torch.zeros(1, *self.buckets.size_of(i), dtype=torch.uint8)
        canvas[:, row : row + 8, column : column + 8] = self.digits.images[i % len(self.digits)]
        return canvas


def open_digits_on_canvas(name: str) -> DigitsOnCanvas:
    """Open the data set "digits-on-canvas" or "digits-on-canvas-held-out".

    Raises:
        InputError: `name` is another name.
    """
    return DigitsOnCanvas(held_out=lookup({NAME: False, HELD_OUT_NAME: True}, name, "data set"))
