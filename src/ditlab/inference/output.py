"""The output of a pipeline: images or videos as PIL images, arrays, tensors or latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.spelling import expand
from ditlab.report.sheets import save_animation, to_pil, to_videos

TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Output:
    """Generated images or videos."""

    images: Any
    """PIL images ("pil"); float array (B, H, W, C) in 0..1 ("np"); float tensor (B, C, H, W) in 0..1 ("pt"); or latents
    ("latent"). For video models: one PIL image per video with all frames, array (B, T, H, W, C), tensor
    (B, C, T, H, W), or latents."""
    videos: list[NDArray[np.uint8]] = field(default_factory=list)
    """For video models with `output_type="pil"`: one array (T, H, W, C) per video."""

    def save(self, path: str | Path) -> list[Path]:
        """Write images as PNG files or videos as GIF files; returns their paths.

        Args:
            path: a folder, which is created; or a file name that ends in .png or .gif, to which numbers are added if
                there are several images.

        Raises:
            InputError: the output does not hold PIL images, or the file name has another suffix.
        """
        items: Sequence[Any] = self.videos or self.images
        if not isinstance(items, list):
            raise InputError('only output_type="pil" can be saved; leave output_type out')
        suffix, target = ".gif" if self.videos else ".png", Path(expand(str(path)))
        if target.suffix.lower() in (".png", ".gif"):
            if target.suffix.lower() != suffix:
                raise InputError(f"{target}; give a name that ends in {suffix}")
            stem = target.stem
            names = [target] if len(items) == 1 else [target.with_stem(f"{stem}-{i}") for i in range(len(items))]
        else:
            names = [target / f"{i:04d}{suffix}" for i in range(len(items))]
        names[0].parent.mkdir(parents=True, exist_ok=True)
        for item, file in zip(items, names, strict=True):
            save_item(item, file)
        return names


def save_item(item: Image.Image | NDArray[np.uint8], file: Path) -> None:
    """Write an image as PNG, or a video as GIF."""
    if isinstance(item, Image.Image):
        item.save(file)
    else:
        save_animation([Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in item], file)


def make_output(pixels: Tensor, output_type: str) -> Output:
    """Convert uint8 pixels (B, C, H, W) or (B, C, T, H, W) to an output type."""
    if output_type == "pil":
        videos = to_videos(pixels) if pixels.ndim == 5 else []
        return Output(to_pil(pixels), videos)
    floats = pixels.float() / 255
    return Output(floats if output_type == "pt" else floats.movedim(1, -1).numpy())
