"""Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for matrices and kernels.

An update is the momentum of the gradient, with all its singular values moved close to 1 by a Newton-Schulz iteration.
`torch.optim.Muon` iterates in bfloat16, which many CPUs emulate, and refuses convolution kernels. This one iterates in
float32 on devices without bfloat16, and reads a kernel (D, C, k, k) as a matrix (D, C k k).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ditlab.core.device import has_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: singular values end in about 0.7 to 1.2
STEPS = 5
MOMENTUM = 0.95
WIDE = 2.0  # from this ratio of the sides on, the iteration on the square matrix takes less time
RMS = 0.2  # root mean square of an update, about that of AdamW (Liu et al., "Muon is Scalable for LLM Training", 2025)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for parameters of two or more dimensions.

    Args:
        params: the parameters.
        lr: learning rate; updates have the size of AdamW's, so that one rate suits both.
        weight_decay: decoupled weight decay.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; parameters without a gradient stay as they are. There is no closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
                update = orthogonalized(torch.lerp(parameter.grad, momentum, MOMENTUM))
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def orthogonalized(update: Tensor) -> Tensor:
    """Return a tensor (D, ...), read as a matrix, with singular values near 1, scaled to the RMS of AdamW's updates."""
    matrix = update.flatten(1).to(torch.bfloat16 if has_bfloat16(update.device) else torch.float32)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    on_square = x.dtype is torch.float32 and x.shape[1] >= WIDE * x.shape[0]
    x = iterated_on_square(x) if on_square else iterated(x)
    scale = RMS * max(matrix.shape) ** 0.5
    return (x.T if tall else x).to(update.dtype).reshape(update.shape) * scale


def iterated(x: Tensor) -> Tensor:
    """The Newton-Schulz iteration of a matrix (m, n): x becomes (a + b S + c S^2) x with S = x x^T, five times."""
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def iterated_on_square(x: Tensor) -> Tensor:
    """The same for m much smaller than n, with products of (m, m) matrices only, but for the first and the last.

    The factor P = a + b S + c S^2 of a step is symmetric and commutes with S, so that S becomes P S P, and the factors
    of all steps are multiplied before they meet x. For float32 only: eigenvalues of S near zero become negative by
    rounding, and a negative one grows twelvefold in each step, which bfloat16 does not have the digits for.
    """
    a, b, c = COEFFICIENTS
    square, factors = x @ x.T, None
    for step in range(STEPS):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        factors = factor if factors is None else factor @ factors
        if step < STEPS - 1:
            square = factor @ (square @ factor)
    return x if factors is None else factors @ x
