"""Training on images of several sizes."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import ditlab
from ditlab.config.evaluation import SampleSource
from ditlab.core.errors import InputError
from ditlab.data.buckets import Buckets, Native
from ditlab.evaluation.protocols import open_source
from ditlab.inference.sizes import trained_sizes
from ditlab.training.loop import Steps
from ditlab.training.parallel import Place
from ditlab.training.rng import RunRandomness

SIZES = [(16, 16)] * 10 + [(20, 12)] * 9 + [(8, 30)] * 3
QUIET = Console(quiet=True)
TINY: dict[str, dict[str, Any]] = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 2, "heads": 2},
    "data": {"size": "native", "pixels": 256, "multiple": 4},
    "optim": {"lr": 1e-2},
    "train": {"batch": 8, "precision": "float32", "device": "cpu", "compile": "never", "ema": 0.5},
    "sample": {"sampler": "euler", "steps": 1},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes and three aspect ratios."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for i, (height, width) in enumerate(SIZES):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((width, height), 40 + i).save(place / f"{i:02d}.png")
    return folder


def recipe(photos: Path, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tables = {name: table | sections.get(name, {}) for name, table in TINY.items()}
    return (
        tables
        | {"data": tables["data"] | {"source": str(photos)}}
        | {name: table for name, table in sections.items() if name not in tables}
    )


def train(photos: Path, out: Path, images: int, **sections: dict[str, Any]) -> str:
    said = io.StringIO()
    sections["train"] = sections.get("train", {}) | {"images": images}
    ditlab.train(recipe(photos, **sections), out, console=Console(file=said, width=1000))
    return said.getvalue()


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run without an interruption, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(photos, out, 96)


def raw(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "raw.safetensors")


def test_a_stopped_and_resumed_run_has_the_same_bits(photos: Path, run: tuple[Path, str], tmp_path: Path) -> None:
    for images in (24, 96):
        train(photos, tmp_path / "run", images)
    whole, stopped = raw(run[0]), raw(tmp_path / "run")
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_the_run_says_its_batches_and_shows_every_size(run: tuple[Path, str]) -> None:
    out, said = run
    assert "22 images of 3 sizes from 20x12 to 8x32 pixels" in said
    assert "batches (images): 8 of 20x12 (9), 8 of 16x16 (10), 8 of 8x32 (3); the largest has 7% more pixels" in said
    assert "8x32 has 3 images, fewer than its batch of 8, which repeats images and comes once in 2.67 passes" in said
    with Image.open(sorted((out / "previews").iterdir())[-1]) as preview:
        assert preview.height > 2 * 100  # a row of sheets for the average, and one for the raw weights


def test_the_model_knows_its_sizes_and_generates_others(run: tuple[Path, str]) -> None:
    pipe = ditlab.load(run[0])
    assert trained_sizes(pipe) == [(16, 16), (20, 12), (8, 32)]
    assert pipe([0], seeds=[0]).images[0].size == (16, 16)
    assert pipe([0], seeds=[0], size=(24, 8)).images[0].size == (8, 24)
    assert pipe.resolve(size=(20, 12)).size_shift == 1.0  # a size of the training, whose pixels differ a little
    assert pipe.resolve(size=(24, 8)).size_shift == (12 / 16) ** 0.5


def test_an_evaluation_needs_a_size(run: tuple[Path, str]) -> None:
    settings = SampleSource(count=4, steps=1, sampler="euler")
    line = (
        "this model is trained on 3 sizes of images, and an evaluation compares images of one size; give size, such as "
        "16x16"
    )
    with pytest.raises(InputError, match=line):
        open_source(str(run[0]), settings, torch.device("cpu"), QUIET)
    samples, protocol, preparation = open_source(str(run[0]), settings, torch.device("cpu"), QUIET, "20x12")
    assert samples.fetch(torch.arange(2)).x.shape == (2, 1, 20, 12)
    assert protocol["size"] == [20, 12]
    assert preparation is not None
    assert (preparation.size, preparation.pixels) == ("20x12", None)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_a_batch_equally_and_without_overlap(world: int) -> None:
    buckets = Buckets.nearest([(16, 16)] * 30 + [(20, 12)] * 25, Native(256, 4))
    indices = next(buckets.order(8, 0, 0))
    parts = []
    for rank in range(world):
        steps = Steps.__new__(Steps)
        steps.parts = 1
        steps.job = type("Job", (), {"place": Place(torch.device("cpu"), rank, world)})()  # type: ignore[assignment]
        parts.append(steps.part(indices))
    assert {len(part) for part in parts} == {8 // world}
    assert torch.equal(torch.cat(parts), indices)


def radius(values: torch.Tensor) -> torch.Tensor:
    """The first radii of Box and Muller's method, which the first numbers of an image's stream determine."""
    first, second = values[0].chunk(2)
    return torch.hypot(first, second)[:4]


def test_images_of_other_sizes_have_noise_of_their_own() -> None:
    """In one stream, the second image of 16 values would begin where the third one of 8 values does."""
    one, several = RunRandomness(0), RunRandomness(0, several_sizes=True)
    assert torch.allclose(radius(one.normal(0, 1, (1, 16))), radius(one.normal(0, 2, (1, 8))))
    assert not torch.allclose(radius(several.normal(0, 1, (1, 16))), radius(several.normal(0, 2, (1, 8))))


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"model": {"condition_grid": True}},
            "the images have several sizes .data.size is native., and DiT-S/4 takes one, because condition_grid has a "
            "value for each position; set data.size to HEIGHTxWIDTH, or choose a network that takes any size",
        ),
        (
            {"model": {"patch": 8}},
            "DiT-S/4 needs sides that are multiples of 8 .its own 8 times the stride 1 of the autoencoder.; set "
            "data.multiple = 8",
        ),
        (
            {"train": {"batch": 9}, "parallel": {"accumulate": 2}},
            "batches of 9, 10 images .by the size of the images. cannot be shared equally among 1 process",
        ),
        (
            {"train": {"batch": 12}, "parallel": {"accumulate": 3}, "data": {"pixels": 300}},
            "batches of 12, 16 images .by the size of the images. cannot be shared equally among 1 process with "
            "parallel.accumulate = 3; use 1, 2, 4 or 8 parts, and a train.batch that 8 divides",
        ),
        ({"train": {"route": 0.5}, "model": {"depth": 3}}, "train.route needs images of one size, and data.size is"),
    ],
)
def test_what_does_not_fit_is_one_line(
    photos: Path, tmp_path: Path, sections: dict[str, dict[str, Any]], line: str
) -> None:
    with pytest.raises(InputError, match=line):
        train(photos, tmp_path / "run", 16, **sections)
    assert not (tmp_path / "run").exists()
