"""Features of handwritten digits: a classifier of 8x8 gray images, which is trained in seconds."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from ditlab.data.builtin.digits import digits
from ditlab.evaluation.features.base import Features
from ditlab.evaluation.features.small import (
    FEATURES,
    ClassifierFeatures,
    SmallClassifier,
    check_no_weights,
    load_or_train,
)

EPOCHS = 30


class DigitClassifier(SmallClassifier):
    """Two convolutions and a 64-dimensional feature layer."""

    def __init__(self) -> None:
        super().__init__(classes=10)
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(1024, FEATURES),
            nn.ReLU(),
        )


@cache
def digit_classifier() -> DigitClassifier:
    """The classifier, trained on the training digits, which are shifted by up to a pixel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DigitClassifier()
        load_or_train("digits-reader-1", net, _train)
    return net


def _train(net: SmallClassifier) -> None:
    data = digits()
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for part in torch.split(torch.randperm(len(data)), 64):
            batch = data.fetch(part)
            down, right = torch.randint(-1, 2, (2,)).tolist()
            images = torch.roll(F.pad(batch.x, (1, 1, 1, 1)), (down, right), (2, 3))[:, :, 1:-1, 1:-1]
            loss = F.cross_entropy(net(images), batch.labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()


def load(weights: str, device: torch.device) -> Features:
    """The features "digits"; the network is so small that it stays on the CPU."""
    check_no_weights("digits", weights)
    return ClassifierFeatures("digits", digit_classifier(), digits().classes, 1, (8, 8))
