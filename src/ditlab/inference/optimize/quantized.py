"""Quantized linear layers: products of 8-bit numbers in place of the linear layers in a network's blocks.

Weights have one scale for each output channel, and are quantized once. Inputs have one scale for each token, computed
in every call, so that an image does not depend on the others of its batch. In trained networks, a few input channels
of a layer may be much larger than the others, which would then be rounded to few values. Such layers divide each input
channel by a factor, and multiply the weights by it (Xiao et al., "SmoothQuant", ICML 2023). Layers outside of the
blocks and the output layer keep their precision: errors of the output layer reach the image undiminished.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones import Backbone
from ditlab.backbones.layers import LinearGELU
from ditlab.core.device import processor
from ditlab.core.errors import InputError

OUTLIERS = 5.0  # without balancing, the largest ratio of the largest input channel to the median channel
TINY = 1e-30  # smallest divisor, for rows of zeros
INT8, FLOAT8 = 127, 448.0  # largest numbers of the two formats; int8 is used without -128, which makes it symmetric
ZERO = 128  # zero point of unsigned inputs
ROWS = 32  # smallest number of rows on a GPU, where PyTorch's product in int8 needs more than 16
Call = tuple[Any, ...]  # arguments of a network


class QuantizedLinear(nn.Module):
    """Replaces a linear layer, with or without GELU, at inference; its weights are not parameters."""

    multiple = 1
    """Number by which both sides of the weight must be divisible."""
    balanced = True
    """Whether large input channels are balanced; numbers with an exponent do not need it."""

    def __init__(self, linear: nn.Linear, largest: Tensor | None = None) -> None:
        """Quantize the weights of a layer.

        Args:
            linear: the layer.
            largest: largest absolute value (K,) of each input channel in a few calls; None if they are not balanced.
        """
        super().__init__()
        weight = linear.weight.detach().float()
        factors = None if largest is None else balance(weight, largest.float())
        self.factors = None if factors is None else (1 / factors).to(linear.weight.dtype)  # (K,)
        self.pack(weight if factors is None else weight * factors)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.approximate = linear.approximate if isinstance(linear, LinearGELU) else None
        self.width = linear.in_features

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedLinear":
        return self  # the layer never changes, and packed weights cannot be copied

    def pack(self, weight: Tensor) -> None:
        """Quantize weights (N, K) float32, and store them as the kernel reads them."""
        raise NotImplementedError

    def product(self, rows: Tensor) -> Tensor:
        """Quantize rows (M, K), and multiply them by the weights, without the bias: (M, N)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.width)
        out = self.product(rows if self.factors is None else rows * self.factors)
        if self.bias is not None:
            out.add_(self.bias)
        return (out if self.approximate is None else gelu(out, self.approximate)).view(*x.shape[:-1], -1)


class OneDNNLinear(QuantizedLinear):
    """Products in int8 by oneDNN, on a CPU with VNNI instructions."""

    def pack(self, weight: Tensor) -> None:
        signed, self.scales = to_int8(weight)
        self.weight = torch.ops.onednn.qlinear_prepack(signed, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)

    def product(self, rows: Tensor) -> Tensor:
        signed, scale = to_int8(rows)
        # int8 with the first bit inverted is uint8 with zero point 128; PyTorch converts to int8 faster than to uint8.
        return self.multiplied(signed.view(torch.uint8).bitwise_xor_(ZERO)).mul_(scale[:, None])

    def multiplied(self, rows: Tensor) -> Tensor:
        """Multiply rows (M, K) uint8 by the weights, and the columns by their scales: (M, N) float32.

        The rows are unsigned, because oneDNN has no fast kernel for signed rows on CPUs without AMX: its reference
        kernel takes 38,000 times as long.
        """
        product = torch.ops.onednn.qlinear_pointwise
        out: Tensor = product(
            rows, 1.0, ZERO, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return out


class IntMMLinear(QuantizedLinear):
    """Products in int8 by `torch._int_mm`, on a GPU."""

    multiple = 8

    def pack(self, weight: Tensor) -> None:
        signed, self.scales = to_int8(weight)
        self.weight = signed.t()

    def product(self, rows: Tensor) -> Tensor:
        signed, scale = to_int8(rows.float())
        padded = F.pad(signed, (0, 0, 0, max(0, ROWS - len(rows))))
        out = torch._int_mm(padded, self.weight)[: len(rows)]
        return (out * scale[:, None] * self.scales).to(rows.dtype)


class Float8Linear(QuantizedLinear):
    """Products in float8 (4 bits of exponent, 3 of mantissa) by `torch._scaled_mm`, on a GPU."""

    multiple = 16
    balanced = False

    def pack(self, weight: Tensor) -> None:
        numbers, scales = to_float8(weight)
        self.weight, self.scales = numbers.t(), scales.t()

    def product(self, rows: Tensor) -> Tensor:
        numbers, scale = to_float8(rows.float())
        out: Tensor = torch._scaled_mm(numbers, self.weight, scale, self.scales, out_dtype=rows.dtype)
        return out


KERNELS: dict[tuple[str, str], type[QuantizedLinear]] = {
    ("int8", "cpu"): OneDNNLinear,
    ("int8", "cuda"): IntMMLinear,
    ("float8", "cuda"): Float8Linear,
}
CAPABILITIES = {"int8": (7, 5), "float8": (8, 9)}  # of CUDA devices with the instructions


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows (M, K) float32 to int8; returns them with the scale (M,) of each row."""
    # Two reductions take less time than abs, which writes all numbers.
    scale = torch.maximum(rows.amax(1), -rows.amin(1)).clamp_min_(TINY).div_(INT8)
    return (rows * scale.reciprocal()[:, None]).round_().to(torch.int8), scale


def to_float8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Convert rows (M, K) float32 to float8; returns them with the scale (M, 1) of each row."""
    scale = rows.abs().amax(1, keepdim=True).clamp_min_(TINY).div_(FLOAT8)
    return (rows / scale).to(torch.float8_e4m3fn), scale


def balance(weight: Tensor, largest: Tensor) -> Tensor | None:
    """Return the factor (K,) of each input channel, which makes inputs and weights equally hard to quantize.

    It is the root of the channel's largest input over its largest weight. Returns None if no channel is much larger
    than the others.
    """
    if largest.max() <= OUTLIERS * largest.median():
        return None
    return (largest.clamp_min(TINY) / weight.abs().amax(0).clamp_min(TINY)).sqrt()


def gelu(x: Tensor, approximate: str) -> Tensor:
    """Apply GELU, with the approximation by tanh in a form that takes a third of the time of tanh."""
    if approximate != "tanh":
        return F.gelu(x, approximate=approximate)
    inner = torch.addcmul(x, x * x, x, value=0.044715)
    return inner.mul_(math.sqrt(8 / math.pi)).sigmoid_().mul_(x)  # (1 + tanh u) / 2 = sigmoid 2u


def missing(precision: str, device: torch.device) -> str | None:
    """Return what a device lacks for a quantized precision; None if it has everything."""
    if (precision, device.type) not in KERNELS:
        kinds = " or ".join(kind for name, kind in KERNELS if name == precision)
        return f"a device of type {kinds}, not {device.type}"
    if device.type == "cuda":
        least, actual = CAPABILITIES[precision], torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return None if actual >= least else f"CUDA compute capability {least[0]}.{least[1]}, which {name} does not have"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "PyTorch with oneDNN"
    return None if torch.cpu._is_vnni_supported() else f"AVX-512 VNNI instructions, which {processor()} does not have"


def eligible(net: Backbone, precision: str) -> list[nn.Linear]:
    """Return the layers that are quantized: the packable ones in the blocks, without the output layer."""
    blocks, multiple = net.repeated or [net], KERNELS[precision, net.device.type].multiple
    inside = {id(module) for block in blocks for module in block.modules()}
    outputs = {id(module) for name, module in net.named_modules() if f"{name}.weight" in net.heads_out}
    layers = [layer for layer in net.packable() if isinstance(layer, nn.Linear) and id(layer) in inside - outputs]
    return [layer for layer in layers if not (layer.in_features % multiple or layer.out_features % multiple)]


@torch.no_grad()
def quantized(net: Backbone, precision: str, call: Call) -> Backbone:
    """Return a network with quantized linear layers, which cannot be trained; it shares all other weights.

    Args:
        net: the network, in evaluation mode.
        precision: "int8" or "float8".
        call: arguments of a trial call, in which the largest inputs of each layer are measured.

    Raises:
        InputError: the device has no instructions for it, or the network has no such layers.
    """
    if lacking := missing(precision, net.device):
        raise InputError(f"{precision} needs {lacking}; use auto, float32 or bfloat16")
    kernel, layers = KERNELS[precision, net.device.type], eligible(net, precision)
    if not layers:
        raise InputError(f"{net.config['name']} has no linear layers for {precision}; use auto, float32 or bfloat16")
    largest = largest_inputs(net, layers, call) if kernel.balanced else {}
    parts: dict[nn.Module, nn.Module] = {layer: kernel(layer, largest.get(layer)) for layer in layers}
    net = net.with_parts(parts)
    net.quantized = precision
    return net


def largest_inputs(net: Backbone, layers: list[nn.Linear], call: Call) -> dict[nn.Module, Tensor]:
    """Return the largest absolute value (K,) of each input channel of the layers that a call uses."""
    largest: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].abs().flatten(0, -2).amax(0)
        largest[layer] = torch.maximum(values, largest.get(layer, values))

    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        net(*call)
    finally:
        for handle in handles:
            handle.remove()
    return largest
