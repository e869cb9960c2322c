"""Images of other sizes than the one that a network was made for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ditlab.backbones.any_size import check_divisible
from ditlab.config.reader import parse_sides
from ditlab.config.values import whole
from ditlab.core.device import free_memory, total_memory
from ditlab.core.errors import InputError
from ditlab.core.units import GIB, counted, noun_of, sides_of
from ditlab.inference.inpaint import Original

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline

SIZES = "sizes"  # key of the config: the sizes of the training images, if there are several, with their counts
VALUES = 12  # values that a block holds for each channel of a token: four of the MLP twice, q, k, v, and the tokens


def named_size(options: dict[str, Any], size: Any) -> Any:
    """The size in a call, which may also be given as `height` and `width`, the names of diffusers.

    Args:
        options: the other arguments of the call, from which these two are removed.
        size: the argument `size`.

    Raises:
        InputError: only one side, or a size under two names.
    """
    sides = {name: options.pop(name, None) for name in ("height", "width")}
    given = [name for name, side in sides.items() if side is not None]
    if given and size is not None:
        raise InputError(f"size and {given[0]} are the same setting; give one of them")
    if len(given) == 1:
        raise InputError(f"{given[0]} without the other side; give height and width")
    return (sides["height"], sides["width"]) if given else size


def plan_size(pipe: "BasePipeline", size: Any, original: Original | None) -> tuple[int, ...]:
    """The size of the network's input for images of a size that may start from others.

    Args:
        pipe: the model.
        size: as for `input_size`; None is the size of the images to start from, if there are some.
        original: the images to start from.

    Raises:
        InputError: the model cannot generate images of this size, or the images to start from have another one.
    """
    if original is None:
        return input_size(pipe, size)
    prepared = tuple(original.x0.shape[2:])
    if size is not None and input_size(pipe, size) != prepared:
        raise InputError(f"size {sides_of(size)}, but {original.what} prepared for another; give the same size to both")
    return prepared


def input_size(pipe: "BasePipeline", size: Any) -> tuple[int, ...]:
    """The size of the network's input for images of a size.

    Args:
        pipe: the model.
        size: (height, width) in pixels, for videos also (frames, height, width); None is the size of the model.

    Raises:
        InputError: the model cannot generate images of this size.
    """
    net, stride = pipe.net, pipe.autoencoder.stride
    if size is None:
        return net.size
    generated = (*net.size[:-2], *(side * stride for side in net.size[-2:]))
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) not in (2, len(generated)):
        clips = f", or frames, height and width, such as {generated}" if len(generated) == 3 else ""
        raise InputError(f"size {size!r}; give height and width, such as {generated[-2:]}{clips}")
    sides = (*generated[: len(generated) - len(size)], *(whole(side, "size") for side in size))
    if sides == generated:
        return net.size
    if net.one_size:
        own = sides_of(generated)
        raise InputError(
            f"size {sides_of(sides)}; this model generates {noun_of(sides)}s of {own} only, because {net.one_size}"
        )
    strides = (*(1 for _ in generated[:-2]), stride, stride)
    check_divisible(sides, [step * part for step, part in zip(net.side_multiples, strides, strict=True)])
    if net.longest_side is not None and max(sides[-2:]) > net.longest_side * stride:
        most = net.longest_side * stride
        raise InputError(f"size {sides_of(sides)}; this model has positions for sides up to {most}")
    return tuple(side // part for side, part in zip(sides, strides, strict=True))


def trained_sizes(pipe: "BasePipeline") -> list[tuple[int, ...]]:
    """The sizes of the images that a model was trained on, the most frequent first; empty if they had one."""
    counts = pipe.model.config.get(SIZES, {})
    return [parse_sides(size) for size in sorted(counts, key=lambda size: -counts[size])]


def size_shift(pipe: "BasePipeline", size: tuple[int, ...]) -> float:
    """The shift of the schedule for a size of the network's input; 1 for sizes that the model was trained on."""
    stride = pipe.autoencoder.stride
    if (*size[:-2], *(side * stride for side in size[-2:])) in trained_sizes(pipe):
        return 1.0
    return (pipe.net.tokens_at(size) / pipe.net.tokens_at(pipe.net.size)) ** 0.5


def check_room(pipe: "BasePipeline", size: Sequence[int], images: int) -> None:
    """Check, before a network call, that larger images than those of the model fit into memory.

    Args:
        pipe: the model.
        size: size of the network's input.
        images: images that are generated at a time.

    Raises:
        InputError: they need more memory than there is.
    """
    net, stride = pipe.net, pipe.autoencoder.stride
    tokens = net.tokens_at(size)
    if tokens <= net.tokens_at(net.size):
        return
    rows = images * (2 if pipe.conditional else 1)  # guidance
    needed = rows * tokens * net.matrix_width * VALUES * net.dtype.itemsize
    if needed > total_memory(net.device):
        pixels = sides_of([*size[:-2], *(side * stride for side in size[-2:])])
        raise InputError(
            f"{counted(images, noun_of(size))} of {pixels} at a time need about {needed / GIB:,.1f} GiB of memory for "
            f"{counted(tokens, 'token')} each, and there are {total_memory(net.device) / GIB:,.1f} GiB, of which "
            f"{free_memory(net.device) / GIB:,.1f} are free; give a smaller size or batch_size"
        )
