"""Image files of any type and any number of channels: the same path as in `test_values`, from files on the disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.config.reader import parse_recipe
from ditlab.core.values import PixelValues
from ditlab.data import open_dataset
from ditlab.evaluation.features import FEATURES
from ditlab.evaluation.features.base import Extracted, Features
from ditlab.evaluation.protocols import evaluate
from ditlab.evaluation.references import write_reference
from ditlab.training import train

tifffile = pytest.importorskip("tifffile")
QUIET = Console(quiet=True)
FILES = 12


def uniform(low, high, channels, dtype):
    """Numbers (12, 16, 16, channels) from `low` to `high`, both of which occur."""
    numbers = np.random.default_rng(0).integers(low, high + 1, (FILES, 16, 16, channels)).astype(dtype)
    if numbers.dtype.kind == "f":
        numbers *= np.float32(0.917)  # no whole numbers
    numbers[0, 0, 0], numbers[0, 0, 1] = low, high
    return numbers


def write_tiff(file, image):
    tifffile.imwrite(file, image, photometric="minisblack", planarconfig="contig" if image.shape[-1] > 1 else None)


def write_png(file, image):
    Image.fromarray(image[..., 0]).save(file)


KINDS = {
    "2 channels, TIFF": (uniform(0, 255, 2, "u1"), "tif", write_tiff, PixelValues()),
    "4 channels, TIFF": (uniform(0, 255, 4, "u1"), "tif", write_tiff, PixelValues()),
    "13 channels, npy": (uniform(0, 10_000, 13, "u2"), "npy", np.save, PixelValues("uint16", (0.0,), (16383.0,))),
    "float, TIFF": (uniform(-300, 900, 1, "f4"), "tif", write_tiff, PixelValues("float32", (-300.0,), (900.0,))),
    "12 bits, PNG": (uniform(0, 4095, 1, "u2"), "png", write_png, PixelValues("uint16", (0.0,), (4095.0,))),
    "bytes with a sign, TIFF": (
        uniform(-128, 127, 1, "i1"),
        "tif",
        write_tiff,
        PixelValues("int16", (-128.0,), (127.0,)),
    ),
}


class Means(Features):
    """The mean of each quarter of the first shown channel."""

    name, weights, dimension = "means", "none", 4

    def __call__(self, images):
        return Extracted(torch.nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 2).flatten(1))


def recipe(source, images):
    settings = {"images": images, "batch": 8, "precision": "float32", "compile": "never", "device": "cpu"}
    model = {"name": "DiT-S/4", "width": 16, "depth": 1, "heads": 2}
    sample = {"sampler": "euler", "steps": 2}
    return parse_recipe({"model": model, "train": settings, "sample": sample, "data": {"source": str(source)}})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_train_resume_sample_and_evaluate(kind, tmp_path, monkeypatch):
    numbers, suffix, write, values = KINDS[kind]
    source, run = tmp_path / "files", tmp_path / "run"
    source.mkdir()
    for i, image in enumerate(numbers):
        write(source / f"{i}.{suffix}", image)

    data = open_dataset(str(source))
    assert (data.channels, data.values) == (numbers.shape[-1], values)
    returned = data.values.restored(data.fetch(torch.arange(FILES)).x).permute(0, 2, 3, 1).numpy()
    quantum = 1 if values.dtype != "float32" else (values.high[0] - values.low[0]) * 2**-22
    assert np.abs(returned.astype("f8") - numbers).max() < quantum

    train(recipe(source, 8), run, console=QUIET)
    assert json.loads((run / "data.json").read_text())["values"] == values.describe()
    train(recipe(source, 16), run, console=QUIET)
    pipe = ditlab.load(run, device="cpu")
    assert pipe.values == values
    samples = pipe(seeds=[0, 1], output_type="native").images
    assert (samples.shape, samples.dtype) == ((2, 16, 16, numbers.shape[-1]), np.dtype(values.dtype))

    monkeypatch.setitem(FEATURES, "means", lambda weights, device: Means())
    reference = tmp_path / "reference.npz"
    write_reference("files", data, Means(), reference, QUIET)
    result = evaluate(pipe, reference=str(reference), features="means", count=8, out=tmp_path, device="cpu")
    assert np.isfinite(result.metrics["fd_means"])
