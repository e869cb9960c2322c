"""Quality of `recipes/any-size.toml` at each of its sizes, and at sizes that its training did not see.

    python benchmarks/any_size.py runs/any-size

A digit lies anywhere on its canvas. It is found as the brightest window of 8x8 pixels; of windows that are nearly as
bright, the one that the digit classifier is surest of. Real held-out digits on the same canvas are found in the same
way, and give the accuracy and the Frechet distance (FD) that are possible. Sizes that the training did not see are also
generated without the shift of the schedule.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import ditlab
from ditlab.config.reader import parse_sides
from ditlab.data.builtin.digits_on_canvas import CANVASES, DigitsOnCanvas
from ditlab.evaluation.features.digits import digit_classifier
from ditlab.evaluation.metrics import frechet_distance
from ditlab.inference.pipeline import Pipeline

UNSEEN = ((16, 20), (24, 16), (24, 24))
NEARLY = 0.97  # of the brightness of the brightest window


def windows(images: Tensor) -> tuple[Tensor, Tensor]:
    """Find the digit (N, 1, 8, 8) of images (N, 1, H, W) uint8, and the share of the brightness (N,) outside it."""
    net = digit_classifier()
    found, outside = [], []
    for image in images.float():
        parts = F.unfold(image[None], 8)[0].T.reshape(-1, 1, 8, 8)
        sums = parts.sum((1, 2, 3))
        bright = parts[sums >= NEARLY * sums.max()]
        found.append(bright[net(bright.byte()).softmax(1).amax(1).argmax()])
        outside.append(1 - float(sums.max() / image.sum().clamp(min=1)))
    return torch.stack(found).byte(), torch.tensor(outside)


def real(size: tuple[int, int], *, held_out: bool, count: int) -> tuple[Tensor, Tensor]:
    """Digits on canvases of a size, and their labels."""
    data = DigitsOnCanvas(held_out=held_out, canvases=(size,))
    indices = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    return data.fetch(indices).x, data.labels[indices]


@torch.no_grad()
def row(pipe: Pipeline, size: tuple[int, int], count: int, options: dict[str, Any]) -> list[str]:
    """The scores at a size."""
    net, labels = digit_classifier(), [i % 10 for i in range(count)]
    generated = pipe(labels, seeds=range(count), size=size, output_type="pt", **options).images.mul(255).round().byte()
    (digits, outside), (truth, truth_labels) = windows(generated), real(size, held_out=True, count=count)
    reference, real_outside = windows(truth)
    training, _ = windows(real(size, held_out=False, count=count)[0])
    features = {name: net.embed(part).numpy() for name, part in (("a", digits), ("b", reference), ("c", training))}
    shift = pipe.resolve(size=size, **options).size_shift
    return [
        "x".join(map(str, size)),
        "yes" if size in CANVASES else "no",
        f"{shift:.2f}",
        f"{(net(digits).argmax(1) == torch.tensor(labels)).float().mean():.1%}",
        f"{(net(reference).argmax(1) == truth_labels).float().mean():.1%}",
        f"{frechet_distance(features['a'], features['b']):.2f}",
        f"{frechet_distance(features['c'], features['b']):.2f}",
        f"{outside.mean():.1%}",
        f"{real_outside.mean():.1%}",
    ]


def main() -> None:
    """Print the scores at each size, and write images of each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=300, help="images of each size")
    parser.add_argument("--sizes", nargs="+", help="sizes, such as 24x16 (default: all)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--sheet", type=Path, help="PNG file with images of each size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = ditlab.load(arguments.run, device="cpu")
    table = Table("size", "seen", "shift", "accuracy", "real", "FD", "real-vs-real FD", "outside", "real")
    options = {} if arguments.guidance is None else {"guidance": arguments.guidance}
    unshifted = options | {"schedule": "shifted", "shift": 1.0}
    for size in track((*CANVASES, *UNSEEN) if arguments.sizes is None else map(parse_sides, arguments.sizes)):
        table.add_row(*row(pipe, size, arguments.count, options))
        if size in UNSEEN:
            table.add_row(*row(pipe, size, arguments.count, unshifted))
    Console(width=120).print(table)
    if arguments.sheet:
        from ditlab.report.sheets import contact_sheet, side_by_side

        sizes = (*CANVASES, *UNSEEN)
        images = [pipe(range(10), seeds=range(10), size=size, **options).images for size in sizes]
        sheets = [contact_sheet([row[:5], row[5:]]) for row in images]
        side_by_side(sheets, ["x".join(map(str, size)) for size in sizes]).save(arguments.sheet)


if __name__ == "__main__":
    main()
