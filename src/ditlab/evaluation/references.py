"""References: statistics of real images, in an .npz file.

ADM's files hold mu, sigma, mu_s, sigma_s of the whole set and ten thousand of its images as arr_0. ditlab's files hold
the same statistics, some of the features instead of images, and a line of JSON that describes them.
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
from ditlab.core.version import __version__
from ditlab.data import Dataset, Latents, SampleFile, open_dataset
from ditlab.data.npz import array_names, map_array, read_about, stored_rows, write_array
from ditlab.data.parse import content_identity
from ditlab.evaluation.features import Features
from ditlab.evaluation.gather import gather, spread_evenly
from ditlab.evaluation.moments import Gaussian
from ditlab.evaluation.statistics import ROWS, Statistics

KEEP = 10_000  # features that a reference keeps for precision, recall and the kernel distance


@dataclass(frozen=True)
class Reference:
    """Statistics of real images and where they come from."""

    statistics: Statistics
    about: dict[str, Any]
    """`source`, `count`, `size`, `preprocessing`, `features`, `feature_weights`, `hash`."""

    def save(self, file: Path, images: "Some | None" = None) -> None:
        """Write an .npz file, with mu and sigma under ADM's names; with images ADM's evaluator reads it too."""
        found = self.statistics
        arrays: dict[str, Any] = {"ditlab": np.array(json.dumps(self.about))}
        arrays |= {"mu": found.features.mean, "sigma": found.features.covariance}
        if found.spatial is not None:
            arrays |= {"mu_s": found.spatial.mean, "sigma_s": found.spatial.covariance}
        if found.kept is not None:
            arrays["features"] = found.kept
        if images is not None:
            arrays["arr_0"] = images
        with replacing(file) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays.items():
                write_array(archive, name, array)


class Some:
    """Images of a data set, spread evenly over it, as an array (N, H, W, C) uint8 that is read while it is written."""

    def __init__(self, images: Dataset, total: int, count: int) -> None:
        self.images, self.numbers = images, spread_evenly(total, count)
        self.shape, self.dtype = (len(self.numbers), *images.size, images.channels), np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self.images.fetch(torch.from_numpy(self.numbers[part])).x.numpy()
        return found.transpose(0, 2, 3, 1)


class Decoded(Dataset):
    """Images of a latent cache, as its autoencoder decodes the means of their posteriors."""

    def __init__(self, cache: Latents, device: torch.device) -> None:
        self.cache, self.device = cache, device
        self.autoencoder = load_autoencoder(str(cache.folder / "autoencoder"), device=device)
        self.labels, self.classes, self.channels, self.size = cache.labels, cache.classes, cache.channels, cache.size
        self.preprocessing = cache.preprocessing | {"decoded": True}

    @torch.inference_mode()
    def fetch(self, indices: torch.Tensor) -> Batch:
        batch = self.cache.fetch(indices)
        means = self.autoencoder.latents(batch.x.to(self.device), torch.zeros_like)
        return replace(batch, x=self.autoencoder.decode(means).cpu(), encoded=False)


def open_pictures(
    source: str, settings: Preparation | None, device: torch.device, report: Path | None = None
) -> Dataset:
    """Images of any data source; those of a latent cache are decoded."""
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
        source: the name that is recorded.
        images: uint8, of any size that the features take.
        features: the network.
        console: where progress is shown.
        count: use the first images only (default: all).
        keep: features to keep, spread evenly over the images; 0 keeps none.
        batch_size: images at a time.
        folder: where an interrupted call is continued; None keeps nothing.
        rank, world: number of this process, and of all.

    Returns:
        None if other processes are still at work.

    Raises:
        InputError: images that do not suit the features.
    """
    total = len(images) if count is None else min(count, len(images))
    if total < 2:
        raise InputError(f"{total} images of {source}; give 2 or more")
    gathered = gather(
        images, total, features, console, keep=keep, batch_size=batch_size, what="measuring", folder=folder,
        rank=rank, world=world,
    )  # fmt: skip
    if gathered is None:
        return None
    found = gathered.statistics
    about = {
        "source": source,
        "count": gathered.count,
        "size": list(images.size),
        "preprocessing": images.preprocessing,
        "features": features.name,
        "feature_weights": features.weights,
        "hash": array_hash(found),
        "version": __version__,
    }
    return Reference(found, about)


def write_reference(
    source: str,
    images: Dataset,
    features: Features,
    out: Path,
    console: Console,
    *,
    count: int | None = None,
    keep: int = KEEP,
    batch_size: int = 64,
    with_images: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Reference | None:
    """Measure real images into a file; the same call again continues where it was stopped.

    Arguments as in `make_reference`, but for:

    Args:
        out: the file.
        with_images: keep images beside the features, for ADM's evaluator.

    Returns:
        None if other processes are still at work.

    Raises:
        InputError: images that do not suit the features, or another process that writes the same file.
    """
    work = work_folder(out, [identity(source), images.preprocessing, features.name, features.weights, count, keep])
    with held(work, rank):
        done = make_reference(
            source, images, features, console, count=count, keep=keep, batch_size=batch_size, folder=work,
            rank=rank, world=world,
        )  # fmt: skip
        if done is not None:
            total = len(images) if count is None else min(count, len(images))
            done.save(out, Some(images, total, keep) if with_images else None)
            shutil.rmtree(work, ignore_errors=True)
    return done


def work_folder(out: Path, content: Any) -> Path:
    """A folder beside a file for unfinished work; `content` is everything that decides the file's content."""
    return out.with_name(f"{out.stem}-{short_hash(content)}.part")


def short_hash(content: Any) -> str:
    """Eight digits that identify plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def array_hash(found: Statistics) -> str:
    """Identity of the statistics, to the bit."""
    digest = hashlib.sha256()
    for gaussian in (found.features, found.spatial):
        if gaussian is not None:
            digest.update(gaussian.mean.tobytes() + gaussian.covariance.tobytes())
    if found.kept is not None:
        for start in range(0, len(found.kept), ROWS):
            digest.update(found.kept[start : start + ROWS].tobytes())
    return digest.hexdigest()[:16]


def description_of(file: Path) -> dict[str, Any]:
    """The description in a reference file of ditlab; an empty one of other files.

    Raises:
        InputError: no such file.
    """
    return read_about(file)


def read_reference(file: Path, features: Features, console: Console, *, keep: bool) -> Reference:
    """A reference of ditlab or of ADM's evaluator, for these features.

    Args:
        file: .npz with mu and sigma, or with images alone.
        features: the features that it must have.
        console: where progress is shown, if images have to be measured.
        keep: whether single features are needed too.

    Raises:
        InputError: a file of other features or weights, or without statistics and images.
    """
    names = array_names(file)
    if about := description_of(file):
        for key, mine, what in (
            ("features", features.name, "features"),
            ("feature_weights", features.weights, "feature weights"),
        ):
            if about.get(key) != mine:
                raise InputError(
                    f"{file} is of the {what} {about.get(key)}, not {mine}; make it again with: "
                    f"ditlab reference {about.get('source')} --features {features.name} --out {file}"
                )
        kept = stored_rows(file, "features") if "features" in names else None
        found = Statistics(features.name, *stored(file, names), kept)
        if array_hash(found) != about.get("hash"):
            raise InputError(f"{file} is damaged: its statistics are not those that were written; make it again")
        return Reference(found, about)
    if "mu" not in names and "arr_0" not in names:
        raise InputError(f"{file} holds {', '.join(names)}; give a reference with mu and sigma, or images as arr_0")
    images = SampleFile(file) if "arr_0" in names else None
    if "mu" not in names:
        assert images is not None
        made = make_reference(str(file), images, features, console)
        assert made is not None
        return made
    if features.name != "inception":
        raise InputError(f"{file} has statistics in Inception's features, not {features.name}; choose inception")
    kept = None
    if keep and images is not None:  # ADM's ten thousand images: for precision and recall only
        gathered = gather(images, len(images), features, console, keep=KEEP, what="measuring the reference")
        kept = gathered.statistics.kept if gathered else None
    found = Statistics("inception", *stored(file, names), kept)
    about = {"source": str(file), "features": "inception", "hash": array_hash(found)}
    if images is not None:
        about["size"] = list(images.size)
    return Reference(found, about)


def stored(file: Path, names: list[str]) -> tuple[Gaussian, Gaussian | None]:
    """The statistics that a file holds, of features and of spatial features."""

    def gaussian(end: str) -> Gaussian:
        mean, covariance = (np.asarray(map_array(file, f"{name}{end}"), np.float64) for name in ("mu", "sigma"))
        return check(Gaussian(mean, covariance), file)

    return gaussian(""), gaussian("_s") if "mu_s" in names else None


def check(gaussian: Gaussian, file: Path) -> Gaussian:
    """Refuse arrays that are no statistics."""
    mean, covariance = gaussian.mean, gaussian.covariance
    whole = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
    if not whole or not (np.isfinite(mean).all() and np.isfinite(covariance).all()) or not covariance.any():
        raise InputError(
            f"{file} has a mean {mean.shape} and covariance {covariance.shape} that are no statistics of features "
            "(other shapes, not finite, or no variance); make it again"
        )
    return gaussian


def identity(source: str) -> str:
    """Hash of the content of a data source."""
    return content_identity(source)
