"""A small network of videos that learns: convolutions over time and space, shifted by the timestep and the class."""

import torch
from torch import nn

from ditlab.backbones import Backbone


class VideoNet(Backbone):
    """Two convolutions over (T, H, W)."""

    spatial = 3

    def __init__(self, *, size, channels, classes, learn_variance, width: int = 8):
        super().__init__(size, channels, classes, learn_variance)
        self.condition = nn.Embedding(classes + 1, width)
        self.time = nn.Linear(1, width)
        self.first = nn.Conv3d(channels, width, 3, padding=1)
        self.last = nn.Conv3d(width, self.out_channels, 3, padding=1)

    @classmethod
    def variants(cls):
        return {}

    @property
    def tokens(self):
        return 1

    def forward(self, x, timestep, condition, *, trace=None):
        labels = condition if isinstance(condition, torch.Tensor) else condition.label
        shift = self.condition(labels) + self.time(timestep[:, None].to(self.dtype) / 1000)
        return self.last(torch.relu(self.first(x.to(self.dtype)) + shift[:, :, None, None, None]))
