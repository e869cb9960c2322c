"""Test for memorization: compare the distances of samples and of held-out images to the training images.

Features of samples and held-out images are stored on disk. Training images are read once, and only the nearest ones of
each sample and held-out image are kept, so memory does not grow with the number of images.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.formats import read_object
from ditlab.core.io import held, replace_text
from ditlab.core.units import counted
from ditlab.core.values import EIGHT_BITS
from ditlab.core.version import __version__
from ditlab.data import Dataset
from ditlab.evaluation.features import Extracted, Features
from ditlab.evaluation.gather import gather, pass_through
from ditlab.evaluation.metrics.neighbors import (
    Near,
    merged,
    nearest,
    neighbor_ratio,
    no_neighbors,
    squared_distances,
    tiles,
)
from ditlab.evaluation.references import work_folder
from ditlab.evaluation.seen import converted, report_seen
from ditlab.evaluation.statistics import Kept, Statistics
from ditlab.report.sheets import check_sheet, contact_sheet, save_sheet, to_pil

SHOWN, NEAREST = 10, 4
EQUAL = 1e-4  # images are equal if their distance is below this share of the features' standard deviation
PATIENCE = 2.0  # seconds between checks whether other processes have finished


@dataclass(frozen=True)
class Memorization:
    """The result of a memorization test."""

    ratio: float
    """Median distance of samples to the nearest training image, divided by that of held-out images."""
    closer: float
    """Probability that a sample is closer to the training images than a held-out image is; 0.5 is ideal."""
    samples: int
    training: int
    held_out: int
    image: Path

    def verdict(self) -> str:
        """The result in a sentence."""
        return (
            f"distance ratio {self.ratio:.2f}, closer than held-out images in {self.closer:.0%} of pairs "
            f"({self.samples:,} samples, {self.training:,} training images, {self.held_out:,} held-out images); "
            "1 and 50% mean no copies, lower ratios and higher shares mean copies"
        )


class NearestTraining:
    """The k nearest training images of each query among those that were added; it implements `statistics.Sums`."""

    def __init__(self, queries: Sequence[Kept], k: int) -> None:
        self.queries, self.k = queries, k
        self.near = [no_neighbors(len(features), k) for features in queries]

    def add(self, indices: Tensor, extracted: Extracted, labels: Tensor | None) -> None:
        features = extracted.features.double()
        for queries, near in zip(self.queries, self.near, strict=True):
            for start, tile in tiles(queries):
                before = Near(*(values[start : start + len(tile)] for values in near))
                after = merged(before, nearest(squared_distances(tile, features), indices, self.k))
                for old, new in zip(before, after, strict=True):
                    old.copy_(new)

    def merge(self, other: Self) -> None:
        self.near = [merged(*pair) for pair in zip(self.near, other.near, strict=True)]

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            f"{name}.{i}": values.numpy() for i, near in enumerate(self.near) for name, values in near._asdict().items()
        }

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        names = Near._fields
        self.near = [
            Near(*(torch.from_numpy(arrays[f"{name}.{i}"]) for name in names)) for i in range(len(self.queries))
        ]


def memorization(
    samples: Dataset,
    training: Dataset,
    held_out: Dataset,
    features: Features,
    out: Path,
    console: Console | None = None,
    *,
    protocol: dict[str, Any],
    batch_size: int = 64,
    rank: int = 0,
    world: int = 1,
) -> Memorization | None:
    """Compare the distances of samples and held-out images to their nearest training image, in feature space.

    The same call resumes an interrupted test, or returns an existing result.

    Args:
        samples: images that a model generated.
        training: images that the model was trained on.
        held_out: real images that the model was not trained on.
        features: feature network in which distances are measured.
        out: PNG file for the samples that are closest to training images, each beside its nearest training images. The
            result and the protocol are written to a .json file beside it.
        console: where progress is shown.
        protocol: everything that determines the three sets of images, as plain values.
        batch_size: images that the feature network processes at a time.
        rank, world: index of this process, and number of processes; all wait for each other between the passes.

    Returns:
        None if other processes are still at work.

    Raises:
        InputError: the images differ in size, a set has fewer than two images, held-out images are training images, or
            another process works on the same result.
    """
    training, held_out = (converted(images, samples.values) for images in (training, held_out))
    sets = {"samples": samples, "training images": training, "held-out images": held_out}
    check_sets(sets, out)
    check_target(out)
    protocol = protocol | {
        "features": features.name,
        "feature_weights": features.weights,
        "counts": [len(images) for images in sets.values()],
        "preprocessing": [images.preprocessing for images in sets.values()],
    }
    if samples.values != EIGHT_BITS:
        protocol["values"] = samples.values.describe()
    work = work_folder(out, protocol)
    options: dict[str, Any] = {"whole": True, "batch_size": batch_size, "rank": rank, "world": world}
    console = console or Console(quiet=True)
    report_seen(samples, console)
    with held(work, rank):
        return measure(sets, features, out, work, protocol, console, options)


def measure(
    sets: dict[str, Dataset],
    features: Features,
    out: Path,
    work: Path,
    protocol: dict[str, Any],
    console: Console,
    options: dict[str, Any],
) -> Memorization | None:
    """Run `memorization` in a work folder that this process has locked; `options` are those of `pass_through`."""
    samples, training, held_out = sets.values()

    def features_of(name: str) -> Statistics | None:
        count, folder, what = len(sets[name]), work / name.split()[0], f"measuring {name}"
        gathered = gather(sets[name], count, features, console, keep=count, what=what, folder=folder, **options)
        return None if gathered is None else gathered.statistics

    while True:
        if (done := read_result(out, protocol, work)) is not None:
            return done
        generated, unseen = features_of("samples"), features_of("held-out images")
        if generated is not None and unseen is not None:
            break
        time.sleep(PATIENCE)  # other processes have not finished their part
    queries = [statistics.kept for statistics in (generated, unseen) if statistics.kept is not None]
    make = partial(NearestTraining, queries, min(NEAREST, len(training)))
    what, folder = "comparing with training images", work / "training"
    passed = pass_through(training, len(training), features, make, console, what=what, folder=folder, **options)
    if passed is None:
        return read_result(out, protocol, work)
    near_samples, near_unseen = passed[0].near
    distances = near_samples.squares[:, 0].sqrt()
    ratio, closer = compared(distances, near_unseen.squares[:, 0].sqrt(), unseen)
    closest = distances.argsort(stable=True)[:SHOWN]
    show(samples, training, closest, near_samples.places[closest], distances[closest], out)
    result = Memorization(ratio, closer, len(samples), len(training), len(held_out), out)
    record = asdict(result) | {"protocol": protocol, "version": __version__}
    replace_text(out.with_suffix(".json"), json.dumps(record, indent=2, default=str) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return result


def check_sets(sets: dict[str, Dataset], out: Path) -> None:
    """Check before any work that the sets can be compared and that the result is a PNG file.

    Raises:
        InputError: they cannot, or it is not.
    """
    if out.suffix != ".png":
        raise InputError(f"the result cannot be written to {out}; give a file that ends in .png")
    (channels, height, width), *_ = shapes = [(images.channels, *images.size) for images in sets.values()]
    for (name, images), shape in zip(sets.items(), shapes, strict=True):
        if shape != shapes[0]:
            raise InputError(
                f"{name} of {'x'.join(map(str, shape))}, samples of {channels}x{height}x{width}; "
                "give images of one size"
            )
        if len(images) < 2:
            raise InputError(f"{counted(len(images), name.removesuffix('s'))}; give 2 or more")


def compared(samples: Tensor, unseen: Tensor, held_out: Statistics) -> tuple[float, float]:
    """Ratio and probability (see `neighbor_ratio`) from distances (N,) and (M,) to the nearest training image.

    Args:
        samples: distances of samples.
        unseen: distances of held-out images.
        held_out: statistics of the held-out images.

    Raises:
        InputError: most held-out images are training images.
    """
    spread = float(np.sqrt(np.trace(held_out.features.covariance)))
    if unseen.median() <= EQUAL * spread:
        raise InputError("most held-out images are equal to training images; give images that the model never saw")
    return neighbor_ratio(samples, unseen)


def show(samples: Dataset, training: Dataset, closest: Tensor, places: Tensor, distances: Tensor, out: Path) -> None:
    """Write a contact sheet of samples, each with its distance and beside its nearest training images.

    Args:
        samples: all samples.
        training: the training images.
        closest: (N,) indices of the samples to show.
        places: (N, k) indices of their nearest training images.
        distances: (N,) distances to the nearest one.
        out: PNG file.
    """
    rows = []
    for sample, near in zip(samples.fetch(closest).x, places, strict=True):
        first, *others = to_pil(samples.values.displayed(torch.cat([sample[None], training.fetch(near).x])))
        gap = Image.new(first.mode, first.size, "white")
        rows.append([first, gap, *others])
    save_sheet(contact_sheet(rows, [f"{value:.3g}" for value in distances.tolist()]), out)


def check_target(out: Path) -> None:
    """Check that a result may be written: there are no such files, or they hold an earlier result.

    Raises:
        InputError: other files would be lost.
    """
    file = out.with_suffix(".json")
    try:
        known = "protocol" in read_object(file)
    except (OSError, ValueError):  # missing or damaged
        check_sheet(out)
        known = out.exists() or not file.exists()
    if not known:
        raise InputError(f"{file} exists and holds no result of this test; give another name")


def read_result(out: Path, protocol: dict[str, Any], work: Path) -> Memorization | None:
    """The result of an earlier call with the same protocol; None if there is none."""
    try:
        saved = read_object(out.with_suffix(".json"))
        if saved.pop("protocol") != json.loads(json.dumps(protocol)) or not out.exists():
            return None
        saved.pop("version")
        saved.pop("picture", None)  # the key of version 0.1
        result = Memorization(**saved | {"image": out})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    shutil.rmtree(work, ignore_errors=True)
    return result
