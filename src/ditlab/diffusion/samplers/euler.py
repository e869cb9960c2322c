"""Euler's method on the probability-flow ODE in straight coordinates (`Process.straight`), one evaluation per step.

In these coordinates the velocity is eps - x0, and a step is exact if x0 and eps are constant. On the linear path this
is the Euler step of flow matching; on any process it equals DDIM with eta = 0.
"""

from collections.abc import Iterator

from torch import Tensor

from ditlab.core.types import Denoise, Noise, Step
from ditlab.diffusion.process import Process, per_image


def euler(denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise) -> Iterator[Step]:
    """Compute u_s = u_t + (s - t) (eps - x0)."""
    scales, times = process.straight(schedule)
    for i, t in enumerate(schedule[:-1]):
        prediction = denoise(x, t, schedule[i + 1])
        slope = prediction.eps - prediction.x0
        u = x / per_image(scales[i], x) + per_image(times[i + 1] - times[i], x) * slope
        x = u * per_image(scales[i + 1], x)
        yield Step(i, float(schedule[i + 1]), x, prediction.x0)
