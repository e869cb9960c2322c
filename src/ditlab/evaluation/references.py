"""References: statistics of real images in .npz files, with which generated images are compared.

ADM's files hold mu, sigma, mu_s and sigma_s of the whole set, and 10,000 of its images as arr_0. ditlab's files hold
the same statistics, feature vectors instead of images, and a description as JSON.
"""

import hashlib
import json
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from ditlab.checkpoints import load_autoencoder
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.io import held, replacing
from ditlab.core.types import Batch
from ditlab.core.units import counted
from ditlab.core.values import EIGHT_BITS
from ditlab.core.version import __version__
from ditlab.data import Dataset, Latents, SampleFile, open_dataset
from ditlab.data.npz import array_names, map_array, read_about, stored_rows, write_array
from ditlab.data.parse import DIVISION, as_divided, content_identity
from ditlab.data.summary import Summary
from ditlab.evaluation.features import Features
from ditlab.evaluation.frames import seen_by
from ditlab.evaluation.gather import gather, spread_evenly
from ditlab.evaluation.moments import Gaussian
from ditlab.evaluation.seen import report_seen, seen_channels
from ditlab.evaluation.statistics import ROWS, Statistics

KEEP = 10_000  # feature vectors that a reference keeps for precision, recall and the kernel distance


@dataclass(frozen=True)
class Reference:
    """Statistics of real images, and a description of them."""

    statistics: Statistics
    about: dict[str, Any]
    """`source`, `count`, `size`, `preprocessing`, `features`, `feature_weights`, `hash`; and `values`, if they are not
    those of ordinary images."""

    def save(self, file: Path, images: "ImageSubset | None" = None) -> None:
        """Write an .npz file with ADM's names of arrays; ADM's evaluator can read it if it contains images."""
        statistics = self.statistics
        arrays: dict[str, Any] = {"ditlab": np.array(json.dumps(self.about))}
        arrays |= {"mu": statistics.features.mean, "sigma": statistics.features.covariance}
        if statistics.spatial is not None:
            arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
        if statistics.kept is not None:
            arrays["features"] = statistics.kept
        if images is not None:
            arrays["arr_0"] = images
        with replacing(file) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays.items():
                write_array(archive, name, array)


class ImageSubset:
    """Evenly spaced images of a data set as an array (N, H, W, C) uint8, which are read when they are indexed.

    They have the shown channels, one or three, because ADM's evaluator reads nothing else.
    """

    def __init__(self, images: Dataset, total: int, count: int) -> None:
        self.images, self.numbers = images, spread_evenly(total, count)
        self.shape, self.dtype = (len(self.numbers), *images.size, seen_channels(images)), np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        batch = self.images.fetch(torch.from_numpy(self.numbers[part]))
        pixels: NDArray[np.uint8] = self.images.values.displayed(batch.x).numpy()
        return pixels.transpose(0, 2, 3, 1)


class Decoded(Dataset):
    """The images of a latent cache: its autoencoder decodes the means of the posteriors."""

    def __init__(self, cache: Latents, device: torch.device) -> None:
        self.cache, self.device = cache, device
        self.autoencoder = load_autoencoder(str(cache.folder / "autoencoder"), device=device)
        self.labels, self.classes, self.channels, self.size = cache.labels, cache.classes, cache.channels, cache.size
        self.preprocessing = cache.preprocessing | {"decoded": True}
        self.values = cache.values

    @torch.inference_mode()
    def fetch(self, indices: torch.Tensor) -> Batch:
        batch = self.cache.fetch(indices)
        means = self.autoencoder.latents(batch.x.to(self.device), torch.zeros_like)
        return replace(batch, x=self.autoencoder.decode_as(means, self.values).cpu(), encoded=False)


def reading_of(reference: str, trained: Preparation) -> Preparation:
    """How a reference is read for a model: divided as in the model's training if it names a part (`photos:val`)."""
    undivided = replace(trained, **{key: getattr(Preparation, key) for key in DIVISION})
    return as_divided(reference, undivided, trained)


def open_images(source: str, settings: Preparation | None, device: torch.device, report: Path | None = None) -> Dataset:
    """Open the images of any data source; latents of a cache are decoded."""
    dataset = open_dataset(source, settings, report)
    return Decoded(dataset, device) if isinstance(dataset, Latents) else dataset


def make_reference(
    source: str,
    images: Dataset,
    features: Features,
    console: Console,
    *,
    count: int | None = None,
    keep: int = KEEP,
    batch_size: int = 64,
    folder: Path | None = None,
    rank: int = 0,
    world: int = 1,
) -> Reference | None:
    """Measure real images.

    Args:
        source: name of the images for the description.
        images: images of a size that the feature network supports.
        features: the feature network.
        console: where progress is shown.
        count: number of images to use, from the first one on (default: all).
        keep: number of feature vectors to keep, evenly spaced over the images; 0 keeps none.
        batch_size: images that the feature network processes at a time.
        folder: where the state is stored, from which an interrupted call resumes; None stores nothing.
        rank, world: index of this process, and number of processes.

    Returns:
        None if other processes are still at work.

    Raises:
        InputError: the feature network does not support the images.
    """
    frames = 1 if features.clips or len(images.size) == 2 else images.size[0]
    images = seen_by(features, images)
    total = len(images) if count is None else min(count * frames, len(images))
    if total < 2:
        raise InputError(f"{counted(total, 'image')} of {source}; give 2 or more")
    gathered = gather(
        images, total, features, console, keep=keep, batch_size=batch_size, what="measuring", folder=folder,
        rank=rank, world=world,
    )  # fmt: skip
    if gathered is None:
        return None
    statistics = gathered.statistics
    about = {
        "source": source,
        "count": gathered.count,
        "size": list(images.size),
        "preprocessing": images.preprocessing,
        "features": features.name,
        "feature_weights": features.weights,
        "hash": array_hash(statistics),
        "version": __version__,
        **({} if images.values == EIGHT_BITS else {"values": images.values.describe()}),
    }
    return Reference(statistics, about)


def write_reference(
    source: str,
    images: Dataset,
    features: Features,
    out: Path,
    console: Console,
    *,
    settings: Preparation | None = None,
    count: int | None = None,
    keep: int = KEEP,
    batch_size: int = 64,
    with_images: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Reference | None:
    """Measure real images and write a reference file; the same call resumes an interrupted one.

    Arguments as in `make_reference`, except:

    Args:
        out: the .npz file.
        settings: how the images of the source were read.
        with_images: also store images, for ADM's evaluator.

    Returns:
        None if other processes are still at work.

    Raises:
        InputError: the feature network does not support the images, or another process writes the same file.
    """
    check_target(out)
    content = [content_identity(source, settings), images.preprocessing, features.name, features.weights, count, keep]
    content += [] if images.values == EIGHT_BITS else [images.values.describe()]
    work = work_folder(out, content)
    report_seen(images, console)
    with held(work, rank):
        if rank == 0:
            Summary.of(images, source).show(console)
        done = make_reference(
            source, images, features, console, count=count, keep=keep, batch_size=batch_size, folder=work,
            rank=rank, world=world,
        )  # fmt: skip
        if done is not None:
            total = len(images) if count is None else min(count, len(images))
            done.save(out, ImageSubset(images, total, keep) if with_images else None)
            shutil.rmtree(work, ignore_errors=True)
    return done


def check_target(out: Path) -> None:
    """Check that a reference may be written: there is no such file, or it is an earlier reference.

    Raises:
        InputError: another file would be lost.
    """
    if out.exists() and not read_about(out):
        raise InputError(f"{out} exists and is no reference of ditlab; give another name")


def work_folder(out: Path, content: Any) -> Path:
    """Path of a folder beside `out` for unfinished work; `content` is everything that determines the result."""
    return out.with_name(f"{out.stem}-{short_hash(content)}.part")


def short_hash(content: Any) -> str:
    """Hash of plain values, eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def array_hash(statistics: Statistics) -> str:
    """Hash of the bits of statistics, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for gaussian in (statistics.features, statistics.spatial):
        if gaussian is not None:
            digest.update(gaussian.mean.tobytes() + gaussian.covariance.tobytes())
    if statistics.kept is not None:
        for start in range(0, len(statistics.kept), ROWS):
            digest.update(statistics.kept[start : start + ROWS].tobytes())
    return digest.hexdigest()[:16]


def read_reference(file: Path, features: Features, console: Console, *, keep: bool) -> Reference:
    """Read a reference of ditlab or of ADM's evaluator.

    Args:
        file: .npz file with mu and sigma, or with images only, which are measured now.
        features: the feature network that the reference must have.
        console: where progress is shown if images are measured.
        keep: whether single feature vectors are needed too.

    Raises:
        InputError: the file has other features or weights, or neither statistics nor images.
    """
    names = array_names(file)
    if about := read_about(file):
        for key, expected, what in (
            ("features", features.name, "features"),
            ("feature_weights", features.weights, "feature weights"),
        ):
            if about.get(key) != expected:
                raise InputError(
                    f"{file} has the {what} {about.get(key)}, not {expected}; "
                    f"make a reference of {about.get('source')} with the features {features.name}"
                )
        kept = stored_rows(file, "features") if "features" in names else None
        statistics = Statistics(features.name, *stored(file, names), kept)
        if array_hash(statistics) != about.get("hash"):
            raise InputError(f"{file} is damaged: its statistics are not those that were written; make it again")
        return Reference(statistics, about)
    if "mu" not in names and "arr_0" not in names:
        raise InputError(f"{file} holds {', '.join(names)}; give a reference with mu and sigma, or images as arr_0")
    images = SampleFile(file) if "arr_0" in names else None
    if "mu" not in names:
        assert images is not None
        made = make_reference(str(file), images, features, console)
        assert made is not None
        return made
    if features.name != "inception":
        raise InputError(
            f"{file} has statistics in Inception's features, not {features.name}; choose the features inception"
        )
    kept = None
    if keep and images is not None:  # ADM's 10,000 images, which are needed for precision and recall only
        gathered = gather(images, len(images), features, console, keep=KEEP, what="measuring the reference")
        kept = gathered.statistics.kept if gathered else None
    statistics = Statistics("inception", *stored(file, names), kept)
    about = {"source": str(file), "features": "inception", "hash": array_hash(statistics)}
    if images is not None:
        about["size"] = list(images.size)
    return Reference(statistics, about)


def stored(file: Path, names: list[str]) -> tuple[Gaussian, Gaussian | None]:
    """Read the Gaussians of the features and of the spatial features from a file."""

    def gaussian(suffix: str) -> Gaussian:
        mean, covariance = (np.asarray(map_array(file, f"{name}{suffix}"), np.float64) for name in ("mu", "sigma"))
        return check(Gaussian(mean, covariance), file)

    return gaussian(""), gaussian("_s") if "mu_s" in names else None


def check(gaussian: Gaussian, file: Path) -> Gaussian:
    """Check shapes and values of a mean and a covariance.

    Raises:
        InputError: the shapes do not match, or the values are not finite or all 0.
    """
    mean, covariance = gaussian.mean, gaussian.covariance
    matching = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
    if not matching or not (np.isfinite(mean).all() and np.isfinite(covariance).all()) or not covariance.any():
        raise InputError(
            f"{file} has a mean {mean.shape} and covariance {covariance.shape} that are not statistics of features "
            "(shapes that do not match, values that are not finite, or no variance); make it again"
        )
    return gaussian
