"""Depth-wise convolution with a fast backward pass on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve every channel of x (B, C, H, W) with its kernel of weight (C, 1, k, k), k odd; the size is kept."""
    fast = x.device.type != "cpu" or weight.shape[-1] <= COLUMNS
    if fast or not (weight.requires_grad and torch.is_grad_enabled()):
        return forward(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        x, weight = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (x, weight))
    result: Tensor = DepthwiseConv.apply(x, weight, None if bias is None else bias.to(x.dtype))  # type: ignore[no-untyped-call]
    return result


# Widest kernel for whose weights oneDNN computes the gradient fast; with five columns it takes 5 to 50 times as long.
COLUMNS = 3


class DepthwiseConv(torch.autograd.Function):
    """A convolution that computes the gradient of its kernel in slices of `COLUMNS` columns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_gradient = F.conv2d(gradient, weight.flip(2, 3), padding=weight.shape[-1] // 2, groups=len(weight))
        kernel_gradient = torch.empty_like(weight)
        edge = weight.shape[-1] // 2 - COLUMNS // 2
        wide = F.pad(x, (edge, edge))
        for start in range(0, 2 * edge + 1, 2):
            # Columns start to start + 2 act like a 3-column kernel whose output is shifted by `start` columns.
            columns = slice(start, start + COLUMNS)
            shifted = F.pad(gradient, (start, 2 * edge - start))
            kernel_gradient[..., columns] = weight_gradient(wide, shifted, weight[..., columns])
        bias_gradient = gradient.sum((0, 2, 3)) if ctx.biased else None
        return x_gradient if ctx.needs_input_grad[0] else None, kernel_gradient, bias_gradient


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the convolution with PyTorch's kernel."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient of a depth-wise kernel of this shape with PyTorch's kernel."""
    padding = (weight.shape[-2] // 2, weight.shape[-1] // 2)
    backward = torch.ops.aten.convolution_backward
    none, one = (0, 0), (1, 1)
    return backward(gradient, x, weight, None, one, padding, one, False, none, len(weight), (False, True, False))[1]
