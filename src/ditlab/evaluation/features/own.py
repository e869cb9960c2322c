"""Features of a data set that are trained on its own images: a small classifier of the classes.

Without classes, the same network learns by which of four right angles an image is rotated (Gidaris et al. 2018).
"""

import copy
import json
import time
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.core.formats import check_types, interpreting, parse_object
from ditlab.core.progress import progress_bar
from ditlab.core.spelling import expand
from ditlab.core.units import counted, none_can
from ditlab.core.weights import fit, read_tensors, write_tensors
from ditlab.data import Dataset, Latents, training_order
from ditlab.data.content import digest
from ditlab.evaluation.features.base import Features
from ditlab.evaluation.features.small import FEATURES, ClassifierFeatures, SmallClassifier
from ditlab.evaluation.seen import seen_channels

SIDE = 32  # largest side of the images that the network reads
WIDTHS = (32, 64, 128)
STEPS, BATCH, RATE = 2000, 64, 3e-3
IMAGES = 20_000  # images that are kept in memory for training
ROTATIONS = 4
CONFUSED = 0.3  # share of the images of two classes that are taken for the other one, from which they are listed
ENOUGH = 10  # held-out images of two classes together, from which they are compared
SHOWN = 5  # pairs of classes in a message
KEY = "ditlab_features"  # of the metadata of a file
TYPES = {"classes": list, "channels": int, "side": int, "steps": int, "images": int, "seed": int, "data": str}


class OwnClassifier(SmallClassifier):
    """Three convolutions and a 64-dimensional feature layer, for images of any size, which are resized to a square.

    Args:
        outputs: number of classes, or of rotations.
        channels: channels of the images, 1 or 3.
        side: side of the square in pixels.
    """

    def __init__(self, outputs: int, channels: int, side: int) -> None:
        super().__init__(classes=outputs)
        self.side = side
        layers: list[nn.Module] = []
        for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            if side >= 8:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        linear = nn.Linear(WIDTHS[-1] * side**2, FEATURES)
        self.features = nn.Sequential(*layers, nn.Flatten(), linear, nn.BatchNorm1d(FEATURES), nn.ReLU())

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(resized(images, self.side))


@dataclass(frozen=True)
class Training:
    """How a classifier was trained, and how well it does."""

    classes: list[str]
    """The classes that it separates; empty if it was trained on rotations."""
    channels: int
    """Channels of the images, 1 or 3."""
    side: int
    """Side to which images are resized, in pixels."""
    steps: int
    """Optimizer steps; the same number gives the same network on the same machine."""
    images: int
    """Images that it was trained on."""
    seed: int
    data: str
    """Hash of the names, labels, sizes and times of the training images."""
    accuracy: float | None = None
    """Share of held-out images that are classified correctly."""
    held_out: int = 0
    """Number of these held-out images."""
    confused: tuple[tuple[str, str, float], ...] = ()
    """Pairs of classes that it cannot separate, with the share of their held-out images taken for the other one."""

    def lines(self) -> list[str]:
        """The training in words, and the classes that the classifier cannot separate."""
        lines = [f"{counted(self.steps, 'step')} on {counted(self.images, 'image')}"]
        if self.accuracy is not None:
            error = sqrt(self.accuracy * (1 - self.accuracy) / self.held_out)
            counts = counted(self.held_out, "held-out image")
            lines[0] += f"; {self.accuracy:.1%} ± {error:.1%} of {counts} are classified correctly"
        if self.confused:
            pairs = "; ".join(f"{a} and {b} ({share:.0%})" for a, b, share in self.confused[:SHOWN])
            more = f"; and {len(self.confused) - SHOWN} more pairs" if len(self.confused) > SHOWN else ""
            lines.append(f"classes that the classifier cannot separate: {pairs}{more}")
        return lines


class OwnFeatures(ClassifierFeatures):
    """The features of a classifier of a data set, with the probabilities of its classes if there are two or more."""

    def __init__(self, net: OwnClassifier, training: Training) -> None:
        super().__init__("own", net, training.classes or None, training.channels)
        self.training = training

    def save(self, file: Path) -> None:
        """Write the network and its description to a safetensors file."""
        write_tensors(self.net.state_dict(), file, {KEY: json.dumps(asdict(self.training), ensure_ascii=False)})


def load(weights: str, device: torch.device) -> Features:
    """The features "own" in a file; the network is so small that it stays on the CPU.

    Raises:
        InputError: there is no such file, or it holds no features.
    """
    if not weights:
        raise InputError("the features own are trained on your images; give the file of ditlab features as weights")
    file = Path(expand(weights))
    tensors = read_tensors(file)
    with interpreting(file, "train the features again", "holds no features of ditlab"):
        content = describe(file)
        check_types(content, TYPES)
        content["confused"] = tuple((str(a), str(b), float(share)) for a, b, share in content.get("confused", ()))
        training = Training(**content)
        if training.channels not in (1, 3) or not 1 <= training.side <= SIDE:
            raise ValueError(f"{training.channels} channels and side {training.side}")
    net = OwnClassifier(len(training.classes) or ROTATIONS, training.channels, training.side)
    net.load_state_dict(fit(tensors, net.state_dict(), str(file)))
    return OwnFeatures(net.eval(), training)


def describe(file: Path) -> dict[str, Any]:
    """The description in a file of features."""
    try:
        with safe_open(file, framework="pt") as opened:
            return parse_object((opened.metadata() or {}).get(KEY, "null"))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def train_features(
    dataset: Dataset,
    out: str | Path,
    console: Console,
    *,
    minutes: float = 2.0,
    seed: int = 0,
    held_out: Dataset | None = None,
    steps: int | None = None,
) -> OwnFeatures:
    """Train a small classifier on images, whose features measure distances between samples and real images.

    The images are shifted at random; mirrored copies are used if the data set has them. Classes are learned with cross
    entropy; with fewer than two classes, the network learns by which of four right angles an image is rotated.

    Args:
        dataset: the training images.
        out: safetensors file for the network and its description, which `open_features("own", FILE)` reads.
        console: where progress is shown.
        minutes: longest time of training, after the images are read.
        seed: decides initial weights, order and shifts.
        held_out: images on which the accuracy is measured.
        steps: number of steps, if that of an earlier training is repeated (default: at most 2,000, see `minutes`).

    Returns:
        The features, also written to the file.

    Raises:
        InputError: the data set holds latents or videos, no image can be read, a held-out image has another class, or
            the file exists and holds something else.
    """
    out = Path(expand(str(out)))
    check_images(dataset)
    check_target(out)
    if not minutes > 0:
        raise InputError(f"minutes is {minutes:g}; give more than 0")
    classes = dataset.classes if len(set(dataset.labels.tolist())) > 1 else []
    places = None if held_out is None or not classes else places_of(classes, held_out)
    side, channels = min(SIDE, max(dataset.size)), seen_channels(dataset)
    indices = torch.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset)), dtype=torch.float64).round().long()
    images, labels = read_images(dataset, indices, side, console)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.inference_mode(False):
        torch.manual_seed(seed)
        net = OwnClassifier(len(classes) or ROTATIONS, channels, side)
        limit = STEPS if steps is None else steps
        seconds = 60 * minutes if steps is None else float("inf")
        net, done = fitted(net, images, labels if classes else None, seed, limit, seconds, console)
    accuracy, count = None, 0
    confused: tuple[tuple[str, str, float], ...] = ()
    if held_out is not None and places is not None:
        predicted, truth = recognized(net, held_out)
        accuracy, count = (predicted == places[truth]).double().mean().item(), len(truth)
        confused = confused_pairs(predicted, places[truth], classes)
    training = Training(
        classes, channels, side, done, len(images), seed, identity(dataset), accuracy, count, confused
    )  # fmt: skip
    features = OwnFeatures(net, training)
    features.save(out)
    return features


def fitted(
    net: OwnClassifier, images: Tensor, labels: Tensor | None, seed: int, steps: int, seconds: float, console: Console
) -> tuple[OwnClassifier, int]:
    """Train a network; returns the average of its weights, and the number of steps.

    Args:
        net: the network, which is changed in place.
        images: (N, C, side, side) uint8.
        labels: (N,) classes; None for rotations.
        seed: decides order and shifts.
        steps: largest number of steps.
        seconds: longest time.
        console: where progress is shown.
    """
    end, average, done = time.monotonic() + seconds, copy.deepcopy(net).eval(), 0
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(seed)
    order = training_order(len(images), BATCH, seed, 0)
    net.train()
    with progress_bar(console) as progress:
        task = progress.add_task("training the features", total=steps)
        while done < steps and (not done or time.monotonic() < end):
            part = next(order)
            batch = shifted(images[part], generator)
            truth = labels[part] if labels is not None else torch.arange(len(part)) % ROTATIONS
            if labels is None:
                batch = torch.stack(
                    [torch.rot90(image, k, (1, 2)) for image, k in zip(batch, truth.tolist(), strict=True)]
                )
            loss = F.cross_entropy(net(batch), truth, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            follow(average, net, max(0.01, 4 / (done + 3)))
            progress.advance(task)
    return average, done


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, share: float) -> None:
    """Move the weights and running statistics of an average towards those of a network by a share.

    The average over the last steps is good at whichever step the training ends, without a schedule.
    """
    for mean, value in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, share)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, S, S), all shifted by up to an eighth of their side; the edge is repeated."""
    most = images.shape[-1] // 8
    padded = F.pad(images.float(), (most,) * 4, mode="replicate") if most else images.float()
    down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    return padded[:, :, down : down + images.shape[-2], right : right + images.shape[-1]]


def resized(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) as squares of a side, float32 in 0..255; each number is the mean of an area."""
    images = images.float()
    return images if images.shape[-2:] == (side, side) else F.interpolate(images, (side, side), mode="area")


def read_images(dataset: Dataset, indices: Tensor, side: int, console: Console) -> tuple[Tensor, Tensor]:
    """The displayed images (n, C, side, side) uint8 with these indices that can be read, and their labels (n,)."""
    images, labels = [], []
    with progress_bar(console) as progress:
        task = progress.add_task("reading images for the features", total=len(indices))
        for part in torch.split(indices, 256):
            batch = dataset.fetch_readable(part)
            if len(batch):
                images.append(resized(dataset.values.displayed(batch.x), side).round().byte())
                labels.append(batch.labels)
            progress.advance(task, len(part))
    if not images:
        raise InputError(f"{none_can(len(indices), 'image')} be read; check the files")
    return torch.cat(images), torch.cat(labels)


def check_images(dataset: Dataset) -> None:
    """Check that a network of images can be trained on a data set.

    Raises:
        InputError: it holds latents or videos.
    """
    if isinstance(dataset, Latents) or len(dataset.size) != 2:
        kind = "latents" if isinstance(dataset, Latents) else "videos"
        raise InputError(f"features are trained on images, not on {kind}; give the source of images")


def check_target(out: Path) -> None:
    """Check that features may be written: there is no such file, or it holds earlier ones.

    Raises:
        InputError: another file would be lost.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}; give a file that ends in .safetensors")
    if out.exists():
        try:
            describe(out)
        except (OSError, ValueError):
            raise InputError(f"{out} exists and holds no features of ditlab; give another name") from None


def places_of(classes: list[str], images: Dataset) -> Tensor:
    """For each class of images (K,), its position in a list of classes; -1 for a class without images.

    Raises:
        InputError: an image has another class, or there are no classes.
    """
    if not images.classes:
        raise InputError(
            "the held-out images have no classes, but the training images have; give them in class folders"
        )
    place, present = {name: i for i, name in enumerate(classes)}, set(images.labels.tolist())
    if unknown := [name for i, name in enumerate(images.classes) if i in present and name not in place]:
        raise InputError(f"held-out images have the class {unknown[0]}, which no training image has; remove it")
    return torch.tensor([place.get(name, -1) for name in images.classes])


@torch.inference_mode()
def recognized(net: SmallClassifier, images: Dataset) -> tuple[Tensor, Tensor]:
    """The classes (N,) that a network recognizes, and the labels (N,); the next image replaces an unreadable one."""
    classes, labels = [], []
    for part in torch.split(torch.arange(len(images)), 256):
        batch = images.fetch(part)
        classes.append(net(images.values.displayed(batch.x)).argmax(1))
        labels.append(batch.labels)
    return torch.cat(classes), torch.cat(labels)


def confused_pairs(predicted: Tensor, labels: Tensor, classes: list[str]) -> tuple[tuple[str, str, float], ...]:
    """The pairs of classes of which many images are taken for the other one, most confused first.

    Args:
        predicted: (N,) recognized classes.
        labels: (N,) true classes.
        classes: names.
    """
    counts = torch.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2).view(len(classes), -1)
    wrong, totals = counts + counts.T, counts.sum(1)
    share = wrong / (totals[:, None] + totals).clamp(min=ENOUGH)
    pairs = torch.triu(share > CONFUSED, diagonal=1).nonzero().tolist()
    return tuple(sorted(((classes[a], classes[b], share[a, b].item()) for a, b in pairs), key=lambda pair: -pair[2]))


def identity(dataset: Dataset) -> str:
    """Hash of the names, labels, sizes and times of the images of a data set, and of its classes."""
    stamps = dataset.stamps()
    rows = zip(stamps.names, stamps.labels.tolist(), stamps.sizes.tolist(), stamps.times.tolist(), strict=True)
    return digest([*map(repr, rows), repr(dataset.classes)])
