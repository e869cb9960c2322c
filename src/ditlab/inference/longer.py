"""Generate clips that are longer than those of the model, in parts: each continues the last frames of the part before.

In shapes, B is the batch, c the channels of the latents, and T the number of frames.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.core.device import free_memory, total_memory
from ditlab.core.errors import InputError
from ditlab.core.types import Between, Label, Seed, Step
from ditlab.core.units import GIB, counted
from ditlab.inference.given import GivenFrames
from ditlab.inference.inpaint import Original
from ditlab.inference.interpolate import LAST_SEED

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline

NEXT = 1_000_003  # distance of the seeds of the parts of a long clip
COPIES = 4  # of decoded frames in memory: as they are decoded, joined, shown, and as images


def check_room_for(pipe: "BasePipeline", original: Original | None, clips: int) -> None:
    """Check, before a network call, that longer clips fit into memory.

    Args:
        pipe: the model.
        original: the given frames and the length of the clips.
        clips: all clips of the call, which are kept until the last one is complete.

    Raises:
        InputError: they need more memory than there is.
    """
    if not isinstance(original, GivenFrames) or not original.frames:
        return
    channels, height, width = original.pixels.shape[1], *original.pixels.shape[-2:]
    frame = COPIES * channels * height * width * (1 if pipe.values.eight_bits else 4)
    latent = 2 * original.x0[0, :, 0].numel() * original.x0.element_size()  # of a part, and of the clip
    needed, cpu = clips * original.frames * (frame + latent), torch.device("cpu")
    if needed > total_memory(cpu):
        raise InputError(
            f"about {needed / GIB:,.1f} GiB of memory are needed for {counted(clips, 'clip')} of "
            f"{original.frames:,} frames of {height}x{width}, and there are {total_memory(cpu) / GIB:,.1f} GiB, of "
            f"which {free_memory(cpu) / GIB:,.1f} are free; give fewer frames or clips"
        )


def longer(
    pipe: "BasePipeline",
    labels: Sequence[Label],
    seeds: Sequence[Seed],
    batch_size: int,
    callback: Callable[[Step], None] | None,
    *,
    original: GivenFrames,
    **options: Any,
) -> Iterator[Tensor]:
    """Generate clips that are longer than those of the model in parts, and yield the latents of each batch.

    Args:
        pipe: the model.
        labels, seeds: one for each clip.
        batch_size: clips generated at a time.
        callback: called with every step.
        original: the given frames of the first parts, and the length of the clips.
        options: the other arguments of `BasePipeline.batches`.
    """
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        growing = Growing(original.part(rows))
        for number in range(original.parts):
            numbers = [moved(seed, number * NEXT) for seed in seeds[rows]]
            report, part = growing.reporting(callback), growing.part
            growing.add(torch.cat([*pipe.batches(labels[rows], numbers, batch_size, report, original=part, **options)]))
        assert growing.clips is not None
        yield growing.clips


def longer_steps(
    pipe: "BasePipeline", labels: Sequence[Label], seeds: Sequence[Seed], *, original: GivenFrames, **options: Any
) -> Iterator[Step]:
    """Yield the steps of all parts of one batch of longer clips, with x and x0 of the whole clips.

    Args:
        pipe, labels, seeds, original: as for `longer`.
        options: the other arguments of `BasePipeline.steps`.
    """
    growing = Growing(original)
    for number in range(original.parts):
        numbers = [moved(seed, number * NEXT) for seed in seeds]
        for step in pipe.steps(labels, seeds=numbers, original=growing.part, **options):
            yield growing.whole(step)
        growing.add(step.x)


class Growing:
    """Clips that are longer than those of the model, while their parts are generated."""

    def __init__(self, original: GivenFrames) -> None:
        self.frames, self.overlap = original.frames, original.overlap
        self.part = replace(original, frames=0)
        """The given frames of the part that comes next."""
        self.clips: Tensor | None = None
        """The latents (B, c, T, h, w) of what is complete."""
        self.steps = self.earlier = 0  # steps so far, and those of complete parts
        self.rows = slice(0)  # of the clips whose steps are reported, if the memory was too small for all at a time

    def add(self, latents: Tensor) -> None:
        """Append a part (B, c, K, h, w), which begins with the last frames of the part before it."""
        self.clips, self.earlier, self.rows = self.joined(latents, slice(None)), self.steps, slice(0)
        self.part = following(self.clips[:, :, -self.overlap :], latents.shape[2])

    def joined(self, latents: Tensor, rows: slice) -> Tensor:
        """Return the complete parts of some clips with one more, up to the length of the clips."""
        if self.clips is None:
            return latents
        return torch.cat([self.clips[rows], latents[:, :, self.overlap :]], dim=2)[:, :, : self.frames]

    def whole(self, step: Step) -> Step:
        """Return a step of the part as one of the clips: frames that are not generated yet are zero."""
        if step.i == 0:
            self.rows = slice(self.rows.stop, self.rows.stop + len(step.x))
        self.steps = self.earlier + step.i + 1
        x, x0 = (self.padded(self.joined(latents, self.rows)) for latents in (step.x, step.x0))
        return replace(step, i=self.steps - 1, x=x, x0=x0)

    def reporting(self, callback: Callable[[Step], None] | None) -> Callable[[Step], None] | None:
        """Return a callback for the steps of parts that reports the steps of the clips."""
        return None if callback is None else lambda step: callback(self.whole(step))

    def padded(self, latents: Tensor) -> Tensor:
        """Return latents (B, c, T, h, w) in the full length of the clips."""
        return F.pad(latents, (0, 0, 0, 0, 0, self.frames - latents.shape[2]))


def following(last: Tensor, length: int) -> GivenFrames:
    """Return latents (B, c, K, h, w) as the first frames of the next part of clips, which has `length` frames."""
    count, channels, given, *sides = last.shape
    x0 = last.new_zeros(count, channels, length, *sides)
    x0[:, :, :given] = last
    mask = torch.ones(count, 1, length, 1, 1, dtype=torch.bool)
    mask[:, :, :given] = False
    return GivenFrames(torch.zeros(count, 1, 1, 1, 1, dtype=torch.uint8), x0, mask, 1.0, 1)


def moved(seed: Seed, distance: int) -> Seed:
    """Return another seed for a further part of a clip."""
    if isinstance(seed, Between):
        return Between(moved(seed.first, distance), moved(seed.second, distance), seed.weight)
    return (int(seed) + distance) % (LAST_SEED + 1)
