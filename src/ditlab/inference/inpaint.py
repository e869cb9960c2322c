"""Drawing that starts from a picture, or goes from one label to another.

Image to image: the picture is noised to a middle time and the sampler goes on from there (Meng et al., "SDEdit", ICLR
2022). In-painting: what shall stay is known, so at each network call the prediction there is replaced by the truth; any
sampler then carries the picture noised to t along, as the replacement of Lugmayr et al. ("RePaint", CVPR 2022) does.
Their resampling walks each piece of the way several times, so that the old and the new come to agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditlab.autoencoders import Autoencoder
from ditlab.core.errors import InputError
from ditlab.core.types import Denoise, Noise, Prediction, Step
from ditlab.data.preprocess import Preprocess
from ditlab.data.sources import Unreadable
from ditlab.diffusion.process import Process, per_image
from ditlab.diffusion.samplers import Sampler

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # whose readers keep quiet about damaged files
PIECES = 10  # in which the way is walked again; RePaint's jumps are a 25th of it, too short for few steps


@dataclass(frozen=True)
class Original:
    """The pictures that a drawing starts from; a single one serves all that are drawn."""

    pixels: Tensor  # (B, C, H, W) uint8
    x0: Tensor  # (B, c, h, w)
    mask: Tensor | None  # (B, 1, H, W) bool: true where it is drawn anew; None is everywhere
    strength: float  # part of the way that is walked: 1 begins with noise alone
    resample: int  # how often each piece of it is walked

    def part(self, rows: slice) -> "Original":
        """Those of some of the pictures."""
        if len(self.pixels) == 1:
            return self
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, pixels=self.pixels[rows], x0=self.x0[rows], mask=mask)

    def count(self, steps: int) -> int:
        """Steps that are walked out of so many; at least one."""
        return max(1, round(self.strength * steps))

    def calls(self, steps: int) -> int:
        """Steps in all, with those that are walked again."""
        return self.count(steps) * self.resample

    def times(self, grid: Tensor) -> Tensor:
        """The end of a grid that is walked."""
        return grid[-1 - self.count(len(grid) - 1) :]

    def holding(self, denoise: Denoise, process: Process) -> Denoise:
        """A denoiser that knows what shall stay."""
        if self.mask is None:
            return denoise
        stride = self.pixels.shape[-1] // self.x0.shape[-1]
        # A place of the latent is drawn anew if any of its pixels is.
        anew = F.max_pool2d(self.mask.float(), stride).bool().to(self.x0.device)

        def held(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
            guess = denoise(x, t, s)
            eps = (x - per_image(process.alpha(t), x) * self.x0) / per_image(process.sigma(t), x)
            return replace(guess, x0=torch.where(anew, guess.x0, self.x0), eps=torch.where(anew, guess.eps, eps))

        return held

    def walk(
        self, run: Sampler, denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[Step]:
        """The sampler's way, each piece of it `resample` times."""
        if self.resample == 1:
            yield from run(denoise, process, x, times, noise)
            return
        number, length = 0, max(1, round((len(times) - 1) / PIECES))
        for first in range(0, len(times) - 1, length):
            piece = times[first : first + length + 1]
            for turn in range(self.resample):
                if turn:
                    x = noised_again(process, x, piece[-1], piece[0], noise)
                for step in run(denoise, process, x, piece, noise):
                    yield replace(step, i=number)
                    x, number = step.x, number + 1

    def finish(self, pixels: Tensor) -> Tensor:
        """uint8 pictures (B, C, H, W) with the pixels that shall stay, which an autoencoder would have changed."""
        return pixels if self.mask is None else torch.where(self.mask, pixels, self.pixels)


def noised_again(process: Process, x: Tensor, s: Tensor, t: Tensor, noise: Noise) -> Tensor:
    """x_t from x_s, for t > s: a sample of q(x_t | x_s)."""
    ratio = process.alpha(t) / process.alpha(s)
    variance = (process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2).clamp(min=0)
    return per_image(ratio, x) * x + per_image(variance.sqrt(), x) * noise(x)


def originals(
    images: list[Image.Image],
    masks: list[Image.Image],
    autoencoder: Autoencoder,
    channels: int,
    size: tuple[int, int],
    device: torch.device,
    strength: float | None,
    resample: int | None,
) -> Original:
    """Pictures as a start, made as large as the model's: halved, resized, cut out of the middle.

    Args:
        images: one, or one for each picture that is drawn.
        masks: as many, one for all, or none; white is drawn anew, black stays.
        autoencoder, channels, size, device: of the model.
        strength: 0 to 1; None is 1 with a mask and 0.6 without.
        resample: 1 or more; None is 2 with a mask.

    Raises:
        InputError: a number out of range, counts that do not fit, or a picture that makes no sense.
    """
    strength = (1.0 if masks else 0.6) if strength is None else strength
    resample = (2 if masks else 1) if resample is None else resample
    if not 0 < strength <= 1:
        raise InputError(f"strength {strength}; give more than 0, which would change nothing, up to 1")
    if resample < 1 or (resample > 1 and not masks):
        raise InputError(f"resample {resample}; give 1 or more with a mask, and leave it out without one")
    if len(masks) > 1 and len(masks) != len(images):
        raise InputError(f"{len(masks)} masks for {len(images)} pictures; give one, or one for each")
    pixels = torch.cat([as_pixels(image, channels, size) for image in images])
    with torch.no_grad():
        # The middle of the posterior: the same picture always starts the same way.
        x0 = autoencoder.latents(autoencoder.encode(pixels.to(device)), torch.zeros_like)
    mask = None
    if masks:
        mask = torch.cat([as_pixels(each, 1, size) >= 128 for each in masks])
        if not mask.any():
            raise InputError("the mask is black, so nothing would be drawn; make white what shall be drawn anew")
        if len(mask) < len(pixels):
            mask = mask.expand(len(pixels), -1, -1, -1)
    return Original(pixels, x0, mask, strength, resample)


def read_picture(
    file: Path | BinaryIO, limit: int = 64_000_000, formats: tuple[str, ...] = (*FORMATS, "TIFF")
) -> Image.Image:
    """A picture of any common form, decoded.

    Args:
        file: its path, or its bytes.
        limit: pixels at most; a small file may claim billions.
        formats: that it may have, by Pillow's names.

    Raises:
        InputError: nothing there, no picture, or too large a one.
    """
    name = file if isinstance(file, Path) else "the picture"
    try:
        image = Image.open(file, formats=formats)
        if image.width * image.height > limit:
            raise InputError(f"{name} has {image.width}x{image.height} pixels; give one of at most {limit:,} in all")
        image.load()
    except FileNotFoundError:
        raise InputError(f"there is no picture {name}; give another path") from None
    except UnidentifiedImageError:  # which has nothing else to say
        raise InputError(f"{name} cannot be read as {', '.join(formats)}; give another") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read as {', '.join(formats)} ({error}); give another") from error
    return image


def as_pixels(image: Image.Image, channels: int, size: tuple[int, int]) -> Tensor:
    """(1, C, H, W) uint8."""
    try:
        array = Preprocess(size, channels=channels)(image)
    except (Unreadable, OSError) as error:
        raise InputError(f"the picture cannot be read: {error}; give another") from error
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None]
