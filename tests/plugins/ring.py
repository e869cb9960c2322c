"""A backbone from outside: its sizes are called `dim` and `layers`, and it has options of its own."""

import torch.nn.functional as F
from torch import nn

import ditlab
from ditlab.backbones import Backbone


class Ring(Backbone):
    """Convolutions with circular padding, modulated by time and class.

    Args:
        dim: channels of the network.
        layers: how many convolutions.
        kernel: their width.
        padding: "circular" or "zeros".
    """

    def __init__(self, *, size, channels, classes, learn_variance, dim: int, layers: int, kernel: int = 3,
                 padding: str = "circular") -> None:  # fmt: skip
        super().__init__(size, channels, classes, learn_variance)
        self.time, self.classes_table = nn.Linear(1, dim), nn.Embedding(classes + 1, dim)
        conv = {"padding": kernel // 2, "padding_mode": padding}
        self.first = nn.Conv2d(channels, dim, kernel, **conv)
        self.between = nn.ModuleList([nn.Conv2d(dim, dim, kernel, **conv) for _ in range(layers)])
        self.last = nn.Conv2d(dim, self.out_channels, kernel, **conv)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @classmethod
    def variants(cls):
        return {"S": {"dim": 16, "layers": 2}}

    @property
    def tokens(self):
        return 0

    def forward(self, x, timestep, condition, *, trace=None):
        self.check_input(x)
        c = self.time(timestep[:, None].to(self.dtype) / 1000) + self.classes_table(self.labels(condition))
        x = self.first(x.to(self.dtype))
        for layer in self.between:
            x = x + layer(F.silu(x + c[:, :, None, None]))
        return self.last(F.silu(x))


ditlab.register_backbone("Ring", Ring)
