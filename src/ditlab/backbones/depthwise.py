"""Depth-wise convolution with a fast backward pass on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve every channel of (B, C, H, W) with its own odd kernel (C, 1, k, k); the grid stays as it is."""
    fast = x.device.type != "cpu" or weight.shape[-1] <= COLUMNS
    if fast or not (weight.requires_grad and torch.is_grad_enabled()):
        return forward(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        x, weight = (each.to(torch.get_autocast_dtype("cpu")) for each in (x, weight))
    result: Tensor = DepthwiseConv.apply(x, weight, None if bias is None else bias.to(x.dtype))  # type: ignore[no-untyped-call]
    return result


COLUMNS = (
    3  # of the widest kernel for whose weights oneDNN has a fast gradient; five columns take 5 to 50 times as long
)


class DepthwiseConv(torch.autograd.Function):
    """Computes the gradient of the weights for a few columns of the kernel at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = F.conv2d(gradient, weight.flip(2, 3), padding=weight.shape[-1] // 2, groups=len(weight))
        of_weight = torch.empty_like(weight)
        edge = weight.shape[-1] // 2 - COLUMNS // 2
        wide = F.pad(x, (edge, edge))
        for start in range(0, 2 * edge + 1, 2):
            # Columns start to start + 2 of the kernel are a kernel of their own for a gradient that lies elsewhere.
            columns = slice(start, start + COLUMNS)
            shifted = F.pad(gradient, (start, 2 * edge - start))
            of_weight[..., columns] = weight_gradient(wide, shifted, weight[..., columns])
        return of_x if ctx.needs_input_grad[0] else None, of_weight, gradient.sum((0, 2, 3)) if ctx.biased else None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's own convolution."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's own gradient of a depth-wise kernel of this shape."""
    padding = (weight.shape[-2] // 2, weight.shape[-1] // 2)
    backward = torch.ops.aten.convolution_backward
    none, one = (0, 0), (1, 1)
    return backward(gradient, x, weight, None, one, padding, one, False, none, len(weight), (False, True, False))[1]
