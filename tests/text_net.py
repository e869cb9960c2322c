"""A tiny network that reads text, and captioned images, for whole paths."""

from typing import ClassVar

import torch
from torch import nn

from ditlab.backbones import Backbone
from ditlab.backbones.text import TextEmbedder, TextShape
from ditlab.conditioning import Encoder
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


class Letters(Encoder):
    """Encodes each letter as a state of three values, and keeps the texts that it has encoded."""

    options = ("length", "seed")
    encoded: ClassVar[list[str]] = []

    def __init__(self, length, seed=0):
        self.config = {"kind": "letters", "length": length, "seed": seed}
        self.shape = TextShape(length, width=3, pooled=2)

    @classmethod
    def for_captions(cls, captions, options):
        return cls(int(options.get("length", max(map(len, captions)))), int(options.get("seed", 0)))

    def encode(self, texts):
        self.encoded.extend(texts)
        codes = torch.tensor([[ord(c) for c in text[: self.shape.length].ljust(self.shape.length)] for text in texts])
        tokens = torch.sin(codes[..., None] * torch.arange(1, 4) + self.config["seed"])
        mask = torch.tensor([[i < max(1, len(text)) for i in range(self.shape.length)] for text in texts])
        return Condition(tokens=tokens, mask=mask, pooled=tokens[:, 0, :2].contiguous())

    def cut(self, text):
        return text[self.shape.length :]
