"""Adams-Bashforth in straight coordinates: order 2 or 4 with one evaluation per step, from the slopes of earlier steps.

Order 4 needs one additional evaluation: the first step is Heun's, and the next two steps integrate from the start of
the schedule, so that the lower order of the first steps does not limit the accuracy. After a bound of the guidance
interval the order is 2, because the trajectory is not smooth there and a polynomial of higher order would oscillate.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ditlab.core.types import Denoise, Noise, Prediction, Step
from ditlab.diffusion.process import Process, per_image


def adams_bashforth(
    denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise, *, order: int
) -> Iterator[Step]:
    """Compute u_s = u_base + the integral of the polynomial through the last `order` slopes, from base to s."""
    scales, times = process.straight(schedule)
    start = x / per_image(scales[0], x)
    slopes: list[Tensor] = []  # newest first
    guided: int | None = None

    def integrate(slopes: list[Tensor], newest: int, base: int, end: int, u: Tensor) -> Tensor:
        nodes = times[newest + 1 - len(slopes) : newest + 1].flip(0)
        for weight, slope in zip(integration_weights(nodes, times[base], times[end]), slopes, strict=True):
            u = u + per_image(weight, u) * slope
        return u

    for i, t in enumerate(schedule[:-1]):
        prediction = denoise(x, t, schedule[i + 1])
        if guided not in (None, prediction.guided):
            order = 2
        guided = prediction.guided
        slopes = [_slope(prediction), *slopes][:order]
        if 0 < i < order - 1:
            u = integrate(slopes, i, 0, i + 1, start)
        else:
            u = integrate(slopes, i, i, i + 1, x / per_image(scales[i], x))
        if i == 0 and order > 2 and schedule[1] > 0:
            end = _slope(denoise(u * per_image(scales[1], x), schedule[1], schedule[1]))
            u = integrate([end, *slopes], 1, 0, 1, start)
        x = u * per_image(scales[i + 1], x)
        yield Step(i, float(schedule[i + 1]), x, prediction.x0)


def integration_weights(nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Compute the weights (n,) of values at n nodes that integrate their polynomial exactly from start to end."""
    powers = torch.arange(len(nodes), dtype=torch.float64)
    shifted = (nodes - start) / (end - start)  # integrate over [0, 1]
    vandermonde = shifted[None, :] ** powers[:, None]
    weights: Tensor = torch.linalg.solve(vandermonde, 1 / (powers + 1))
    return weights * (end - start)


def _slope(prediction: Prediction) -> Tensor:
    return prediction.eps - prediction.x0
