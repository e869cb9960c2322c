"""The output of a pipeline: images or videos as PIL images, arrays, tensors or latents."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.io import replacing
from ditlab.core.spelling import expand
from ditlab.core.values import EIGHT_BITS, PixelValues
from ditlab.inference.records import Record, png_metadata
from ditlab.report.sheets import to_pil, to_videos
from ditlab.report.videos import FPS, FRAMES, check_video, save_video

TYPES = ("pil", "np", "pt", "native", "latent")
SUFFIXES = {False: (".png", ".npy"), True: (".webp", ".gif", ".mp4", ".webm", ".npy")}
"""Suffixes of the files of images, and of videos."""


@dataclass(frozen=True)
class Output:
    """Generated images or videos."""

    images: Any
    """PIL images ("pil"); float array (B, H, W, C) in 0..1 ("np"); float tensor (B, C, H, W) in 0..1 ("pt"); array
    (B, H, W, C) in the numbers and the type of the training data ("native"); or latents ("latent"). For video models:
    one PIL image per video with all frames, array (B, T, H, W, C), tensor (B, C, T, H, W), or latents."""
    videos: list[NDArray[np.uint8]] = field(default_factory=list)
    """For video models with `output_type="pil"`: one array (T, H, W, C) per video."""
    pixels: Tensor | None = field(default=None, repr=False, compare=False)
    """The decoded images, from which `save` writes files; None for latents."""
    values: PixelValues = field(default=EIGHT_BITS, repr=False, compare=False)
    """What the numbers of the images are."""
    describe: Callable[[], Record] | None = field(default=None, repr=False, compare=False)
    """Returns the record of the images, which takes the time of hashing the weights; None if there is none."""

    fps: float = field(default=FPS, repr=False, compare=False)
    """Frames per second of the videos."""

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Everything that decides each image: label, seed, all resolved settings, and hashes of the weights."""
        return [] if self.record is None else self.record.every()

    @cached_property
    def record(self) -> Record | None:
        """The record of all images, which `save` writes."""
        return None if self.describe is None else self.describe()

    def save(self, path: str | Path, format: str = "", fps: float | None = None) -> list[Path]:
        """Write images as PNG files, videos as WebP, GIF, MP4 or WebM files, or either as .npy; returns their paths.

        All but .npy files hold the shown channels with 8 bits. An .npy file holds one image (H, W, C) or video
        (T, H, W, C) with all channels, in the numbers and the type of the training data.

        A PNG file holds its `settings`; a folder gets a samples.json with those of all files too.

        Args:
            path: a folder, which is created; or a file name that ends in .png or .npy for images, and in .webp, .gif,
                .mp4, .webm or .npy for videos, to which numbers are added if there are several images.
            format: the format of the files in a folder (default: png; webp for videos); "frames" writes a folder of PNG
                files for each video.
            fps: frames per second of videos (default: those that the model was trained on, or 8).

        Raises:
            InputError: the output holds latents, the format does not suit it, the path has an unknown suffix, or PyAV
                is not installed (MP4, WebM).
        """
        target = Path(expand(str(path)))
        numbers = "npy" in (target.suffix.lower()[1:], format)
        items = self._items(numbers=numbers)
        if not isinstance(items, list):
            raise InputError('latents cannot be saved as images; leave output_type="latent" out')
        moving = not isinstance(items[0], Image.Image) and (not numbers or items[0].ndim == 4)
        suffix = file_suffix(format, moving)
        if target.suffix.lower() in {*SUFFIXES[True], *SUFFIXES[False]}:
            if target.suffix.lower() not in SUFFIXES[moving] or format not in ("", target.suffix[1:].lower()):
                raise InputError(
                    f"{target}; give a name that ends in {' or '.join(SUFFIXES[moving])}, without a format"
                )
            stem = target.stem
            names = [target] if len(items) == 1 else [target.with_stem(f"{stem}-{i}") for i in range(len(items))]
        else:
            check_suffix(target, moving)
            names = [target / f"{i:04d}{suffix}" for i in range(len(items))]
        if fps is not None and not moving:
            raise InputError(f"fps is {fps:g}, which has no effect on images; remove it")
        fps = self.fps if fps is None else fps
        if moving and not numbers:
            check_video(suffix if names[0].parent == target else target.suffix.lower(), items[0].shape[1:3], fps)
        names[0].parent.mkdir(parents=True, exist_ok=True)
        # Without settings if there are none, or if the caller has changed the list of images.
        record = None if self.record is None or len(self.record.images) != len(items) else self.record
        for i, (item, file) in enumerate(zip(items, names, strict=True)):
            save_item(item, file, None if record is None else record.image(i), fps)
        if record is not None and names[0].parent == target:
            (record.played(fps) if moving else record).write(names)
        return names

    def _items(self, *, numbers: bool) -> Sequence[Any]:
        """What is saved: arrays of numbers, or PIL images and videos of the shown channels."""
        if self.pixels is None or (isinstance(self.images, list) and not numbers):
            return self.videos or self.images  # the caller may have changed them
        if numbers:
            return [*native(self.pixels, self.values)]
        shown = self.values.displayed(self.pixels)
        return to_videos(shown) if shown.ndim == 5 else to_pil(shown)


def file_suffix(format: str, moving: bool) -> str:
    """The suffix of the files of a format; empty for folders of frames.

    Args:
        format: name of the format; empty for the default.
        moving: whether the files hold videos.

    Raises:
        InputError: the format does not suit them.
    """
    suffix = f".{format}" if format else SUFFIXES[moving][0]
    if suffix in SUFFIXES[moving]:
        return suffix
    if format == FRAMES and moving:
        return ""
    names = [*(suffix[1:] for suffix in SUFFIXES[moving]), *([FRAMES] if moving else [])]
    what = "videos" if moving else "images"
    raise InputError(f'format "{format}" for {what}; choose from: {", ".join(names)}')


def check_suffix(folder: Path, moving: bool) -> None:
    """Check that the path of a folder does not end like a file of an unknown format, such as clip.avi.

    A folder that exists may have any name, and what follows a point may be a number, as in v1.5.

    Raises:
        InputError: it does.
    """
    if re.fullmatch(r"\.[a-z][a-z0-9]{1,4}", folder.suffix.lower()) and not folder.is_dir():
        what = "videos" if moving else "images"
        raise InputError(
            f"{folder}; files of {what} end in {' or '.join(SUFFIXES[moving])}; give such a name, or a folder without "
            "a suffix"
        )


def save_item(item: Image.Image | NDArray[Any], file: Path, settings: dict[str, Any] | None, fps: float = FPS) -> None:
    """Write an image as PNG with its settings, or a video or an array, whose files have no place for settings."""
    if file.suffix.lower() == ".npy":
        save_numbers(item, file)
    elif isinstance(item, Image.Image):
        with replacing(file) as draft:
            item.save(draft, format="PNG", pnginfo=png_metadata(settings))
    else:
        save_video(item, file, fps)


def save_numbers(array: Any, file: Path) -> None:
    """Write an array as .npy; numpy would add the suffix to a name in capitals."""
    with replacing(file) as draft, draft.open("wb") as opened:
        np.save(opened, array)


def make_output(
    pixels: Tensor,
    output_type: str,
    values: PixelValues = EIGHT_BITS,
    describe: Callable[[], Record] | None = None,
    fps: float = FPS,
) -> Output:
    """Convert decoded images (B, C, H, W) or videos (B, C, T, H, W) with these values to an output type."""
    if output_type == "pil":
        shown = values.displayed(pixels)
        return Output(to_pil(shown), to_videos(shown) if shown.ndim == 5 else [], pixels, values, describe, fps)
    if output_type == "native":
        return Output(native(pixels, values), [], pixels, values, describe, fps)
    floats = values.share(pixels)
    arrays = floats if output_type == "pt" else floats.movedim(1, -1).numpy()
    return Output(arrays, [], pixels, values, describe, fps)


def frame_rate(config: Mapping[str, Any]) -> float:
    """Frames per second of the videos of a model: those of the clips that it was trained on, or 8 if unknown.

    Args:
        config: the facts about its training.
    """
    data = config.get("recipe", {}).get("data", {})
    if data.get("fps"):
        return float(data["fps"])
    return data["frames"] / data["seconds"] if data.get("frames") and data.get("seconds") else FPS


def native(pixels: Tensor, values: PixelValues) -> NDArray[Any]:
    """Convert decoded images to an array (B, H, W, C) or (B, T, H, W, C) of the numbers of the training data."""
    numbers: NDArray[Any] = np.ascontiguousarray(values.restored(pixels).movedim(1, -1).numpy())
    return numbers
