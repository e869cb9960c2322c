"""What a pipeline returns: images or videos in the form that was asked for, and their files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.report.sheets import save_animation, to_pil, to_videos

TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Output:
    """Generated images or videos."""

    images: Any
    """PIL images; float arrays (B, H, W, C) in 0..1 ("np"); float tensors (B, C, H, W) in 0..1 ("pt"); or latents.
    Of a video model: contact strips of the frames, arrays (B, T, H, W, C), tensors (B, C, T, H, W), or latents."""
    videos: list[NDArray[np.uint8]] = field(default_factory=list)
    """Of a video model with `output_type="pil"`: one array (T, H, W, C) for each video."""

    def save(self, path: str | Path) -> list[Path]:
        """Write PNG files, or GIF files of videos.

        Args:
            path: a folder, which is made; or a file name ending in .png or .gif, to which numbers are added if there
                are several images.

        Raises:
            InputError: an output that holds no PIL images.
        """
        items: Sequence[Any] = self.videos or self.images
        if not isinstance(items, list):
            raise InputError('only output_type="pil" can be saved; leave output_type out')
        kind, target = ".gif" if self.videos else ".png", Path(path)
        if target.suffix.lower() in (".png", ".gif"):
            if target.suffix.lower() != kind:
                raise InputError(f"{target}; give a name that ends in {kind}")
            stem = target.stem
            names = [target] if len(items) == 1 else [target.with_stem(f"{stem}-{i}") for i in range(len(items))]
        else:
            names = [target / f"{i:04d}{kind}" for i in range(len(items))]
        names[0].parent.mkdir(parents=True, exist_ok=True)
        for item, file in zip(items, names, strict=True):
            save_item(item, file)
        return names


def save_item(item: Image.Image | NDArray[np.uint8], file: Path) -> None:
    """One image as PNG, one video as GIF."""
    if isinstance(item, Image.Image):
        item.save(file)
    else:
        save_animation([Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in item], file)


def make_output(pixels: Tensor, output_type: str) -> Output:
    """uint8 pixels (B, C, H, W) or (B, C, T, H, W) in the wanted form."""
    if output_type == "pil":
        videos = to_videos(pixels) if pixels.ndim == 5 else []
        return Output(to_pil(pixels), videos)
    floats = pixels.float() / 255
    return Output(floats if output_type == "pt" else floats.movedim(1, -1).numpy())
