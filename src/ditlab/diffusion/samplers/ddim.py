"""DDIM (Song et al. 2021): deterministic with eta = 0, noise of ancestral sampling with eta = 1."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from ditlab.core.types import Denoise, Noise, Step
from ditlab.diffusion.process import Process, per_image, posterior


def ddim(
    denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise, *, eta: float = 0.0
) -> Iterator[Step]:
    """Compute x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) noise; v is eta^2 times the posterior variance."""
    for i, (t, s) in enumerate(pairwise(schedule)):
        prediction = denoise(x, t, schedule[i + 1])
        variance = eta**2 * posterior(process, t, s).variance
        sigma = (process.sigma(s) ** 2 - variance).clamp(min=0).sqrt()
        x = per_image(process.alpha(s), x) * prediction.x0 + per_image(sigma, x) * prediction.eps
        if variance > 0:
            x = x + per_image(variance.sqrt(), x) * noise(x)
        yield Step(i, float(s), x, prediction.x0)
