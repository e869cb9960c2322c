"""Ancestral sampling (Ho et al. 2020), with a learned variance if the network has one (Nichol & Dhariwal 2021)."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ditlab.core.types import Denoise, Noise, Prediction, Step
from ditlab.diffusion.process import Process, per_image, posterior


def ddpm(denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise) -> Iterator[Step]:
    """Sample x_s from q(x_s | x_t, predicted x0) in each step; the last step returns the mean."""
    for i, (t, s) in enumerate(pairwise(schedule)):
        prediction = denoise(x, t, schedule[i + 1])
        x = reverse_mean(process, prediction, x, t, s)
        if s > 0:
            x = x + noise(x) * torch.exp(0.5 * reverse_log_variance(process, prediction, x, schedule, i))
        yield Step(i, float(s), x, prediction.x0)


def reverse_mean(process: Process, prediction: Prediction, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Compute the mean of the step from t to s (Ho et al. 2020, eq. 7)."""
    back = posterior(process, t, s)
    return per_image(back.from_x, x) * x + per_image(back.from_x0, x) * prediction.x0


def reverse_log_variance(process: Process, prediction: Prediction, x: Tensor, schedule: Tensor, i: int) -> Tensor:
    """Compute the log-variance of step i: beta, or the learned interpolation between posterior variance and beta.

    If no variance is learned, beta gives samples closer to the data than the posterior variance: on a
    variance-preserving process beta is exact for data of unit variance, and the posterior variance is exact for a
    single image (Ho et al. 2020, section 3.2).
    """
    high = per_image(posterior(process, schedule[i], schedule[i + 1]).beta.log(), x)
    if prediction.variance_mix is None:
        return high
    # The posterior of the last step has no variance; as in improved DDPM, the previous step's variance is used.
    step = i - 1 if schedule[i + 1] == 0 and i > 0 else i
    low = per_image(posterior(process, schedule[step], schedule[step + 1]).variance.clamp(min=1e-20).log(), x)
    return low + prediction.variance_mix * (high - low)
