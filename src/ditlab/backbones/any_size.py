"""Inputs of other sizes than the one that a network was made for."""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.units import sides_of

LEARNED = "it has a learned position for each patch"
ONE_VALUE = "condition_grid has a value for each position"


def check_divisible(size: Sequence[int], multiples: Sequence[int]) -> None:
    """Check that a size can be divided into the tokens of a network; one frame always can.

    Args:
        size: (height, width), or (frames, height, width).
        multiples: what each of them must be divisible by.

    Raises:
        InputError: it cannot; the message has the nearest size that can.
    """
    image = len(size) == 3 and size[0] == 1
    steps = [1, *multiples[1:]] if image else multiples
    if min(size) > 0 and all(side % step == 0 for side, step in zip(size, steps, strict=True)):
        return
    near = [max(1, round(side / step)) * step for side, step in zip(size, steps, strict=True)]
    if min(size) < 1:
        raise InputError(f"size {sides_of(size)}; no side can be {min(size)}: give {sides_of(near)}, the nearest one")
    units = f"multiples of {multiples[-1]}" if len(set(multiples)) == 1 else f"multiples of {sides_of(multiples)}"
    raise InputError(f"size {sides_of(size)}; sides must be {units}: give {sides_of(near)}, the nearest one")


class AnySize:
    """The sizes of inputs that a network takes."""

    size: tuple[int, ...]
    channels: int
    patch: int

    @property
    def one_size(self) -> str:
        """Why every input must have the size that the network was made for; empty if it takes other sizes.

        A family that takes other sizes overrides this, and its forward pass asks `grid_of_input`.
        """
        return "its weights are made for one size"

    @property
    def side_multiples(self) -> tuple[int, ...]:
        """What the sides of an input must be divisible by."""
        return (self.patch,) * len(self.size)

    @property
    def longest_side(self) -> int | None:
        """The longest possible side of an input; None is no limit."""
        return None

    def tokens_at(self, size: Sequence[int]) -> int:
        """The number of patches of an input of this size, which a batch size and a shift of the schedule depend on."""
        return prod(side // self.patch for side in size)

    def grid_of_input(self, x: Tensor) -> tuple[int, ...]:
        """Check an input (B, C, ...), and return its number of patches along each dimension."""
        self.check_input(x)
        return tuple(side // self.patch for side in x.shape[2:])

    def check_size(self, size: Sequence[int]) -> None:
        """Check that the network takes inputs of this size.

        Raises:
            InputError: it does not.
        """
        if tuple(size) == tuple(self.size):
            return
        if self.one_size:
            raise InputError(
                f"size {sides_of(size)} for a network of {sides_of(self.size)}: {self.one_size}; give "
                f"{sides_of(self.size)}"
            )
        check_divisible(size, self.side_multiples)
        if self.longest_side is not None and max(size) > self.longest_side:
            raise InputError(f"size {sides_of(size)}; this network has positions for sides up to {self.longest_side}")

    def check_input(self, x: Tensor) -> None:
        """Check that an input has the channels of the network, and a size that it takes.

        Raises:
            InputError: another shape.
        """
        if x.shape[1:] == (self.channels, *self.size):
            return
        if self.one_size or x.shape[1] != self.channels or x.ndim != 2 + len(self.size):
            received, expected = (sides_of(shape) for shape in (x.shape[1:], (self.channels, *self.size)))
            raise InputError(f"input of {received} for a network made for {expected}")
        self.check_size(x.shape[2:])
