"""A toy backbone for videos (C, T, H, W), and a data set of them."""

import torch
import torch.nn.functional as F
from torch import nn

import ditlab
from ditlab.backbones import Backbone
from ditlab.data.base import InMemory


class Cube(Backbone):
    """Convolutions in time and space.

    Args:
        features: channels of the network.
    """

    spatial = 3

    def __init__(self, *, size, channels, classes, learn_variance, features: int = 16) -> None:
        super().__init__(size, channels, classes, learn_variance)
        self.time, self.table = nn.Linear(1, features), nn.Embedding(classes + 1, features)
        self.first, self.middle = (
            nn.Conv3d(channels, features, 3, padding=1),
            nn.Conv3d(features, features, 3, padding=1),
        )
        self.last = nn.Conv3d(features, self.out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @classmethod
    def variants(cls):
        return {}

    @property
    def tokens(self):
        return 0

    def forward(self, x, timestep, condition, *, trace=None):
        self.check_input(x)
        c = self.time(timestep[:, None].to(self.dtype) / 1000) + self.table(self.labels(condition))
        x = self.first(x.to(self.dtype))
        x = x + self.middle(F.silu(x + c[:, :, None, None, None]))
        return self.last(F.silu(x))


def moving(name):
    """32 videos of 4 frames of 8x8: a bright row that moves down (class 0) or up (class 1)."""
    videos = torch.zeros(32, 1, 4, 8, 8, dtype=torch.uint8)
    for i in range(32):
        for t in range(4):
            videos[i, 0, t, ((i // 2) + (t if i % 2 == 0 else -t)) % 8] = 255
    return InMemory(videos, torch.arange(32) % 2, ["down", "up"])


ditlab.register_backbone("Cube", Cube)
ditlab.register_dataset("moving", moving)
