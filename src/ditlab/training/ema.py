"""The exponential moving average (EMA) of the weights, from which samples are generated."""

import copy

import torch

from ditlab.backbones import Backbone
from ditlab.training.parallel import local


class EMA:
    """A float32 copy of the network with averaged weights.

    At update n the decay is at most (1 + n) / (10 + n), so that initial weights do not dominate a short run.

    Args:
        net: the network.
        decay: share of the average that a step keeps, at most.
        offloaded: keep the average in the memory of the host.
    """

    def __init__(self, net: Backbone, decay: float, *, offloaded: bool = False) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        if offloaded:
            self.net.cpu()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, net: Backbone) -> None:
        """Move the average towards the weights of the network; buffers are constant and not averaged."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, weights = local(self.net.parameters()), local(net.parameters())
        here = [weight.to(average.device) for average, weight in zip(averages, weights, strict=True)]
        torch._foreach_lerp_(averages, here, 1 - decay)
