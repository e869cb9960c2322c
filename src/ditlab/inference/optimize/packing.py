"""Linear layers of a network that only draws, through oneDNN's own kernels.

Those add the bias, and GELU behind it, to a product while it is in the cache; in bfloat16 the weights are kept in the
order in which the kernel reads them. PyTorch's own path writes the bias first, adds the product to it, and goes over
the result again for GELU, whose tanh costs more there than the product does. Nothing needs to be compiled.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.backbones import Backbone
from ditlab.backbones.layers import LinearGELU
from ditlab.core.device import has_bfloat16
from ditlab.inference.optimize.modulation import MODULATION


class PackedLinear(nn.Module):
    """In the place of a linear layer, with or without GELU; its weights are no parameters any more."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if weight.dtype is torch.bfloat16 else weight
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.behind: tuple[str, list[Any], str] = ("none", [], "")
        if isinstance(linear, LinearGELU):
            self.behind = ("gelu", [], linear.approximate)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        return self  # nothing of it ever changes, and packed weights cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.behind)
        return out


@cache
def hide_from_compilers() -> None:
    """Leave packed layers out of what is compiled: compilers cannot read their weights.

    To say so imports PyTorch's compiler, for two seconds, so it is said once somebody compiles.
    """
    PackedLinear.forward = torch.compiler.disable(PackedLinear.forward)  # type: ignore[method-assign,no-untyped-call]


def packed(net: Backbone) -> Backbone:
    """A network that computes the same on this CPU with oneDNN's layers, and cannot be trained; it shares all other
    weights. The network itself where nothing is gained.

    All linear layers are packed in bfloat16. In float32, where products alone are as quick without, those with GELU.
    Modulations are left to `tabulated`.
    """
    if net.device.type != "cpu" or not torch.backends.mkldnn.enabled or not has_kernels(net.dtype):
        return net
    wanted = nn.Linear if net.dtype is torch.bfloat16 else LinearGELU
    parts: dict[nn.Module, nn.Module] = {
        module: PackedLinear(module)
        for name, module in net.named_modules()
        if isinstance(module, wanted) and MODULATION not in name and "embedder" not in name
    }
    return net.with_parts(parts) if parts else net


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for this precision that were measured to be quicker, on this CPU."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and (dtype is torch.float32 or has_bfloat16(torch.device("cpu")))
