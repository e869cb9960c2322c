"""DPM-Solver++(2M) (Lu et al. 2022): second order with one evaluation per step, on data predictions over log-SNR."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ditlab.core.types import Denoise, Noise, Step
from ditlab.diffusion.process import Process, per_image


def dpmpp(denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise) -> Iterator[Step]:
    """Compute x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D.

    D is x0, extrapolated with the previous prediction; the first and the last step use x0 itself and have order 1.
    Where alpha = 0, the log-SNR is infinite and the extrapolation is zero, which is its limit.
    """
    alpha, sigma, log_snr = process.alpha(schedule), process.sigma(schedule), process.log_snr(schedule)
    previous: Tensor | None = None
    for i, t in enumerate(schedule[:-1]):
        prediction = denoise(x, t, schedule[i + 1])
        data = prediction.x0
        if previous is not None and schedule[i + 1] > 0:
            lead = (log_snr[i + 1] - log_snr[i]) / (2 * (log_snr[i] - log_snr[i - 1]))
            if (
                lead <= 1
            ):  # no extrapolation over a step much longer than the previous one, as at the end of DDPM's chain
                data = torch.lerp(previous, data, 1 + float(lead))
        shrink = sigma[i + 1] / sigma[i]
        x = per_image(shrink, x) * x + per_image(alpha[i + 1] - alpha[i] * shrink, x) * data
        previous = prediction.x0
        yield Step(i, float(schedule[i + 1]), x, prediction.x0)
