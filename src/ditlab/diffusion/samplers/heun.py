"""Heun's method in straight coordinates: second order, two evaluations per step but the last (Karras et al. 2022)."""

from collections.abc import Iterator

from torch import Tensor

from ditlab.core.types import Denoise, Noise, Step
from ditlab.diffusion.process import Process, per_image


def heun(denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise) -> Iterator[Step]:
    """Step with the mean of the slopes at t and at the Euler estimate of x_s; the step to t = 0 is Euler's."""
    scales, times = process.straight(schedule)
    for i, t in enumerate(schedule[:-1]):
        prediction = denoise(x, t, schedule[i + 1])
        slope = prediction.eps - prediction.x0
        width = per_image(times[i + 1] - times[i], x)
        start, scale = x / per_image(scales[i], x), per_image(scales[i + 1], x)
        x = (start + width * slope) * scale
        if schedule[i + 1] > 0:
            end = denoise(x, schedule[i + 1], schedule[i + 1])
            x = (start + width * (slope + end.eps - end.x0) / 2) * scale
        yield Step(i, float(schedule[i + 1]), x, prediction.x0)
