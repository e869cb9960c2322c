"""Packed linear layers: fused oneDNN kernels for the linear layers of a network at inference on a CPU.

These kernels add the bias and apply a following GELU while the product is in the cache; in bfloat16 the weights are
stored in the order in which the kernel reads them. PyTorch's default writes the bias, adds the product, and reads the
result again for GELU, whose tanh takes more time than the product. Packing needs no compiler.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ditlab.backbones import Backbone
from ditlab.backbones.layers import LinearGELU
from ditlab.core.device import has_bfloat16


class PackedLinear(nn.Module):
    """Replaces a linear layer, with or without GELU; its weights are not parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if weight.dtype is torch.bfloat16 else weight
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation: tuple[str, list[Any], str] = ("none", [], "")
        if isinstance(linear, LinearGELU):
            self.activation = ("gelu", [], linear.approximate)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        return self  # the layer never changes, and packed weights cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.activation)
        return out


def packed(net: Backbone) -> Backbone:
    """Return a network with packed linear layers, which cannot be trained; it shares all other weights.

    The network is returned unchanged if packing is not faster. In bfloat16 all `packable` layers are packed, in float32
    only those with GELU, because other float32 layers are as fast without packing. Networks that make layers at
    inference use the same kernels for them (`Backbone.fused_kernels`).
    """
    if net.device.type != "cpu" or not torch.backends.mkldnn.enabled or not has_kernels(net.dtype):
        return net
    layer_type = nn.Linear if net.dtype is torch.bfloat16 else LinearGELU
    parts: dict[nn.Module, nn.Module] = {
        layer: PackedLinear(layer) for layer in net.packable() if isinstance(layer, layer_type)
    }
    if not parts and not net.gates:
        return net
    net = net.with_parts(parts)
    net.fused_kernels = True
    return net


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for this precision and CPU that are faster according to measurements."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and (dtype is torch.float32 or has_bfloat16(torch.device("cpu")))
