"""Euler-Maruyama on the reverse SDE with diffusion coefficient sigma_t (SiT, Ma et al. 2024), for many steps."""

from collections.abc import Iterator

from torch import Tensor

from ditlab.core.types import Denoise, Noise, Step
from ditlab.diffusion.process import Process, per_image


def sde(denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise) -> Iterator[Step]:
    """Compute u - h (eps - x0) - h eps / 2 + sqrt(h t) noise for a step of length h from t, in straight coordinates.

    With diffusion w^2 = t and score = -eps / t the drift is velocity - w^2 score / 2, which is finite at t = 0. The
    last step is Euler's, without noise.
    """
    scales, times = process.straight(schedule)
    for i, t in enumerate(schedule[:-1]):
        prediction = denoise(x, t, schedule[i + 1])
        u = x / per_image(scales[i], x)
        h = times[i] - times[i + 1]
        u = u - per_image(h, x) * (prediction.eps - prediction.x0)
        if schedule[i + 1] > 0:
            u = u - per_image(h / 2, x) * prediction.eps + per_image((h * times[i]).sqrt(), x) * noise(x)
        x = u * per_image(scales[i + 1], x)
        yield Step(i, float(schedule[i + 1]), x, prediction.x0)
