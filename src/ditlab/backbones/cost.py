"""The cost of a network: parameters, multiply-accumulates, tokens, bytes; counted without allocating weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ditlab.backbones import Backbone


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one image costs, the denoiser alone, merged as far as its family can be (`fused`)."""

    parameters: int  # merged, as papers count them
    parameters_unfused: int  # as they are trained and saved; the same where there is nothing to merge
    gmacs: float  # 1e9 multiply-accumulates: what papers print as "Gflops"
    gflops: float  # twice that
    tokens: int  # of the longest sequence
    weight_bytes: int  # of the saved model, as float32


def measure(make: Callable[[], Backbone]) -> Cost:
    """Cost of the network that `make` creates; nothing is allocated."""
    with torch.device("meta"):
        net = make().eval()
        inputs = net.example(1)
    fused = net.fused()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fused(*inputs)
    flops = counter.get_total_flops()
    merged, saved = (sum(parameter.numel() for parameter in each.parameters()) for each in (fused, net))
    return Cost(merged, saved, flops / 2e9, flops / 1e9, net.tokens, 4 * saved)
