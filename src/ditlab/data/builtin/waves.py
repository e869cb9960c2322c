"""Damped waves in a square: trajectories of two fields, the height and its change, solved exactly.

The equation is u_tt = c² (u_xx + u_yy) - 2 g u_t. Each Fourier mode is a damped oscillator with a closed solution, so
that states have no error of time steps. With walls, waves are reflected (u has no slope there): the field is continued
by its mirror image, on a square of twice the side, which is periodic.
"""

from math import pi
from typing import final

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.values import PixelValues
from ditlab.data.trajectories.base import Trajectories

COUNT, HELD_OUT, STATES, SIZE, SUFFIX = 200, 40, 21, 32, "-held-out"
STEP = 0.02  # time between two states; the side of the square and the speed of the waves are 1
DAMPING = 0.3  # g
SMALLEST = 1 / 4  # length of the shortest waves that are frequent, as a share of the side
DEVIATIONS = (0.68, 12.0)  # of both fields, over all trajectories, which are scaled by these numbers


@final
class Waves(Trajectories):
    """Trajectories of height and its change (2, side, side), without classes."""

    def __init__(self, size: int = SIZE, walls: bool = False, held_out: bool = False) -> None:
        """Choose the first state of each trajectory: smooth random fields with a deviation of 1.

        Args:
            size: height and width.
            walls: waves are reflected at the sides; otherwise the field is periodic.
            held_out: whether the first states are those that training does not see.

        Raises:
            InputError: the size is out of range.
        """
        if not 8 <= size <= 256:
            raise InputError(f"waves of {size}x{size}; give a size of 8 to 256")
        count = HELD_OUT if held_out else COUNT
        self.walls, self.side = walls, 2 * size if walls else size
        generator = torch.Generator().manual_seed(11 + held_out)
        frequency = torch.fft.fftfreq(self.side, 1 / self.side, dtype=torch.float64)
        half = torch.fft.rfftfreq(self.side, 1 / self.side, dtype=torch.float64)
        length = 2 if walls else 1  # side of the periodic square
        self.wave = 2 * pi / length * (frequency[:, None].square() + half.square()).sqrt()  # |k|
        noise = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
        noise = mirrored(noise) if walls else noise
        spectrum = torch.fft.rfft2(noise) * torch.exp(-((self.wave * SMALLEST / (2 * pi)) ** 2))
        spectrum[:, 0, 0] = 0  # the mean height stays 0
        scale = torch.fft.irfft2(spectrum, s=(self.side,) * 2).flatten(1).std(1)
        self.spectrum = spectrum / scale[:, None, None]  # of the heights at time 0, when they do not change
        self.channels, self.size, self.classes = 2, (size, size), []
        low, high = (tuple(sign * 3 * deviation for deviation in DEVIATIONS) for sign in (-1, 1))
        self.values = PixelValues("float32", low, high, (0.0, 0.0), DEVIATIONS)
        self.held_out_name = "" if held_out else f"waves-{'walls-' if walls else ''}{size}{SUFFIX}"
        self.divide([STATES] * count, torch.zeros(count, dtype=torch.long))

    def states(self, trajectory: int, start: int, stop: int) -> Tensor:
        return self.at(trajectory, STEP * torch.arange(start, stop, dtype=torch.float64))

    def at(self, trajectory: int, times: Tensor) -> Tensor:
        """The states (T, 2, H, W) of a trajectory at times (T,) from its beginning."""
        t = times[:, None, None]
        speed = (self.wave.square() - DAMPING**2).clamp(min=1e-12).sqrt()  # angular speed of each mode
        decay, first = torch.exp(-DAMPING * t), self.spectrum[trajectory]
        sine = (speed * t).sin() / speed
        height = first * decay * ((speed * t).cos() + DAMPING * sine)
        change = -first * decay * self.wave.square() * sine
        fields = torch.fft.irfft2(torch.stack([height, change], 1), s=(self.side,) * 2)
        return fields[..., : self.size[0], : self.size[1]].float()


def mirrored(field: Tensor) -> Tensor:
    """Continue fields (..., H, W) by their mirror images below and on the right."""
    field = torch.cat([field, field.flip(-1)], -1)
    return torch.cat([field, field.flip(-2)], -2)


def open_waves(name: str) -> Waves:
    """Open "waves-SIZE" (periodic) or "waves-walls-SIZE"; "-held-out" has other first states.

    Raises:
        InputError: the name has other parts, or a size that is out of range.
    """
    stem = name.removesuffix(SUFFIX).removeprefix("waves").removeprefix("-walls").removeprefix("-")
    if stem and not stem.isdecimal():
        raise InputError(f'data "{name}"; give waves-SIZE or waves-walls-SIZE, such as waves-32')
    return Waves(int(stem or SIZE), "-walls" in name, name.endswith(SUFFIX))
