"""Does the model copy? Samples beside their nearest training pictures, and a number against held-out pictures."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.data import Dataset
from ditlab.errors import InputError
from ditlab.evaluation.features import Features
from ditlab.evaluation.gather import gather
from ditlab.evaluation.metrics.neighbours import nearest_neighbours, neighbour_ratio
from ditlab.pictures import contact_sheet
from ditlab.pipeline import to_pil

SHOWN, NEAREST = 10, 4


@dataclass(frozen=True)
class Memorisation:
    """How close samples lie to the training pictures."""

    ratio: float
    """Median distance of samples to the nearest training picture, over that of held-out pictures."""
    closer: float
    """Chance that a sample is closer to the training pictures than a held-out picture is; 0.5 is ideal."""
    samples: int
    training: int
    held_out: int
    picture: Path

    def verdict(self) -> str:
        """In a sentence."""
        return (
            f"{self.samples:,} samples lie {self.ratio:.2f} x as far from the nearest of {self.training:,} training "
            f"pictures as {self.held_out:,} unseen ones do, and are closer in {self.closer:.0%} of pairs "
            "(1 and 50 %: no copies; towards 0 and 100 %: copies)"
        )


def memorisation(
    samples: Dataset, training: Dataset, held_out: Dataset, features: Features, out: Path, console: Console
) -> Memorisation:
    """Compare distances to the nearest training picture, in feature space.

    Args:
        samples: pictures of a model.
        training: what it was trained on.
        held_out: real pictures that it never saw.
        features: where distances are measured.
        out: a PNG file: the samples that lie closest, each beside its nearest training pictures.
        console: where progress is shown.

    Raises:
        InputError: pictures of different sizes, or fewer than two of a kind.
    """
    sets = {"samples": samples, "training pictures": training, "held-out pictures": held_out}
    for name, each in sets.items():
        if (each.channels, *each.size) != (samples.channels, *samples.size):
            raise InputError(
                f"{name} of {each.channels}x{each.size[0]}x{each.size[1]}, samples of "
                f"{samples.channels}x{samples.size[0]}x{samples.size[1]}; give pictures of one size"
            )
        if len(each) < 2:
            raise InputError(f"{len(each)} {name}; give 2 or more")
    drawn, known, unseen = (_features(each, features, name, console) for name, each in sets.items())
    distances, places = nearest_neighbours(drawn, known, min(NEAREST, len(known)))
    ratio, closer = neighbour_ratio(distances[:, 0], nearest_neighbours(unseen, known, 1)[0][:, 0])
    closest = distances[:, 0].argsort()[:SHOWN]
    rows = []
    for i in closest.tolist():
        pictures = torch.cat([samples.fetch(torch.tensor([i])).images, training.fetch(places[i]).images])
        rows.append(beside(to_pil(pictures)))
    out.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{value:.3g}" for value in distances[closest, 0].tolist()]
    contact_sheet(rows, names).save(out)
    return Memorisation(ratio, closer, len(drawn), len(known), len(unseen), out)


def _features(pictures: Dataset, features: Features, name: str, console: Console) -> Tensor:
    count = len(pictures)
    gathered = gather(pictures, count, features, console, keep=count, whole=True, what=f"measuring {name}")
    assert gathered is not None
    return torch.from_numpy(gathered.statistics.kept)


def beside(pictures: list[Image.Image]) -> list[Image.Image]:
    """A gap between the first, which is the sample, and the others."""
    return [pictures[0], Image.new(pictures[0].mode, pictures[0].size, "white"), *pictures[1:]]
