"""Handwritten digits that move and bounce: 16 frames of scikit-learn's real digits, with the truth of their motion.

Handwriting is real, and the motion is synthetic: each digit moves evenly, by fractions of a pixel, and is reflected at
the edges. The digits for training and the held-out ones are those of the data set "digits".
"""

from math import pi
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data.base import Dataset
from ditlab.data.builtin.digits import digits, held_out_digits

COUNT, HELD_OUT = 10_000, 2_000
FRAMES, SIZE, SUFFIX = 16, 32, "-held-out"
DIGIT = 0.5  # side of a digit, as a share of the side of a frame
SPEEDS = (0.035, 0.09)  # shares of the side of a frame that a digit moves from one frame to the next
DIRECTIONS = ("right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right")


class Motion(NamedTuple):
    """The true motion of some digits, in pixels."""

    places: Tensor
    """(B, T, 2) centers of the digits: from the left, and from the top."""
    speed: Tensor
    """(B,) pixels from one frame to the next."""
    bounces: Tensor
    """(B,) number of reflections at an edge between the first frame and the last."""


@final
class MovingDigits(Dataset):
    """Gray clips (1, T, side, side) of one moving digit each; the label is the digit."""

    def __init__(
        self, size: int = SIZE, frames: int = FRAMES, held_out: bool = False, count: int | None = None
    ) -> None:
        """Choose the digit, the place and the motion of each clip.

        Args:
            size: height and width in pixels.
            frames: number of frames.
            held_out: whether the digits are those that training does not see.
            count: number of clips.

        Raises:
            InputError: the size or the number of frames is out of range.
        """
        if not 16 <= size <= 256 or not 1 <= frames <= 256:
            raise InputError(f"{frames} frames of {size} pixels; give 1 to 256 frames, and a size of 16 to 256")
        count = count or (HELD_OUT if held_out else COUNT)
        self.digits = held_out_digits() if held_out else digits()
        rng = np.random.default_rng([7, int(held_out)])
        self.chosen = torch.from_numpy(rng.integers(len(self.digits), size=count))
        """(N,) number of the digit in its data set."""
        values = torch.from_numpy(rng.random((count, 4)))
        angle, self.first = 2 * pi * values[:, 0], values[:, 1:3]
        speed = size * (SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * values[:, 3])
        self.velocity = speed[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        """(N, 2) pixels from one frame to the next at first: to the right, and down."""
        self.labels, self.classes = self.digits.labels[self.chosen], self.digits.classes
        self.channels, self.size, self.features = 1, (frames, size, size), "moving-digits"
        name = f"moving-digits-{size}" + (f"-{frames}" if frames != FRAMES else "")
        self.held_out_name = "" if held_out else name + SUFFIX

    def motion(self, indices: Tensor) -> Motion:
        """The true motion of the clips with these indices (B,)."""
        frames, side, _ = self.size
        edge = DIGIT * side / 2
        room, velocity = side - 2 * edge, self.velocity[indices]
        # A reflected motion is an even one on a circle of twice the room, folded.
        straight = self.first[indices][:, None] * room + velocity[:, None] * torch.arange(frames)[:, None]  # (B, T, 2)
        folded = straight.remainder(2 * room)
        turns = straight.div(room, rounding_mode="floor")
        bounces = (turns[:, -1] - turns[:, 0]).abs().sum(1)
        return Motion(edge + torch.minimum(folded, 2 * room - folded), velocity.norm(dim=1), bounces)

    def fetch(self, indices: Tensor) -> Batch:
        frames, side, _ = self.size
        places = self.motion(indices).places.float().flatten(0, 1)  # (B T, 2)
        images = self.digits.images[self.chosen[indices]].float().repeat_interleave(frames, 0)
        span = (torch.arange(side) + 0.5).expand(len(places), side)
        x, y = (2 * (span - places[:, i : i + 1]) / (DIGIT * side) for i in range(2))  # -1..1 within the digit
        grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], -1)
        shown = F.grid_sample(images, grid, align_corners=False)
        clips = shown.round().byte().reshape(len(indices), frames, 1, side, side).transpose(1, 2)
        return Batch(clips.contiguous(), self.condition(indices))

    def captions(self, i: int) -> tuple[str, ...]:
        """The digit, and the direction in which it moves at first: "a 3 moving down and left"."""
        right, down = self.velocity[i].tolist()
        eighth = round(np.arctan2(down, right) / (pi / 4)) % 8
        return (f"a {self.classes[int(self.labels[i])]} moving {DIRECTIONS[eighth]}",)


def open_moving_digits(name: str) -> MovingDigits:
    """Open "moving-digits" (16 frames of 32x32), "moving-digits-SIZE" or "moving-digits-SIZE-FRAMES", also "-held-out".

    Raises:
        InputError: the name has other parts, or numbers that are out of range.
    """
    stem = name.removesuffix(SUFFIX).removeprefix("moving-digits").removeprefix("-")
    numbers = stem.split("-") if stem else []
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise InputError(
            f'data "{name}"; give moving-digits-SIZE or moving-digits-SIZE-FRAMES, such as moving-digits-32'
        )
    size, frames = [*map(int, numbers), *(SIZE, FRAMES)[len(numbers) :]]
    return MovingDigits(size, frames, held_out=name.endswith(SUFFIX))
