"""An exact denoiser to hold samplers against, and a tiny model to run whole paths with."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.backbones import create
from ditlab.core.types import Batch, Prediction
from ditlab.data import Dataset
from ditlab.data.decode import open_image
from ditlab.data.reading import Reading
from ditlab.data.sources import Source
from ditlab.data.sources.base import label_column
from ditlab.diffusion.objective import Objective
from ditlab.inference.pipeline import Pipeline

posix_only = pytest.mark.skipif(
    os.name != "posix", reason="needs signals, links, pipes, limits or permissions as POSIX systems have them"
)
MEANS = torch.tensor([-1.2, 0.3, 1.5], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def mixture_denoiser(process):
    """E[x0 | x_t] and E[eps | x_t] for data from a one-dimensional Gaussian mixture in every pixel."""

    def denoise(x, t, s=None):
        alpha, sigma = process.alpha(t), process.sigma(t)
        away = x.double()[..., None] - alpha * MEANS
        variance = (alpha * DEVIATIONS) ** 2 + sigma**2
        share = (SHARES.log() - away**2 / (2 * variance) - variance.log() / 2).softmax(-1)
        x0 = (share * (MEANS + alpha * DEVIATIONS**2 / variance * away)).sum(-1)
        eps = (share * (sigma / variance * away)).sum(-1)
        return Prediction(x0.to(x.dtype), eps.to(x.dtype))

    return denoise


def mixture_quantiles(count):
    """Exact quantiles of the mixture, by bisection of its distribution function."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    low, high = torch.full_like(levels, -5), torch.full_like(levels, 5)
    for _ in range(60):
        middle = (low + high) / 2
        below = (SHARES * torch.special.ndtr((middle[:, None] - MEANS) / DEVIATIONS)).sum(1) < levels
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def wasserstein(samples):
    """Wasserstein-1 distance of samples to the mixture."""
    ordered = samples.flatten().double().sort().values
    return (ordered - mixture_quantiles(len(ordered))).abs().mean().item()


def tiny_pipeline(classes=3, channels=1, size=8, learn_variance=False, objective=None, **options):
    """A small DiT with random (not zero) output weights."""
    torch.manual_seed(0)
    net = create(
        "DiT-S/2",
        **{
            "size": size,
            "channels": channels,
            "classes": classes,
            "learn_variance": learn_variance,
            "width": 32,
            "depth": 2,
            "heads": 2,
        }
        | options,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    names = [f"class {i}" for i in range(classes)]
    return Pipeline(net.eval(), objective or Objective(), classes=names)


def smooth(pipe):
    """The same model, blind to the time: a random network's answer to 256 waves of it is as good as noise."""
    with torch.no_grad():
        for parameter in pipe.net.t_embedder.parameters():
            parameter.zero_()
    return pipe


def perturbed(net, scale=0.1):
    """Away from the initial zeros, so that everything matters."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return net


def inputs(net, count=2):
    """Images, clocks and labels of every kind, the null label among them; or texts, for a network that reads text."""
    x = torch.randn(count, net.channels, *net.size, dtype=net.dtype)
    if net.text:
        return x, 1000 * torch.rand(count), net.text.example(count, net.device, torch.Generator().manual_seed(0))
    return x, 1000 * torch.rand(count), torch.arange(count) % (net.classes + 1)


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(*models):
    """The address of `ditlab serve`, started as users start it."""
    import httpx

    address = f"http://127.0.0.1:{(port := free_port())}"
    started = [sys.executable, "-m", "ditlab", "serve", *map(str, models), f"--port={port}"]
    process = subprocess.Popen(started, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/ready")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


class Numbers(Dataset):
    """Images of numbers of any type, with any number of channels."""

    def __init__(self, numbers, values, classes=2):
        """`numbers` (N, C, H, W) are those of the files."""
        self.numbers, self.values = numbers, values
        self.labels = torch.arange(len(numbers)) % classes
        self.classes = [f"class {i}" for i in range(classes)]
        self.channels, *sides = numbers.shape[1:]
        self.size = tuple(sides)

    def fetch(self, indices):
        numbers = torch.from_numpy(self.numbers[indices.numpy()])
        x = numbers if self.values.eight_bits else self.values.normalized(numbers)
        return Batch(x, self.condition(indices))


def numbers(channels, dtype, values, count=32, side=8):
    """A data set of numbers of a type, smooth over each image, from `values.low` to `values.high`."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, side)
    slopes, means = generator.uniform(-1, 1, (2, count, channels, 1, 1))
    planes = 0.6 * slopes * ramp[:, None] + 0.4 * means + np.zeros(side)
    low, high = (np.array(end).reshape(-1, 1, 1) for end in (values.low, values.high))
    return Numbers(((planes + 1) / 2 * (high - low) + low).astype(dtype), values)


class Items(Source):
    """Image files, or arrays, as a source."""

    def __init__(self, *items):
        self.items, self.reading = items, Reading()
        self.columns = {"label": label_column([0] * len(items), [])}

    def name(self, i):
        return getattr(self.items[i], "name", f"image {i}")

    def raw(self, i):
        item = self.items[i]
        return open_image(item) if isinstance(item, Path) else item


def two_classes(folder):
    """Write forty random gray images of 8x8 pixels in the classes a and b."""
    generator = np.random.default_rng(0)
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(folder / name / f"{i}.png")
