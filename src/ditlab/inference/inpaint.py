"""Generate images from an image: image-to-image and in-painting.

Image-to-image: noise is added to the image up to an intermediate time, and the sampler continues from there (Meng et
al., "SDEdit", ICLR 2022). In-painting: in each network call the prediction for the kept part of the image is replaced
by the image itself, so that any sampler follows the noised image there, as in Lugmayr et al., "RePaint", CVPR 2022.
Resampling (from the same paper) runs each part of the schedule several times, so that the regenerated part fits the
kept part.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditlab.autoencoders import Autoencoder
from ditlab.config.values import number, whole
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.types import Condition, Denoise, Noise, Prediction, Step
from ditlab.core.units import counted
from ditlab.core.values import PixelValues
from ditlab.diffusion.process import Process, per_image
from ditlab.diffusion.samplers import Sampler

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # formats whose decoders print nothing if a file is damaged
PIXELS = 64_000_000  # most pixels of an image
BLOCK = 4096  # bytes of a file that are decoded at once, into up to 4 MB, while other threads of the process wait
PIECES = 10  # number of resampled parts of the schedule; RePaint's 25 parts are too short if there are few steps


@dataclass(frozen=True)
class Original:
    """Images that generation starts from: one for all generated images, or one per generated image."""

    what: ClassVar[str] = "the image to start from was"
    pixels: Tensor  # (B, C, H, W) uint8
    x0: Tensor  # (B, c, h, w)
    mask: Tensor | None  # (B, 1, H, W) bool: true where the image is regenerated; None is everywhere
    strength: float  # share of the trajectory that runs; 1 starts from noise
    resample: int  # number of times that each part of the schedule runs
    files: tuple[tuple[str, ...], ...] = ()  # paths of each image and its mask; empty for images that are in memory

    @property
    def rounds(self) -> int:
        """Number of times that the whole schedule runs."""
        return self.resample

    @property
    def options(self) -> dict[str, Any]:
        """The settings of starting from an image, for records."""
        return {"strength": self.strength, "resample": self.resample}

    @property
    def parts(self) -> int:
        """Number of parts that are generated one after another."""
        return 1

    def part(self, rows: slice) -> "Original":
        """Return the originals of some of the generated images."""
        if len(self.pixels) == 1:
            return self
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, pixels=self.pixels[rows], x0=self.x0[rows], mask=mask, files=self.files[rows])

    def about(self, i: int) -> dict[str, str]:
        """Return the paths of the image and mask for generated image i, as far as they are known, and their hash."""
        i = 0 if len(self.pixels) == 1 else i
        paths = dict(zip(("image", "mask"), self.files[i] if self.files else (), strict=False))
        parts = [self.pixels[i]] + ([] if self.mask is None else [self.mask[i].to(torch.uint8)])
        digest = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()
        return {name: path for name, path in paths.items() if path} | {"image_hash": digest[:16]}

    def conditioned(self, condition: Condition) -> Condition:
        """Return the condition for these originals: what the network receives in addition to x."""
        return condition

    def times(self, schedule: Tensor) -> Tensor:
        """Return the last part of a schedule that runs with this strength, at least one step."""
        steps = len(schedule) - 1
        return schedule[-1 - max(1, round(self.strength * steps)) :]

    def holding(self, denoise: Denoise, process: Process) -> Denoise:
        """Return a denoiser that predicts the original image where the mask keeps it."""
        if self.mask is None:
            return denoise
        stride = self.pixels.shape[-1] // self.x0.shape[-1]
        # A position of the latent is regenerated if any of its pixels is.
        regenerated = F.max_pool2d(self.mask.float(), stride).bool().to(self.x0.device)

        def held(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
            return self.kept(denoise(x, t, s), regenerated, process, x, t)

        return held

    def kept(self, prediction: Prediction, regenerated: Tensor, process: Process, x: Tensor, t: Tensor) -> Prediction:
        """Return a prediction at x_t with the original where it is not regenerated."""
        eps = (x - per_image(process.alpha(t), x) * self.x0) / per_image(process.sigma(t), x)
        return replace(
            prediction,
            x0=torch.where(regenerated, prediction.x0, self.x0),
            eps=torch.where(regenerated, prediction.eps, eps),
        )

    def walk(
        self, run: Sampler, denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[Step]:
        """Run the sampler, with each part of the schedule `resample` times; yields all steps."""
        if self.resample == 1:
            yield from run(denoise, process, x, times, noise)
            return
        number, length = 0, max(1, round((len(times) - 1) / PIECES))
        for first in range(0, len(times) - 1, length):
            piece = times[first : first + length + 1]
            for repeat in range(self.resample):
                if repeat:
                    x = noised_again(process, x, piece[-1], piece[0], noise)
                for step in run(denoise, process, x, piece, noise):
                    yield replace(step, i=number)
                    x, number = step.x, number + 1

    def check_count(self, count: int) -> None:
        """Check that there is one original, or one for each of `count` generated images.

        Raises:
            InputError: another number.
        """
        if len(self.pixels) not in (1, count):
            raise InputError(f"{len(self.pixels)} images to start from for {count} generated images; give 1 or {count}")

    def finish(self, pixels: Tensor) -> Tensor:
        """Restore the kept pixels in uint8 images (B, C, H, W), because an autoencoder changes them."""
        return pixels if self.mask is None else torch.where(self.mask, pixels, self.pixels)


def noised_again(process: Process, x: Tensor, s: Tensor, t: Tensor, noise: Noise) -> Tensor:
    """Sample x_t from q(x_t | x_s) for t > s."""
    ratio = process.alpha(t) / process.alpha(s)
    variance = (process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2).clamp(min=0)
    return per_image(ratio, x) * x + per_image(variance.sqrt(), x) * noise(x)


def check_startable(channels: int, values: PixelValues) -> None:
    """Check that a model of images with these channels and values can start from an image file.

    Raises:
        InputError: it cannot, because its images are not gray or RGB with 8 bits.
    """
    if channels not in (1, 3) or not values.eight_bits:
        raise InputError(
            f"this model generates {counted(channels, 'channel')} of {values.summary()}, and images to start from "
            "are gray or RGB with 8 bits; generate from noise, without image="
        )


def as_images(value: Any, name: str) -> list[Image.Image]:
    """Return one image or several as a list; None is no image.

    Raises:
        InputError: something else is given.
    """
    images = [value] if isinstance(value, Image.Image) else [] if value is None else value
    if not isinstance(images, Sequence) or not all(isinstance(image, Image.Image) for image in images):
        raise InputError(f"{name} is a {type(value).__name__}; give a PIL image, or a list of them")
    return list(images)


def originals(
    image: Any,
    mask: Any,
    autoencoder: Autoencoder,
    channels: int,
    size: tuple[int, int],
    device: torch.device,
    strength: float | None,
    resample: int | None,
) -> Original:
    """Prepare images to start from: resize and crop them to the model's size, and encode them.

    Args:
        image: one image, or one per generated image.
        mask: one mask per image, one for all, or None; white is regenerated, black is kept.
        autoencoder, channels, size, device: autoencoder, image channels, image size and device of the model.
        strength: 0 to 1; None is 1 with a mask and 0.6 without.
        resample: 1 or more; None is 2 with a mask.

    Raises:
        InputError: a number is out of range, the numbers of images and masks do not fit, or an image cannot be used.
    """
    images, masks = as_images(image, "image"), as_images(mask, "mask")
    if not images:
        raise InputError("there is no image to start from; give one, or a list of them")
    strength = (1.0 if masks else 0.6) if strength is None else number(strength, "strength")
    resample = (2 if masks else 1) if resample is None else whole(resample, "resample")
    if not 0 < strength <= 1:
        raise InputError(f"strength {strength}; give more than 0, which would change nothing, up to 1")
    if resample < 1 or (resample > 1 and not masks):
        raise InputError(f"resample {resample}; give 1 or more with a mask, and leave it out without one")
    if len(masks) > 1 and len(masks) != len(images):
        raise InputError(
            f"{counted(len(masks), 'mask')} for {counted(len(images), 'image')}; give one, or one for each"
        )
    pixels = torch.cat([as_pixels(image, channels, size) for image in images])
    with torch.no_grad():
        # The mean of the posterior, so that the same image always has the same latent.
        x0 = autoencoder.latents(autoencoder.encode(pixels.to(device)), torch.zeros_like)
    mask = None
    if masks:
        mask = torch.cat([as_pixels(image, 1, size) >= 128 for image in masks])
        if not mask.any():
            raise InputError("the mask is black, so nothing would be generated; make the part to regenerate white")
        if len(mask) < len(pixels):
            mask = mask.expand(len(pixels), -1, -1, -1)
    masks = masks or [Image.new("L", (1, 1))]
    files = [(path_of(image), path_of(masks[i % len(masks)])) for i, image in enumerate(images)]
    return Original(pixels, x0, mask, strength, resample, tuple(files))


def path_of(image: Image.Image) -> str:
    """Return the path that an image was opened from; empty if it was made in memory."""
    return str(getattr(image, "filename", "") or "")


def read_image(
    file: Path | BinaryIO,
    limit: int = PIXELS,
    formats: tuple[str, ...] = (*FORMATS, "TIFF"),
    size: tuple[int, int] | None = None,
    what: str = "the image",
) -> Image.Image:
    """Read and decode an image file.

    Args:
        file: path, or an open binary file.
        limit: largest number of pixels, because a small file may decode to billions.
        formats: accepted formats, with Pillow's names.
        size: height and width to which the image will be resized; an image that is too narrow is not decoded.
        what: what messages call an open file.

    Raises:
        InputError: the file does not exist, is no image, or has too many pixels.
    """
    name = file if isinstance(file, Path) else what
    try:
        image = Image.open(file, formats=formats)
        if image.width * image.height > limit:
            raise InputError(f"{name} has {image.width}x{image.height} pixels; give one of at most {limit:,} in all")
        if size is not None:
            check_sides(image.size, size, limit)
        image.decodermaxblock = BLOCK
        image.load()
    except InputError:  # which is a ValueError too
        raise
    except FileNotFoundError:
        remedy = nearest_path(file, "give another path") if isinstance(file, Path) else "give another path"
        raise InputError(f"there is no image {name}; {remedy}") from None
    except UnidentifiedImageError:  # its text has no further information
        raise InputError(f"{name} cannot be read as {', '.join(formats)}; give another") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read as {', '.join(formats)} ({error}); give another") from error
    return image


read_picture = read_image  # the name in version 0.1


def check_sides(sides: tuple[int, int], size: tuple[int, int], limit: int = PIXELS) -> None:
    """Check that an image is not so narrow that it becomes too large when it is resized to cover a size.

    Args:
        sides: width and height of the image.
        size: height and width to cover.
        limit: largest number of pixels.

    Raises:
        InputError: it is.
    """
    (width, height), (target_height, target_width) = sides, size
    scale = max(target_width / width, target_height / height)
    covering = round(scale * width), round(scale * height)
    if covering[0] * covering[1] > limit:
        raise InputError(
            f"the image has {width}x{height} pixels, and would have {covering[0]}x{covering[1]} when it is resized to "
            f"cover {target_width}x{target_height}; crop it to at most {limit:,} pixels in all"
        )


def as_pixels(image: Image.Image, channels: int, size: tuple[int, int]) -> Tensor:
    """Resize and crop an image to a tensor (1, C, H, W) uint8."""
    # Imported here, because sampling from noise does not need these modules, which take 2 % of the start-up time.
    from ditlab.data.preprocess import Preprocess
    from ditlab.data.sources import Unreadable

    check_sides(image.size, size)
    try:
        array = Preprocess(size, channels=channels)(image)
    except (Unreadable, OSError) as error:
        raise InputError(f"the image cannot be read: {error}; give another") from error
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None]


def check_originals(original: Original | None, count: int) -> None:
    """Check that there is no original, one, or one for each of `count` generated images; raises an `InputError`."""
    if original is not None:
        original.check_count(count)
