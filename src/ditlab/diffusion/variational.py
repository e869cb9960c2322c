"""The variational bound of improved DDPM, which trains a learned reverse variance."""

import math

import torch
from torch import Tensor

from ditlab.diffusion.process import DDPM, Process, per_image, posterior


def variational_bound(process: Process, x0: Tensor, estimate: Tensor, x: Tensor, t: Tensor, mix: Tensor) -> Tensor:
    """Compute a term of the variational bound in nats for each value (B, C, ...) (Nichol & Dhariwal 2021, eq. 4, 15).

    The term is the KL divergence between the true and the predicted step from t to the previous index; at the first
    index it is the negative log-likelihood of x0 under a Gaussian discretized to 256 bins.

    Args:
        process: a discrete process.
        x0, estimate, x: the data, the predicted x0, and x_t (B, C, ...).
        t: times (B,).
        mix: the learned variance (B, C, ...): 0 is log beta_tilde, 1 is log beta.
    """
    assert isinstance(process, DDPM)
    step = 1 / process.timesteps
    back = posterior(process, t, t - step)
    # At the first index the posterior has no variance; the variance at the second index is used instead.
    second = t.clamp(min=2 * step)
    low = per_image(posterior(process, second, second - step).variance.log(), x)
    log_var = low + mix * (per_image(back.beta.log(), x) - low)
    true_mean = per_image(back.from_x, x) * x + per_image(back.from_x0, x) * x0
    mean = per_image(back.from_x, x) * x + per_image(back.from_x0, x) * estimate
    kl = 0.5 * (log_var - low - 1 + torch.exp(low - log_var) + (true_mean - mean).square() * torch.exp(-log_var))
    first = per_image(t < 1.5 * step, x).bool()
    return torch.where(first, _binned_nll(x0, mean, log_var), kl)


def _binned_nll(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log of the mass of N(mean, exp(log_var)) in the bin of half width 1/255 around x; bins at -1 and 1 are open."""
    scale = torch.exp(-0.5 * log_var)
    above, below = (_normal_cdf((x - mean + edge) * scale) for edge in (1 / 255, -1 / 255))
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    # The published losses use this approximation; the exact function changes their second digit.
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
