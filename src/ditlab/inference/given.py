"""Generate clips of which some frames are given: image to video, continuation, and interpolation between frames.

A network that was trained with given frames receives them without noise, with the timestep of the data. Longer clips
are generated in parts, each of which continues the last frames of the part before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ditlab.config.values import whole
from ditlab.core.errors import InputError
from ditlab.core.types import Between, Condition, Denoise, Label, Prediction, Seed, Step
from ditlab.core.units import counted
from ditlab.diffusion.process import Process
from ditlab.inference.inpaint import Original, as_images, as_pixels, check_startable, path_of
from ditlab.inference.interpolate import LAST_SEED

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline

SHARES = ("given_first", "given_start", "given_ends")  # settings of training with given frames
NEXT = 1_000_003  # distance of the seeds of the parts of a long clip


@dataclass(frozen=True)
class GivenFrames(Original):
    """Given frames of clips, in the place of images to start from: `mask` (B, 1, T, 1, 1) is false in given frames."""

    frames: int = 0  # length of clips that are longer than those of the model; 0 is its own
    overlap: int = 0  # number of last frames that each further part of a longer clip continues

    @property
    def given(self) -> Tensor:
        """Whether a frame is given (B, T)."""
        assert self.mask is not None
        return ~self.mask[:, 0, :, 0, 0]

    @property
    def rounds(self) -> int:
        length = self.x0.shape[2]
        return 1 + max(0, -(-(self.frames - length) // (length - self.overlap)))

    def part(self, rows: slice) -> "GivenFrames":
        part = super().part(rows)
        assert isinstance(part, GivenFrames)
        return part

    def conditioned(self, condition: Condition) -> Condition:
        """Return the condition with the given frames, if there are some."""
        given = self.given.to(self.x0.device)
        return condition.with_given(given.expand(len(condition), -1)) if given.any() else condition

    def about(self, i: int) -> dict[str, Any]:
        """Return what decides clip i: the hash and, as far as they are known, the paths of its given frames; length."""
        named = self.files[0 if len(self.pixels) == 1 else i] if self.files else ()
        values = {"given": list(named), "frames": self.frames, "overlap": self.overlap}
        about: dict[str, Any] = {name: value for name, value in values.items() if value}
        return about | ({"image_hash": super().about(i)["image_hash"]} if self.given.any() else {})

    def holding(self, denoise: Denoise, process: Process) -> Denoise:
        """Return a denoiser whose network receives the given frames, and that predicts them."""
        assert self.mask is not None
        generated = self.mask.to(self.x0.device)
        if generated.all():
            return denoise

        def held(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
            return self.kept(denoise(torch.where(generated, x, self.x0), t, s), generated, process, x, t)

        return held

    def finish(self, pixels: Tensor) -> Tensor:
        """Restore the given frames in clips (B, C, T, H, W) uint8, because an autoencoder changes them."""
        length = self.x0.shape[2]
        return torch.cat([super().finish(pixels[:, :, :length]), pixels[:, :, length:]], dim=2)


def given_frames(
    pipe: "BasePipeline",
    given: Mapping[int, Any],
    frames: int | None = None,
    overlap: int | None = None,
) -> GivenFrames:
    """Prepare frames of clips that are given, and clips that are longer than those of the model.

    Args:
        pipe: the model.
        given: index of a frame, negative from the end -> an image, or a list of one for each clip.
        frames: length of the clips, if they are continued beyond the length of the model.
        overlap: number of last frames that each further part continues (default: half of those of the model).

    Raises:
        InputError: the model generates images or was not trained with given frames, or a frame cannot be used.
    """
    check_model(pipe)
    longer = {"frames": whole(frames or 0, "frames"), "overlap": check_longer(pipe.shape[1], frames, overlap)}
    length, (channels, size) = pipe.shape[1], pipe.picture_shape
    images = {place_of(index, length): as_images(image, f"given[{index}]") for index, image in given.items()}
    if len(images) < len(given) or len(images) == length or (not images and frames is None):
        raise InputError(
            f"{counted(len(images), 'given frame')} of clips of {length}; give 1 to {length - 1} different ones"
        )
    if frames is not None and any(place >= length - longer["overlap"] for place in images):
        raise InputError("one of the last frames is given, so that a clip cannot be continued; leave frames out")
    if images:
        check_startable(channels, pipe.values)
    clips = max((len(frame) for frame in images.values()), default=1)
    pixels = torch.zeros(clips, channels, length, *size, dtype=torch.uint8)
    mask, files = torch.ones(clips, 1, length, 1, 1, dtype=torch.bool), []
    for place, frame in images.items():
        if len(frame) not in (1, clips):
            raise InputError(f"{counted(len(frame), 'image')} for frame {place} of {clips} clips; give 1 or {clips}")
        pixels[:, :, place] = torch.cat([as_frame(image, place, channels, size) for image in frame])
        mask[:, :, place] = False
        files.append([f"{place}={path}" if (path := path_of(image)) else "" for image in frame])
    named = tuple(tuple(names[i % len(names)] for names in files) for i in range(clips))
    x0 = latents_of(pipe, pixels, [*images])
    return GivenFrames(pixels, x0, mask, 1.0, 1, named if all(map(all, named)) else (), **longer)


def check_model(pipe: "BasePipeline") -> None:
    """Check that a model can have given frames.

    Raises:
        InputError: it generates images, its network has one timestep for all frames, or it was trained without.
    """
    name = pipe.net.config.get("name", type(pipe.net).__name__)
    if len(pipe.shape) != 4:
        raise InputError(f"given frames for {name}, which generates images; leave given out, or give image=")
    if not pipe.net.frame_times:
        raise InputError(f"given frames for {name}, which has one timestep for all frames; leave given out")
    recipe = pipe.model.config.get("recipe")
    if recipe and not any(recipe.get("train", {}).get(share) for share in SHARES):
        raise InputError(
            f"this model was trained without given frames; set train.{', train.'.join(SHARES[:-1])} or "
            f"train.{SHARES[-1]} to train one, or generate without"
        )


def check_images(pipe: "BasePipeline") -> None:
    """Check that a model generates images, which can start from an image.

    Raises:
        InputError: it generates clips.
    """
    if len(pipe.shape) == 4:
        name = pipe.net.config.get("name", type(pipe.net).__name__)
        raise InputError(f"an image to start from for {name}, which generates clips; give frames with given=")


def place_of(index: Any, length: int) -> int:
    """Return the position of a frame in a clip; negative indices count from the end.

    Raises:
        InputError: the clip has no such frame.
    """
    place = whole(index, "index of a given frame")
    if not -length <= place < length:
        raise InputError(f"given frame {place} of clips of {length} frames; give 0 to {length - 1}, or -{length} to -1")
    return place % length


def as_frame(image: Image.Image, place: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Convert an image to a frame (1, C, H, W) uint8.

    Raises:
        InputError: it has another size than the frames of the model.
    """
    if (image.height, image.width) != size:
        raise InputError(
            f"frame {place} has {image.height}x{image.width} pixels, and the frames of this model {size[0]}x{size[1]}; "
            "resize it first"
        )
    return as_pixels(image, channels, size)


@torch.no_grad()
def latents_of(pipe: "BasePipeline", pixels: Tensor, places: Sequence[int]) -> Tensor:
    """Encode the frames at `places` of clips (B, C, T, H, W); the others are zero."""
    autoencoder, device = pipe.autoencoder, pipe.net.device
    x0 = torch.zeros(len(pixels), *pipe.shape, device=device)
    if not places:
        return x0
    chosen = pixels[:, :, places].transpose(1, 2)  # (B, K, C, H, W)
    # The means of the posteriors, so that the same frame always has the same latent.
    latents = autoencoder.latents(autoencoder.encode(chosen.flatten(0, 1).to(device)), torch.zeros_like)
    x0[:, :, places] = torch.unflatten(latents, 0, chosen.shape[:2]).transpose(1, 2)
    return x0


def check_longer(length: int, frames: int | None, overlap: int | None) -> int:
    """Return the number of frames that each part of a longer clip continues; 0 if clips are not longer.

    Raises:
        InputError: the clips cannot be continued.
    """
    if frames is None and overlap is None:
        return 0
    if frames is None or whole(frames, "frames") <= length:
        raise InputError(f"frames {frames} for a model of {length} frames; give more, or leave frames and overlap out")
    overlap = max(1, length // 2) if overlap is None else whole(overlap, "overlap")
    if not 0 < overlap < length:
        raise InputError(f"overlap {overlap} of clips of {length} frames; give 1 to {length - 1}")
    return overlap


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
    frames, overlap = original.frames, original.overlap
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        part, clips = replace(original.part(rows), frames=0), torch.empty(0)
        for number in range(original.rounds):
            numbers = [moved(seed, number * NEXT) for seed in seeds[rows]]
            new = torch.cat([*pipe.batches(labels[rows], numbers, batch_size, callback, original=part, **options)])
            clips = torch.cat([clips, new[:, :, overlap:]], dim=2) if number else new
            part = following(pipe, clips[:, :, -overlap:])
        yield clips[:, :, :frames]


def following(pipe: "BasePipeline", last: Tensor) -> GivenFrames:
    """Return latents (B, c, K, h, w) as the first frames of the next part of clips."""
    x0 = torch.zeros(len(last), *pipe.shape, device=last.device)
    x0[:, :, : last.shape[2]] = last
    mask = torch.ones(len(last), 1, pipe.shape[1], 1, 1, dtype=torch.bool)
    mask[:, :, : last.shape[2]] = False
    return GivenFrames(torch.zeros(len(last), 1, 1, 1, 1, dtype=torch.uint8), x0, mask, 1.0, 1)


def moved(seed: Seed, distance: int) -> Seed:
    """Return another seed for a further part of a clip."""
    if isinstance(seed, Between):
        return Between(moved(seed.first, distance), moved(seed.second, distance), seed.weight)
    return (int(seed) + distance) % (LAST_SEED + 1)
