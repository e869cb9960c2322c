"""Reconstruction quality of an autoencoder: PSNR, SSIM, and the Frechet distance of reconstructions."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.evaluation.features import Features
from ditlab.evaluation.metrics.frechet import gaussian_distance
from ditlab.evaluation.moments import Gaussian, Moments

WINDOW, SPREAD = 11, 1.5  # side and standard deviation of the Gaussian window in pixels (Wang et al. 2004)


def psnr(a: Tensor, b: Tensor, peak: float = 255.0) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images (B, C, H, W) from 0 to `peak`; infinite for equal images."""
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error)


def ssim(a: Tensor, b: Tensor, peak: float = 255.0) -> Tensor:
    """Structural similarity (B,) of images (B, C, H, W) from 0 to `peak`, mean over channels and positions.

    From Wang et al. 2004. The window is 11x11 pixels, or smaller for smaller images.
    """
    side = min(WINDOW, *a.shape[-2:])
    offsets = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    weights = torch.exp(-(offsets**2) / (2 * SPREAD**2))
    window = torch.outer(weights, weights)[None, None] / weights.sum() ** 2

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], window).reshape(*x.shape[:2], -1)

    x, y = a.double(), b.double()
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure).mean((1, 2))


@dataclass(frozen=True)
class ReconstructionFD:
    """Frechet distances of held-out images to other real images, before and after reconstruction.

    Both have the same bias, because the number of images is the same. The difference is what the autoencoder costs; no
    model of its latents can be expected below `reconstructed`.
    """

    features: str  # name of the feature network
    reconstructed: float
    real: float  # real-vs-real FD


def reconstruction_fd(
    pairs: Iterable[tuple[Tensor, Tensor]], reference: Iterable[Tensor], features: Features
) -> ReconstructionFD:
    """Compute the Frechet distance of reconstructions to a reference, and that of the images themselves.

    Args:
        pairs: batches of images (B, C, H, W) and of their reconstructions, uint8.
        reference: batches of other real images, uint8.
        features: the feature network.

    Raises:
        InputError: there are fewer than two images, or their features are all the same.
    """
    originals, reconstructions = zip(*pairs, strict=True)
    real, reconstructed, expected = (gaussian(part, features) for part in (originals, reconstructions, reference))
    return ReconstructionFD(
        features.name, gaussian_distance(reconstructed, expected), gaussian_distance(real, expected)
    )


@torch.no_grad()
def gaussian(batches: Iterable[Tensor], features: Features) -> Gaussian:
    """Mean and covariance of the features of batches of images."""
    moments = Moments(features.dimension)
    for images in batches:
        moments.add(features(images).features.numpy())
    return moments.gaussian()
