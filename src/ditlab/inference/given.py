"""Generate clips of which some frames are given: image to video, continuation, and interpolation between frames.

A network that was trained with given frames receives them without noise, with the timestep of the data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from ditlab.config.values import whole
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Denoise, Prediction
from ditlab.core.units import counted, sides_of
from ditlab.diffusion.process import Process
from ditlab.inference.inpaint import Original, as_images, as_pixels, check_startable, path_of
from ditlab.inference.sizes import input_size

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline

SHARES = ("given_first", "given_start", "given_ends")  # settings of training with given frames


@dataclass(frozen=True)
class GivenFrames(Original):
    """Given frames of clips, in the place of images to start from: `mask` (B, 1, T, 1, 1) is false in given frames."""

    what: ClassVar[str] = "the given frames were"
    frames: int = 0  # length of clips that are longer than those of the model; 0 is its own
    overlap: int = 0  # number of last frames that each further part of a longer clip continues

    @property
    def given(self) -> Tensor:
        """Whether a frame is given (B, T)."""
        assert self.mask is not None
        return ~self.mask[:, 0, :, 0, 0]

    @property
    def options(self) -> dict[str, Any]:
        return {}  # a clip starts from noise

    @property
    def parts(self) -> int:
        length = self.x0.shape[2]
        return 1 + max(0, -(-(self.frames - length) // (length - self.overlap)))

    def part(self, rows: slice) -> "GivenFrames":
        part = super().part(rows)
        assert isinstance(part, GivenFrames)
        return part

    def check_count(self, count: int) -> None:
        if len(self.pixels) not in (1, count):
            clips = len(self.pixels)
            raise InputError(
                f"given frames for {counted(clips, 'clip')}, and {counted(count, 'clip')} to generate; give 1 image "
                f"for each frame, or {count}"
            )

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
    given: Mapping[int, Any] | None,
    frames: int | None = None,
    overlap: int | None = None,
    size: Sequence[int] | None = None,
) -> GivenFrames:
    """Prepare frames of clips that are given, and clips that are longer than those of the model.

    Args:
        pipe: the model.
        given: index of a frame, negative from the end -> an image, or a list of one for each clip.
        frames: length of the clips, if they are continued beyond the length of the model, or of `size`.
        overlap: number of last frames that each further part continues (default: half of a part).
        size: size of the clips, or of a part of longer ones, as in `BasePipeline.steps`.

    Raises:
        InputError: the model generates images or was not trained with given frames, or a frame cannot be used.
    """
    check_model(pipe)
    network_size = input_size(pipe, size)
    length, (channels, sides) = network_size[0], pipe.picture_shape_of(network_size)
    longer = {"frames": whole(frames or 0, "frames"), "overlap": check_longer(length, frames, overlap)}
    images = {} if given is None else images_of(given, length)
    if frames is not None and any(place >= length - longer["overlap"] for place in images):
        raise InputError("one of the last frames is given, so that a clip cannot be continued; leave frames out")
    if images:
        check_startable(channels, pipe.values)
    clips = max((len(frame) for frame in images.values()), default=1)
    pixels = torch.zeros(clips, channels, length, *sides, dtype=torch.uint8)
    mask, files = torch.ones(clips, 1, length, 1, 1, dtype=torch.bool), []
    for place, frame in images.items():
        if len(frame) not in (1, clips):
            raise InputError(f"{counted(len(frame), 'image')} for frame {place} of {clips} clips; give 1 or {clips}")
        pixels[:, :, place] = torch.cat([as_frame(image, place, channels, sides) for image in frame])
        mask[:, :, place] = False
        files.append([f"{place}={path}" if (path := path_of(image)) else "" for image in frame])
    named = tuple(tuple(names[i % len(names)] for names in files) for i in range(clips))
    x0 = latents_of(pipe, pixels, [*images], network_size)
    return GivenFrames(pixels, x0, mask, 1.0, 1, named if all(map(all, named)) else (), **longer)


def images_of(given: Mapping[int, Any], length: int) -> dict[int, list[Image.Image]]:
    """Return the images of each given frame, by its position in clips of `length` frames.

    Raises:
        InputError: no frame, all frames, a frame twice, one that does not exist, or something else than images.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"given is a {type(given).__name__}; give images by frame, such as {{0: image}}")
    if not given:
        raise InputError(f"given has no frames; give 1 to {length - 1} of {length}, or leave given out")
    places: dict[int, Any] = {}
    for index in given:
        place = place_of(index, length)
        if place in places:
            raise InputError(f"given has frame {place} twice, as {places[place]} and {index}; leave one of them out")
        places[place] = index
    if len(places) == length:
        raise InputError(f"all {length} frames are given, so that nothing is generated; give 1 to {length - 1}")
    images = {place: as_images(given[index], f"given[{index}]") for place, index in places.items()}
    for place, frame in images.items():
        if not frame:
            raise InputError(f"given[{places[place]}] has no image; give a PIL image, or leave the frame out")
    return images


def check_model(pipe: "BasePipeline") -> None:
    """Check that a model can have given frames.

    Raises:
        InputError: it generates images, its network has one timestep for all frames, or it was trained without.
    """
    name = pipe.net.config.get("name", type(pipe.net).__name__)
    if len(pipe.shape) != 4:
        raise InputError(
            f"given, frames and overlap are for clips, and {name} generates images; leave them out, or give image"
        )
    if not pipe.net.frame_times:
        raise InputError(
            f"given, frames and overlap need a timestep for each frame, and {name} has one for all; leave them out"
        )
    recipe = pipe.model.config.get("recipe")
    if recipe and not any(recipe.get("train", {}).get(share) for share in SHARES):
        raise InputError(
            f"this model was trained without given frames, which given, frames and overlap need; set "
            f"train.{', train.'.join(SHARES[:-1])} or train.{SHARES[-1]} to train one, or leave them out"
        )


def check_images(pipe: "BasePipeline") -> None:
    """Check that a model generates images, which can start from an image.

    Raises:
        InputError: it generates clips.
    """
    if len(pipe.shape) == 4:
        name = pipe.net.config.get("name", type(pipe.net).__name__)
        remedy = "give frames with given" if pipe.net.frame_times else "leave image out"
        raise InputError(f"an image to start from for {name}, which generates clips; {remedy}")


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
        InputError: it has another size than the frames of the clip.
    """
    check_frame((image.height, image.width), place, size)
    return as_pixels(image, channels, size)


def check_frame(sides: tuple[int, int], place: int, size: Sequence[int]) -> None:
    """Check that the image of a frame has the size (height, width) of the clip.

    Raises:
        InputError: it does not.
    """
    if sides != tuple(size[-2:]):
        raise InputError(
            f"frame {place} has {sides_of(sides)} pixels (height x width), and the clip {sides_of(size[-2:])}; resize "
            "it first"
        )


@torch.no_grad()
def latents_of(pipe: "BasePipeline", pixels: Tensor, places: Sequence[int], size: Sequence[int]) -> Tensor:
    """Encode the frames at `places` of clips (B, C, T, H, W) for a network's input of `size`; the others are zero."""
    autoencoder, device = pipe.autoencoder, pipe.net.device
    x0 = torch.zeros(len(pixels), pipe.net.channels, *size, device=device)
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
    if frames is None:
        if overlap is not None:
            raise InputError(f"overlap is {overlap}, which has no effect without frames; give frames too")
        return 0
    if whole(frames, "frames") <= length:
        raise InputError(
            f"frames is {frames}, and a clip has {length} without being continued; give more, or leave frames out"
        )
    overlap = max(1, length // 2) if overlap is None else whole(overlap, "overlap")
    if not 0 < overlap < length:
        raise InputError(f"overlap {overlap} of clips of {length} frames; give 1 to {length - 1}")
    return overlap
