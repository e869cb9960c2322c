"""The exponential moving average (EMA) of the weights, which is used for sampling."""

import copy

import torch

from ditlab.backbones import Backbone
from ditlab.training.parallel import local


class EMA:
    """A float32 copy of the network that follows its weights.

    The decay warms up as (1 + n) / (10 + n) over updates n, so that a short run is not dragged by its initial weights.
    """

    def __init__(self, net: Backbone, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, net: Backbone) -> None:
        """Move towards the network's weights; buffers never change and are not averaged."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(local(self.net.parameters()), local(net.parameters()), 1 - decay)
