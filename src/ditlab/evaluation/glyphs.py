"""The score of a model of the built-in letters: a small classifier gives features (64) and reads the letters.

It looks at 32x32 pixels, whatever the size of the pictures, is trained once from a fixed seed and kept in the user's
cache. As for the digits: distances in its features are named `fd`, never FID, and come with their floor.
"""

import os
from functools import cache
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditlab.data.glyphs import Glyphs
from ditlab.errors import InputError
from ditlab.evaluation.digits import FLOOR_DRAWS, Score
from ditlab.evaluation.metrics import frechet_distance

SIDE, TRAINED_ON, EPOCHS, BATCH = 32, 26_000, 4, 128
HELD_OUT = 2600  # letters to which samples are compared


class Reader(nn.Module):
    """Three convolutions and a 64-dimensional feature layer; uint8 (B, 3, H, W) -> logits (B, 26)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(2048, 64), nn.ReLU())
        self.head = nn.Linear(64, 26)

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, 64)."""
        x = F.interpolate(images.float() / 127.5 - 1, (SIDE, SIDE), mode="area")
        features: Tensor = self.features(x)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(images))
        return logits


@cache
def trained_reader(console: Console | None = None) -> Reader:
    """The classifier, from the user's cache or trained now (a minute or two on a laptop, with a progress bar)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditlab"
    file = home / "glyphs-reader-1.safetensors"
    if file.exists():
        net = Reader()
        net.load_state_dict(load_file(file))
        return net.eval()
    net = _train(console or Console(stderr=True))
    try:
        home.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}.part")
        save_file(net.state_dict(), draft)
        os.replace(draft, file)
    except OSError:
        pass  # it is trained again next time
    return net.eval()


def _train(console: Console) -> Reader:
    data = Glyphs(SIDE, TRAINED_ON)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Reader().train()
        images = torch.cat([data.fetch(part).images for part in torch.split(torch.arange(TRAINED_ON), 1000)])
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
        steps = [part for _ in range(EPOCHS) for part in torch.split(torch.randperm(TRAINED_ON), BATCH)]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, len(steps))
        shown = track(steps, "learning to read letters", console=console, disable=not console.is_terminal)
        for part in shown:
            loss = F.cross_entropy(net(images[part]), data.labels[part], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net


@torch.no_grad()
def score_glyphs(images: Tensor, labels: Tensor, console: Console | None = None) -> Score:
    """Score samples (N, 3, H, W) uint8 that were asked to show the letters `labels` (N,), 0 to 25.

    Raises:
        InputError: fewer samples than features: their covariance would mean nothing.
    """
    if len(images) <= 64:
        raise InputError(f"{len(images)} samples; draw more than 64 for a Frechet distance in 64 features")
    with torch.enable_grad():
        net = trained_reader(console)
    held_out = _embed(net, Glyphs(SIDE, HELD_OUT, held_out=True))
    truth = Glyphs(SIDE, HELD_OUT, held_out=True).labels
    real = _embed(net, Glyphs(SIDE, FLOOR_DRAWS * len(images), seed=1))
    features = torch.cat([net.embed(part) for part in torch.split(images, 256)])
    floors = [frechet_distance(part.numpy(), held_out.numpy()) for part in torch.split(real, len(images))]
    return Score(
        accuracy=(net.head(features).argmax(1) == labels).float().mean().item(),
        fd=frechet_distance(features.numpy(), held_out.numpy()),
        fd_floor=fmean(floors),
        classifier_accuracy=(net.head(held_out).argmax(1) == truth).float().mean().item(),
    )


def _embed(net: Reader, data: Glyphs) -> Tensor:
    return torch.cat([net.embed(data.fetch(part).images) for part in torch.split(torch.arange(len(data)), 256)])
