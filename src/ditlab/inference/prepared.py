"""`PreparedPipeline`: a model with a network that is optimized for inference."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ditlab.backbones import Backbone
from ditlab.core.device import has_bfloat16
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.inference.base import BasePipeline
from ditlab.inference.optimize.packing import packed
from ditlab.inference.optimize.precision import PRECISIONS, QUANTIZED, int8_pays, quick_precision
from ditlab.inference.optimize.quantized import KERNELS, eligible, quantized

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline

TOKENS = 512  # in a trial call
MOST, LEAST = 16, 2  # images in a trial call
LARGEST_ERROR = 0.02  # of the output, relative, with which "auto" accepts 8 bits; that of bfloat16 is up to 0.017
SHARE = 0.8  # of the weights of linear and convolution layers that must be quantized for "auto" to consider 8 bits


@dataclass(init=False, repr=False)
class PreparedPipeline(BasePipeline):
    """A model whose network has been merged, cast, packed or quantized for inference.

    To save, export or upload, use its `model`, which has the weights and the configuration of the training.
    """

    model: "Pipeline"
    net: Backbone

    def __init__(self, model: "Pipeline", net: Backbone) -> None:
        """Combine a model with an optimized network.

        Args:
            model: the model.
            net: a network with the same outputs as the network of the model, possibly in another precision.
        """
        self.model, self.net = model, net
        self.objective, self.autoencoder, self.conditioner = model.objective, model.autoencoder, model.conditioner
        self.config = model.config

    def __repr__(self) -> str:
        return f"PreparedPipeline({self.net.precision} of {self.model!r})"

    def prepared(self, precision: str = "auto") -> "PreparedPipeline":
        """Prepare the model again, possibly in another precision."""
        return self.model.prepared(precision)


def prepare(model: "Pipeline", precision: str) -> PreparedPipeline:
    """Prepare a model for inference, see `Pipeline.prepared`."""
    net = model.net.fused()
    if precision == "auto":
        precision = quick_precision(net.matrix_width, net.device)
        if mostly_linear(net) and int8_pays(net.matrix_width, precision, net.device):
            fast = in_eight_bits(model, net, "int8")
            if relative_error(model, net, fast) <= LARGEST_ERROR:
                return PreparedPipeline(model, fast)
    elif precision not in PRECISIONS:
        raise InputError(f'unknown precision "{precision}"; choose from: auto, {", ".join(PRECISIONS)}')
    if precision in QUANTIZED:
        return PreparedPipeline(model, in_eight_bits(model, net, precision))
    return PreparedPipeline(model, packed(cast(net, getattr(torch, precision))))


def cast(net: Backbone, dtype: torch.dtype) -> Backbone:
    """Return the network in a precision; a copy if that changes it."""
    return net if dtype is net.dtype else copy.deepcopy(net).to(dtype)


def in_eight_bits(model: "Pipeline", net: Backbone, precision: str) -> Backbone:
    """Return the network with quantized layers; its other layers are in bfloat16 on a GPU, and in float32 on a CPU."""
    half = net.device.type != "cpu" and has_bfloat16(net.device)
    net = cast(net, torch.bfloat16 if half else torch.float32)
    with evaluating(net):
        return packed(quantized(net, precision, trial_call(model)))


def mostly_linear(net: Backbone) -> bool:
    """Whether most weights of a network's linear and convolution layers can be quantized to int8."""
    if ("int8", net.device.type) not in KERNELS:
        return False
    layers: list[nn.Linear | _ConvNd] = [layer for layer in net.packable() if isinstance(layer, nn.Linear)]
    layers += [layer for layer in net.modules() if isinstance(layer, _ConvNd)]
    quantizable = sum(layer.weight.numel() for layer in eligible(net, "int8"))
    return quantizable >= SHARE * sum(layer.weight.numel() for layer in layers)


def relative_error(model: "Pipeline", net: Backbone, fast: Backbone) -> float:
    """Return the difference between the outputs of two networks in a trial call, relative to the first one's norm."""
    call = trial_call(model)
    with torch.no_grad(), evaluating(net):
        expected = net(*call).float()
        return float((fast.eval()(*call).float() - expected).norm() / expected.norm().clamp_min(1e-30))


def trial_call(pipe: BasePipeline, batch: int | None = None) -> tuple[Tensor, Tensor, Condition]:
    """Make arguments of the network: noise, and different timesteps and conditions, starting with the null condition.

    Args:
        pipe: the model.
        batch: number of rows (default: those that give `TOKENS` tokens, within `LEAST` and `MOST`).
    """
    if batch is None:
        batch = min(MOST, max(LEAST, TOKENS // max(1, pipe.net.tokens)))
    x, t, condition = pipe.net.example(batch, torch.Generator().manual_seed(batch))
    times = pipe.objective.process.clock(t.cpu().double()).float()  # times are float64, which some devices do not have
    return x, times.to(t.device), condition


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """A context in which a network is in evaluation mode; its mode is restored at the end."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)
