"""U-DiT's re-parametrized layers: products of linear layers and sums of convolutions that are applied as one layer."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.depthwise import depthwise_conv
from ditlab.backbones.layers import LinearGELU, precise
from ditlab.backbones.udit_grid import Conv
from ditlab.core.modules import skip_init


class Chain(nn.Sequential):
    """Two linear layers without activation between them, applied as one if that is less work; with an optional GELU."""

    def __init__(self, width: int, middle: int, out: int, gelu: bool = False) -> None:
        super().__init__(nn.Linear(width, middle), nn.Linear(middle, out))
        self.sizes, self.gelu = (width, middle, out), gelu

    def forward(self, x: Tensor) -> Tensor:
        width, middle, out = self.sizes
        pixels = x.numel() // width
        if (
            pixels * (width * middle + middle * out) < (pixels + middle) * width * out
        ):  # at levels with large widths and small grids
            x = super().forward(x)  # type: ignore[no-untyped-call]
        else:
            weight, bias = self.product()
            x = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        return F.gelu(x) if self.gelu else x

    def product(self) -> tuple[Tensor, Tensor]:
        """Compute weight and bias of the merged layer; differentiable."""
        w1, b1, w2, b2 = (value.to(precise(value.dtype)) for value in self.parameters())
        return w2 @ w1, torch.addmv(b2, w2, b1)

    def merged(self) -> nn.Linear:
        """Return the merged layer."""
        weight, bias = self.product()
        with skip_init():
            width, out = self.sizes[0], self.sizes[2]
            layer = LinearGELU(width, out, "none") if self.gelu else nn.Linear(width, out)
        return fill(layer, weight, bias, self)


class Branches(nn.ModuleList):
    """The sum of a shortcut and depth-wise convolutions (largest kernel first), applied as one convolution."""

    def __init__(self, width: int, kernels: Sequence[int]) -> None:
        super().__init__([Conv(width, width, kernel, groups=width) for kernel in kernels])

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.sum()
        return depthwise_conv(x.movedim(-1, 1), weight.to(x.dtype), bias.to(x.dtype)).movedim(1, -1)

    def sum(self) -> tuple[Tensor, Tensor]:
        """Compute weight and bias of the merged convolution; differentiable."""
        values = [value.to(precise(value.dtype)) for value in self.parameters()]
        weights, biases = values[::2], values[1::2]
        kernel = weights[0].shape[-1]
        shortcut = torch.zeros_like(weights[0])
        shortcut[..., kernel // 2, kernel // 2] = 1
        padded = [F.pad(weight, [(kernel - weight.shape[-1]) // 2] * 4) for weight in weights]
        return torch.stack([shortcut, *padded]).sum(0), torch.stack(biases).sum(0)

    def merged(self) -> Conv:
        """Return the merged convolution."""
        weight, bias = self.sum()
        width, _, kernel, _ = weight.shape
        with skip_init():
            conv = Conv(width, width, kernel, groups=width)
        return fill(conv, weight, bias, self)


def fill(layer: nn.Module, weight: Tensor, bias: Tensor, like: nn.Module) -> Any:
    """Set weight and bias of a layer, in the precision and mode of the module `like`; returns the layer."""
    first = next(like.parameters())
    layer.load_state_dict({"weight": weight.to(first.dtype), "bias": bias.to(first.dtype)}, assign=True)
    return layer.train(like.training).requires_grad_(first.requires_grad)


class FeedForward(nn.Module):
    """D -> 2 D -> D with GELU and a depth-wise convolution between the linear layers.

    If re-parametrized, each linear layer is trained as a product of two, and the convolution as the sum of three
    convolutions and a shortcut. In training they are merged before they are applied, so that a step costs about as much
    as with the fused network.
    """

    def __init__(self, width: int, reparametrised: bool) -> None:
        super().__init__()
        hidden = 2 * width
        self.project_in: nn.Module = LinearGELU(width, hidden, "none")
        self.dwconv: nn.Module = Conv(hidden, hidden, 5, groups=hidden)
        self.project_out: nn.Module = nn.Linear(hidden, width)
        if reparametrised:
            self.project_in, self.project_out = Chain(width, width, hidden, gelu=True), Chain(hidden, width, width)
            self.dwconv = Branches(hidden, (5, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(self.dwconv(self.project_in(x)))
