"""Ancestral sampling (Ho et al. 2020), with the learned variance of improved DDPM where the network has one."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ditlab.core.types import Denoise, Noise, Prediction, Step
from ditlab.diffusion.process import Process, per_image, posterior


def ddpm(denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise) -> Iterator[Step]:
    """Sample x_s from q(x_s | x_t, predicted x0) along the schedule; the last step is its mean."""
    for i, (t, s) in enumerate(pairwise(schedule)):
        prediction = denoise(x, t, schedule[i + 1])
        x = reverse_mean(process, prediction, x, t, s)
        if s > 0:
            x = x + noise(x) * torch.exp(0.5 * reverse_log_variance(process, prediction, x, schedule, i))
        yield Step(i, float(s), x, prediction.x0)


def reverse_mean(process: Process, prediction: Prediction, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Mean of the step from t to s (Ho et al. 2020, eq. 7)."""
    back = posterior(process, t, s)
    return per_image(back.from_x, x) * x + per_image(back.from_x0, x) * prediction.x0


def reverse_log_variance(process: Process, prediction: Prediction, x: Tensor, schedule: Tensor, i: int) -> Tensor:
    """Log-variance of step i of the schedule: beta, or the learned mix of the posterior's variance and beta.

    Without a learned variance, beta (on a variance-preserving process exact for data of unit variance, Ho et al. 2020,
    section 3.2) comes closer to the data than the posterior's variance, which is exact for a single image.
    """
    high = per_image(posterior(process, schedule[i], schedule[i + 1]).beta.log(), x)
    if prediction.variance_mix is None:
        return high
    # The last step's posterior has no variance; it borrows that of the step before (improved DDPM does so).
    low_at = i - 1 if schedule[i + 1] == 0 and i > 0 else i
    low = per_image(posterior(process, schedule[low_at], schedule[low_at + 1]).variance.clamp(min=1e-20).log(), x)
    return low + prediction.variance_mix * (high - low)
