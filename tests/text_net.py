"""A tiny network that reads text, and captioned images, for whole paths."""

from torch import nn

from ditlab.backbones import Backbone
from ditlab.backbones.text import TextEmbedder, TextShape
from ditlab.core.types import Condition

RECIPE = {
    "model": {"name": "text_net:TextNet", "width": 16},
    "data": {"conditioner": "text"},
    "train": {
        "images": 64, "batch": 16, "precision": "float32", "device": "cpu", "log_every": 16, "compile": "never",
        "save_every": 32, "preview_every": 64, "label_dropout": 0.25,
    },
    "optim": {"lr": 1e-2},
    "sample": {"sampler": "euler", "steps": 1, "guidance": 2.0},
}  # fmt: skip


class TextNet(Backbone):
    """Adds a vector of the text and the timestep to each pixel."""

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool = False,
        width: int = 16,
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
    ):
        super().__init__(size, channels, classes, learn_variance)
        self.text = TextShape(text_length, text_width, vocabulary, pooled_width)
        self.embed = TextEmbedder(width, self.text, heads=2)
        self.embed.initialize()
        self.time = nn.Linear(1, width)
        self.into, self.out = nn.Conv2d(channels, width, 1), nn.Conv2d(width, self.out_channels, 1)

    @classmethod
    def variants(cls):
        return {}

    @property
    def tokens(self):
        return 1

    def forward(self, x, timestep, condition, *, trace=None):
        assert isinstance(condition, Condition)
        _, _, vector = self.embed(condition)
        h = self.into(x) + (vector + self.time(timestep[:, None] / 1000))[:, :, None, None]
        return self.out(h.relu())
