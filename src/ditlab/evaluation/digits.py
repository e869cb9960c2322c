"""The score of a model of the bundled digits: a small classifier gives features (64) and reads the labels.

Distances in its features are comparable with each other only, and are named `fd`, never FID. They are biased by the
number of pictures, so the floor is the distance of equally many real training digits to the same held-out ones.
"""

from dataclasses import dataclass
from functools import cache
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.data.digits import digits, held_out_digits
from ditlab.errors import InputError
from ditlab.evaluation.metrics import frechet_distance

FLOOR_DRAWS = 10  # a single draw of real digits varies by a tenth


@dataclass(frozen=True)
class Score:
    """How good samples of digits are."""

    accuracy: float  # share of samples read as the class asked for
    fd: float  # Frechet distance of the samples to held-out real digits
    fd_floor: float  # the same for as many real training digits, mean of ten draws
    classifier_accuracy: float  # on held-out real digits


class Classifier(nn.Module):
    """Two convolutions and a 64-dimensional feature layer; uint8 (B, 1, 8, 8) -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(1024, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, 64)."""
        features: Tensor = self.features(images.float() / 127.5 - 1)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(images))
        return logits


@cache
def train_classifier(epochs: int = 30) -> Classifier:
    """Train on the training digits, shifted by up to a pixel; fixed seed, seconds on a laptop, once a process."""
    data = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier().train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for part in torch.split(torch.randperm(len(data)), 64):
                batch = data.fetch(part)
                down, right = torch.randint(-1, 2, (2,)).tolist()
                images = torch.roll(F.pad(batch.images, (1, 1, 1, 1)), (down, right), (2, 3))[:, :, 1:-1, 1:-1]
                loss = F.cross_entropy(net(images), batch.labels, label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def score_digits(samples: Tensor, labels: Tensor) -> Score:
    """Score samples (N, 1, 8, 8) uint8 that were asked to show the digits `labels` (N,).

    Raises:
        InputError: pictures that are not 8x8 grey, or more of them than there are training digits.
    """
    train, held_out = digits(), held_out_digits()
    if samples.shape[1:] != (1, 8, 8):
        raise InputError(f"pictures of {tuple(samples.shape[1:])}; digits are (1, 8, 8)")
    if not 65 <= len(samples) <= len(train):
        raise InputError(f"{len(samples)} samples; give 65 (to determine 64 features) to {len(train)} (all real ones)")
    with torch.enable_grad():
        classifier = train_classifier()
    real = classifier.embed(held_out.images).numpy()
    known = classifier.embed(train.images).numpy()
    chance = torch.Generator().manual_seed(0)
    draws = [torch.randperm(len(train), generator=chance)[: len(samples)].numpy() for _ in range(FLOOR_DRAWS)]
    return Score(
        accuracy=(classifier(samples).argmax(1) == labels).float().mean().item(),
        fd=frechet_distance(classifier.embed(samples).numpy(), real),
        fd_floor=fmean(frechet_distance(known[draw], real) for draw in draws),
        classifier_accuracy=(classifier(held_out.images).argmax(1) == held_out.labels).float().mean().item(),
    )
