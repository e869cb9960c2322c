"""The sampler of flow maps: each step is one evaluation of the mean velocity from its time to the next one.

The step is that of Euler's method in straight coordinates (`Process.straight`), but without its error, because the
prediction for (t, s) holds for the whole step. See `ditlab.diffusion.flow_map`.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from ditlab.core.types import Denoise, Noise, Prediction, Step
from ditlab.diffusion.process import Process, per_image


def flow_map(denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise) -> Iterator[Step]:
    """Compute x_s from x_t with the mean velocity eps - x0 of the step from t to s."""
    for i, (t, s) in enumerate(pairwise(schedule)):
        prediction = denoise(x, t, s)
        x = moved(process, x, t, s, prediction)
        yield Step(i, float(s), x, prediction.x0)


def moved(process: Process, x: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> Tensor:
    """Return x_s (B, C, ...) from x_t, times () or (B,), and a prediction that holds for the whole step."""
    (scale_t, from_), (scale_s, to) = process.straight(t), process.straight(s)
    slope = prediction.eps - prediction.x0
    return (x / per_image(scale_t, x) + per_image(to - from_, x) * slope) * per_image(scale_s, x)
