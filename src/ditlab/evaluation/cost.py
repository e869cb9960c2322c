"""The cost of a network: parameters, multiply-accumulates, tokens, bytes; counted without allocating weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ditlab.backbones import Backbone


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one image costs, the denoiser alone."""

    parameters: int
    gmacs: float  # 1e9 multiply-accumulates: what papers print as "Gflops"
    gflops: float  # twice that
    tokens: int  # of the longest sequence
    weight_bytes: int  # as float32


def measure(make: Callable[[], Backbone]) -> Cost:
    """Cost of the network that `make` creates; nothing is allocated."""
    with torch.device("meta"):
        net = make().eval()
        x = torch.empty(1, net.channels, *net.size)
        t, y = torch.empty(1), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, t, y)
    flops = counter.get_total_flops()
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return Cost(parameters, flops / 2e9, flops / 1e9, net.tokens, 4 * parameters)
