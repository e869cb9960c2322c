"""Score samples of a model of any images: distances to held-out images, beside those of real training images.

Frechet distances depend on the features and on the number of images. A distance alone therefore says little; the same
distance for as many real training images (real-vs-real) is what a perfect model would reach.
"""

from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.data import Dataset, InMemory
from ditlab.data.buckets import mixed_order
from ditlab.evaluation.features import Features
from ditlab.evaluation.features.own import places_of
from ditlab.evaluation.gather import check_fit
from ditlab.evaluation.metrics import frechet_distance, precision_recall

REAL_SUBSETS = 10  # most disjoint subsets of training images whose distances are averaged
NEIGHBOR = 3  # k of precision and recall, as published
BATCH = 256  # images whose features are computed at a time


@dataclass(frozen=True)
class OwnScore:
    """The scores of samples, each beside that of real training images. Precision and recall need 4 images or more."""

    fd: float
    """Frechet distance between the samples and the held-out images."""
    real_fd: float
    """Real-vs-real FD: the same distance for subsets of as many training images, their mean."""
    precision: float | None
    """Share of samples that lie within the manifold of the held-out images."""
    recall: float | None
    """Share of held-out images that lie within the manifold of the samples."""
    real_precision: float | None
    """Precision of the first of these subsets of training images."""
    real_recall: float | None
    """Recall of this subset."""
    accuracy: float | None
    """Share of samples that are classified as the class that they were conditioned on; None without classes."""
    classifier_accuracy: float | None
    """Share of held-out images that are classified correctly; None without classes."""
    samples: int
    held_out: int
    subsets: int
    """Number of disjoint subsets of training images."""
    subset: int
    """Images in each of them."""
    notes: list[str] = field(default_factory=list)
    """What the numbers do not show, a line each."""
    subset_fd: float = 0.0
    """FD of as many samples as a subset has: `fd`, unless there are fewer training images than samples."""

    @property
    def ratio(self) -> float:
        """The distance of samples, divided by that of equally many real images; 1 is ideal."""
        return self.subset_fd / self.real_fd

    def error(self, name: str) -> float | None:
        """Standard error of a share, such as "accuracy", from the number of its images; None if it was not measured."""
        share: float | None = getattr(self, name)
        count = {"recall": self.held_out, "real_recall": self.held_out, "classifier_accuracy": self.held_out,
                 "real_precision": self.subset}.get(name, self.samples)  # fmt: skip
        return None if share is None else sqrt(share * (1 - share) / count)

    def lines(self) -> list[str]:
        """The scores in words, a line each."""
        counts = f"{counted(self.samples, 'sample')}, {counted(self.held_out, 'held-out image')}"
        lines = [f"FD {self.fd:.3g}, real-vs-real FD {self.real_fd:.3g}: {self.ratio:.2f}x ({counts})"]
        for name in ("precision", "recall"):
            if getattr(self, name) is not None:
                lines.append(f"{name} {self.share(name)}, of real images {self.share(f'real_{name}')}")
        if self.accuracy is not None:
            real = f", of held-out images {self.share('classifier_accuracy')}"
            lines.append(f"classified correctly {self.share('accuracy')}{real}")
        return lines + self.notes

    def share(self, name: str) -> str:
        """A share with its standard error in words: "0.83 ± 0.01"."""
        return f"{getattr(self, name):.3f} ± {self.error(name):.3f}"


@dataclass(frozen=True)
class Seen:
    """What a feature network returns for a set of images."""

    features: NDArray[np.float32]  # (N, D)
    classes: Tensor | None  # (N,) recognized classes
    labels: Tensor  # (N,) labels of the images


def score_own(
    samples: Tensor, labels: Tensor | None, training: Dataset, held_out: Dataset, features: Features
) -> OwnScore:
    """Score samples against held-out images, and training images in the same way.

    Args:
        samples: (N, C, H, W) uint8, as images are displayed.
        labels: (N,) classes of the samples, as positions in `training.classes`; None for an unconditional model.
        training: the images that the model was trained on.
        held_out: real images that the model has not seen.
        features: the feature network, such as `train_features` returns. The accuracy needs one with the classes of the
            training images.

    Raises:
        InputError: fewer than two images of a set, images of different sizes, or images that the network does not
            support.
    """
    check_sets(samples, labels, training, held_out)
    generated = InMemory(samples, torch.zeros(len(samples), dtype=torch.long) if labels is None else labels, [])
    fake, unseen = (see(images, torch.arange(len(images)), features) for images in (generated, held_out))
    subsets = [see(training, indices, features) for indices in disjoint_subsets(training.labels, len(samples))]
    notes = remarks(len(fake.features), len(unseen.features), len(subsets[0].features), features)
    accuracy, classifier_accuracy = None, None
    if features.classes and features.classes == training.classes and labels is not None:
        accuracy = matching(fake, labels)
        classifier_accuracy = matching(unseen, places_of(training.classes, held_out)[unseen.labels])
    elif len(training.classes) > 1 and labels is not None:
        notes.append(f"the features {features.name} do not separate the classes of the images, so no accuracy is given")
    parts = disjoint_subsets(generated.labels, len(subsets[0].features))
    precision, recall = neighbors(unseen, fake)
    real_precision, real_recall = neighbors(unseen, subsets[0])
    return OwnScore(
        fd=frechet_distance(fake.features, unseen.features),
        real_fd=fmean(frechet_distance(subset.features, unseen.features) for subset in subsets),
        precision=precision, recall=recall, real_precision=real_precision, real_recall=real_recall,
        accuracy=accuracy, classifier_accuracy=classifier_accuracy,
        samples=len(samples), held_out=len(unseen.features), subsets=len(subsets), subset=len(subsets[0].features),
        notes=notes,
        subset_fd=fmean(frechet_distance(fake.features[part.numpy()], unseen.features) for part in parts),
    )  # fmt: skip


def check_sets(samples: Tensor, labels: Tensor | None, training: Dataset, held_out: Dataset) -> None:
    """Check that samples and real images can be compared.

    Raises:
        InputError: they cannot.
    """
    if samples.dtype != torch.uint8 or samples.ndim != 4:
        raise InputError(f"samples of {samples.dtype} and shape {tuple(samples.shape)}; give uint8 (N, C, H, W)")
    if labels is not None and len(labels) != len(samples):
        raise InputError(f"{counted(len(labels), 'label')} for {counted(len(samples), 'sample')}; give one for each")
    sets = {"sample": len(samples), "training image": len(training), "held-out image": len(held_out)}
    for noun, count in sets.items():
        if count < 2:
            raise InputError(f"{counted(count, noun)}; give 2 or more")
    for what, images in (("training", training), ("held-out", held_out)):
        if tuple(images.size) != tuple(samples.shape[2:]):
            sizes = ("x".join(map(str, size)) for size in (images.size, samples.shape[2:]))
            raise InputError("{} images of {}, samples of {}; give images of one size".format(what, *sizes))


def disjoint_subsets(labels: Tensor, size: int) -> list[Tensor]:
    """Up to `REAL_SUBSETS` disjoint random subsets of a size; one of all images if there are not as many.

    Args:
        labels: (N,) the classes; each has the same share of every subset, as far as whole images allow.
        size: images of a subset.
    """
    order = mixed_order(labels)
    whole = order[: min(REAL_SUBSETS, len(order) // size) * size]
    return list(torch.split(whole, size)) if len(whole) else [order]


@torch.inference_mode()
def see(images: Dataset, indices: Tensor, features: Features) -> Seen:
    """The features of the images with these indices; an image that cannot be read is replaced by the next one."""
    check_fit(images, features)
    rows, classes, labels = [], [], []
    for part in torch.split(indices, BATCH):
        batch = images.fetch(part)
        extracted = features(images.values.displayed(batch.x))
        rows.append(extracted.features)
        labels.append(batch.labels)
        if extracted.probabilities is not None:
            classes.append(extracted.probabilities.argmax(1))
    return Seen(torch.cat(rows).numpy(), torch.cat(classes) if classes else None, torch.cat(labels))


def matching(seen: Seen, labels: Tensor) -> float | None:
    """The share of images that are recognized as their class; None if the network recognizes none."""
    return None if seen.classes is None else (seen.classes == labels).double().mean().item()


def neighbors(real: Seen, other: Seen) -> tuple[float | None, float | None]:
    """Precision and recall of images against real ones; None if there are too few."""
    if min(len(real.features), len(other.features)) <= NEIGHBOR:
        return None, None
    return precision_recall(real.features, other.features, NEIGHBOR)


def remarks(samples: int, held_out: int, subset: int, features: Features) -> list[str]:
    """What a reader must know of the numbers of images, a line each."""
    notes = []
    if subset < samples:
        notes.append(
            f"only {counted(subset, 'training image')} for {counted(samples, 'sample')}; the real-vs-real FD is "
            "that of all of them, and the ratio that of as many samples"
        )
    for noun, count in (("sample", samples), ("held-out image", held_out)):
        if count <= features.dimension:
            verb = "does" if count == 1 else "do"
            notes.append(
                f"{counted(count, noun)} {verb} not determine a covariance of {features.dimension} features; the "
                "distances are too large"
            )
    return notes
