"""Whatever writes a file gives it the permissions that the umask asks for, and no others."""

import os
import re
import stat
from pathlib import Path

import pytest
from helpers import posix_only, tiny_pipeline
from rich.console import Console
from safetensors.torch import save_file
from torch import zeros

from ditlab.autoencoders import create_autoencoder
from ditlab.checkpoints import convert
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.reader import parse_recipe
from ditlab.core.weights import write_tensors
from ditlab.data import open_dataset
from ditlab.data.images import write_folder
from ditlab.data.latents.encode import encode
from ditlab.data.survey import sample_sheet
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.evaluation.features import open_features
from ditlab.evaluation.features.small import SmallClassifier, load_or_train
from ditlab.evaluation.references import write_reference
from ditlab.inference.export import export
from ditlab.inference.folder import sample_folder
from ditlab.training import train
from ditlab.training.autoencoder import train_autoencoder

pytestmark = posix_only
QUIET = Console(quiet=True)
SOURCES = Path(__file__).parents[1] / "src" / "ditlab"


def official(learn_variance=True):
    objective = Objective(DDPM(), "eps", learn_variance=learn_variance)
    return tiny_pipeline(channels=4, learn_variance=learn_variance, objective=objective)


def autoencoder():
    return create_autoencoder(kind="patch", picture_channels=1, latent_channels=2, stride=2, width=8, depth=1)


def run(out):
    tables = {"model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}, "data": {"source": "digits"}}
    settings = {"images": 16, "batch": 8, "precision": "float32", "preview_every": 8, "save_every": 8}
    sampling = {"sampler": "euler", "steps": 1}
    train(parse_recipe(tables | {"train": settings | {"power_ema": [0.1]}, "sample": sampling}), out, console=QUIET)


def reference(out):
    write_reference("digits", open_dataset("digits"), open_features("digits"), out / "a.npz", QUIET, count=64, keep=32)


def cached(out):
    os.environ["XDG_CACHE_HOME"] = str(out)
    load_or_train("small", SmallClassifier(3), lambda net: None)


def sheet(out):
    out.mkdir()
    images = out / "images" / "a"
    write_folder(open_dataset("digits"), images, 4)
    from ditlab.data import parse_source

    sample_sheet(parse_source(str(out / "images")).images(), out / "sheet.png")


WRITERS = {
    "model": lambda out: tiny_pipeline().save(out),
    "official": lambda out: convert(official(), out / "a.pt", "official"),
    "diffusers": lambda out: convert(official(), out / "a", "diffusers"),
    "exported graphs": lambda out: export(tiny_pipeline(), out / "graphs", "torch"),
    "run": run,
    "autoencoder run": lambda out: train_autoencoder(
        open_dataset("digits"),
        AutoencoderTraining(images=16, batch=8, stride=2, latent_channels=2, width=8, depth=1, precision="float32"),
        out,
        QUIET,
    ),
    "latent cache": lambda out: encode(open_dataset("digits"), "digits", autoencoder(), out, QUIET, shard=1024),
    "reference": reference,
    "cached classifier": cached,
    "contact sheet": sheet,
    "samples": lambda out: sample_folder(
        tiny_pipeline(), [0], [0], out, QUIET, batch_size=1, trajectory=True, options={"steps": 1}
    ),
    "output": lambda out: tiny_pipeline()(0, steps=1).save(out),
}


@pytest.fixture(params=[0o022, 0o027], ids=["022", "027"])
def umask(request, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "exported graphs")) for kind in WRITERS]
)
def test_no_file_is_more_private_than_the_umask(kind, umask, tmp_path):
    out = tmp_path / "out"
    WRITERS[kind](out)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert files
    assert {(path.name, oct(stat.S_IMODE(path.stat().st_mode))) for path in files} == {
        (path.name, oct(0o666 & ~umask)) for path in files
    }
    folders = {oct(stat.S_IMODE(path.stat().st_mode)) for path in [out, *out.rglob("*")] if path.is_dir()}
    assert folders == {oct(0o777 & ~umask)}


def test_a_private_file_that_is_replaced_becomes_readable(umask, tmp_path):
    """Earlier versions wrote files that only their owner could read."""
    file = tmp_path / "a.safetensors"
    save_file({"a": zeros(2)}, file)
    file.chmod(0o600)
    write_tensors({"a": zeros(3)}, file, {"steps": "1"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_are_written_in_one_place():
    """`save_file` and files of `tempfile` are private, so that nothing else may call them."""
    private = re.compile(r"\bsave_file\(|NamedTemporaryFile|mkstemp|mkdtemp")
    calling = [file for file in SOURCES.rglob("*.py") if private.search(file.read_text(encoding="utf-8"))]
    assert [str(file.relative_to(SOURCES)) for file in calling] == ["core/weights.py"]
