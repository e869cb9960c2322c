"""A training step of a small autoencoder: its loss, precision and optimizer."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.autoencoders import Patch
from ditlab.autoencoders.patch import Block
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.core.values import network_scale
from ditlab.inference.optimize.precision import faster_dtype
from ditlab.training.muon import Muon
from ditlab.training.optim import CombinedOptimizer

WEIGHT_DECAY = 1e-4


@dataclass
class State:
    """The state of training, which is saved."""

    autoencoder: Patch
    optimizer: CombinedOptimizer
    seen: int = 0
    seconds: float = 0.0
    precision: str = ""  # "float32" or "bfloat16"; empty until it is chosen


def make_optimizer(autoencoder: Patch, lr: float) -> CombinedOptimizer:
    """Muon for the kernels of the blocks, and AdamW for all other parameters."""
    kernels = [
        p for block in autoencoder.modules() if isinstance(block, Block) for p in block.parameters() if p.ndim > 1
    ]
    muon = {id(p) for p in kernels}
    others = [p for p in autoencoder.parameters() if id(p) not in muon]
    adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY)
    return CombinedOptimizer(adamw, Muon(kernels, lr, WEIGHT_DECAY))


def choose_precision(state: State, images: Tensor, settings: AutoencoderTraining) -> None:
    """Choose the precision of training; "auto" times steps on images (B, C, H, W)."""
    state.precision = settings.precision
    if settings.precision != "auto":
        return
    device = state.autoencoder.analysis.weight.device

    def trial(dtype: torch.dtype) -> None:
        state.precision = str(dtype).removeprefix("torch.")
        training_loss(state, images, settings).backward()  # type: ignore[no-untyped-call]
        state.optimizer.zero_grad()

    width = 9 * settings.width  # of a kernel as a matrix
    state.precision = str(faster_dtype(trial, device, width)).removeprefix("torch.")


def training_loss(state: State, images: Tensor, settings: AutoencoderTraining) -> Tensor:
    """The loss of images (B, C, H, W) in the precision of the state; the noise depends on seed and images seen."""
    autoencoder, dtype = state.autoencoder.train(), getattr(torch, state.precision)
    generator = torch.Generator().manual_seed((settings.seed * 1_000_000_007 + state.seen) % 2**63)
    x = network_scale(images.to(next(autoencoder.parameters()).device))
    with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
        mean, log_variance = autoencoder.moments(x).float().chunk(2, dim=1)
        eps = torch.randn(mean.shape, generator=generator).to(x)
        y = autoencoder.pictures(mean + (log_variance / 2).exp() * eps).float()
    nats = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
    return (y - x).abs().mean() + settings.edges * edge_error(y, x) + settings.kl * nats / x.numel()


def step(state: State, images: Tensor, settings: AutoencoderTraining, rate: float) -> tuple[Tensor, Tensor]:
    """Take a training step on images (B, C, H, W); returns the loss and the norm of the gradient."""
    loss = training_loss(state, images, settings)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(state.autoencoder.parameters(), 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    return loss.detach(), norm


def edge_error(a: Tensor, b: Tensor) -> Tensor:
    """L1 error of the differences between neighboring pixels, averaged over full, half and quarter size."""
    error = a - b
    total = torch.zeros((), device=a.device)
    for _ in range(3):
        total = total + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        error = F.avg_pool2d(error, 2)
    return total / 3
