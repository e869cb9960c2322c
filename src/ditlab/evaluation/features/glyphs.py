"""Features of rendered letters: a classifier of 32x32 images, to which images of any size are resized."""

from functools import cache

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from ditlab.core.terminal import make_console
from ditlab.data.builtin.glyphs import CLASSES, Glyphs
from ditlab.evaluation.features.base import Features
from ditlab.evaluation.features.small import (
    FEATURES,
    ClassifierFeatures,
    SmallClassifier,
    check_no_weights,
    load_or_train,
)

SIDE, TRAINED_ON, EPOCHS, BATCH = 32, 26_000, 4, 128


class GlyphClassifier(SmallClassifier):
    """Three convolutions and a 64-dimensional feature layer."""

    def __init__(self) -> None:
        super().__init__(classes=26)
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(2048, FEATURES), nn.ReLU())

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(F.interpolate(images.float(), (SIDE, SIDE), mode="area"))


@cache
def glyph_classifier() -> GlyphClassifier:
    """The classifier, trained on rendered letters; this takes a minute or two on a laptop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GlyphClassifier()
        load_or_train("glyphs-reader-1", net, _train)
    return net


def _train(net: SmallClassifier) -> None:
    data, console = Glyphs(SIDE, TRAINED_ON), make_console(stderr=True)
    net.train()
    images = torch.cat([data.fetch(part).x for part in torch.split(torch.arange(TRAINED_ON), 1000)])
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = [part for _ in range(EPOCHS) for part in torch.split(torch.randperm(TRAINED_ON), BATCH)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, len(steps))
    for part in track(steps, "training the classifier of letters", console=console, disable=not console.is_terminal):
        loss = F.cross_entropy(net(images[part]), data.labels[part], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def load(weights: str, device: torch.device) -> Features:
    """The features "glyphs"; the network is so small that it stays on the CPU."""
    check_no_weights("glyphs", weights)
    return ClassifierFeatures("glyphs", glyph_classifier(), CLASSES, 3)
