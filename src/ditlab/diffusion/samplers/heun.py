"""Heun's method in straight coordinates: second order, two calls a step but one for the last (Karras et al. 2022)."""

from collections.abc import Iterator

from torch import Tensor

from ditlab.core.types import Denoise, Noise, Step
from ditlab.diffusion.process import Process, per_image


def heun(denoise: Denoise, process: Process, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Step]:
    """Euler to s, then again with the mean of the slopes at both ends; the step to t = 0 stays Euler."""
    scales, times = process.straight(grid)
    for i, t in enumerate(grid[:-1]):
        prediction = denoise(x, t, grid[i + 1])
        slope = prediction.eps - prediction.x0
        width = per_image(times[i + 1] - times[i], x)
        start, scale = x / per_image(scales[i], x), per_image(scales[i + 1], x)
        x = (start + width * slope) * scale
        if grid[i + 1] > 0:
            end = denoise(x, grid[i + 1], grid[i + 1])
            x = (start + width * (slope + end.eps - end.x0) / 2) * scale
        yield Step(i, float(grid[i + 1]), x, prediction.x0)
