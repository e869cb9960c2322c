"""Clips from the files to a trained model and back: training, resuming, sampling into files."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from video_net import VideoNet

from ditlab.backbones import BACKBONES
from ditlab.cli import main
from ditlab.core.weights import newest_checkpoint
from ditlab.training.api import train as train_model


@pytest.fixture
def ditlab(monkeypatch, capfd):
    """Run the command line in this process; returns (standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ditlab", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            sys.exit(main())
        assert not end.value.code
        return capfd.readouterr()

    return run


TRAIN = {"batch": 4, "log_every": 8, "preview_every": 16, "save_every": 8, "precision": "float32", "compile": "never"}


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Two classes of animations that are longer than a clip."""
    monkeypatch.setitem(BACKBONES, "VideoNet", VideoNet)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            frames = [Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)) for _ in range(9)]
            file = tmp_path / "data" / name / f"{number}.gif"
            frames[0].save(file, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return tmp_path / "data"


def train(source, out, images):
    said = io.StringIO()
    tables = {
        "model": {"name": "VideoNet"},
        "data": {"source": str(source), "frames": 4, "fps": 10.0},
        "train": TRAIN | {"images": images, "device": "cpu"},
        "sample": {"steps": 2, "sampler": "euler"},
    }
    train_model(tables, out, console=Console(file=said, width=1000))
    return said.getvalue()


def weights(run):
    return load_file(newest_checkpoint(run) / "raw.safetensors")


@pytest.mark.slow
def test_a_run_resumes_with_the_same_clips_and_generates_files(clips, tmp_path, ditlab):
    said = train(clips, tmp_path / "whole", 24)
    assert "6 clips of 4x8x8 pixels, RGB" in said
    assert "clips of 4 frames at 10 fps (0.4 s)" in said
    train(clips, tmp_path / "run", 8)
    train(clips, tmp_path / "run", 24)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all((whole[name] == resumed[name]).all() for name in whole)
    with Image.open(next((tmp_path / "run").rglob("*000016*.png"))) as preview:
        assert preview.width > 2 * 2 * 4 * 48  # average and raw weights, two strips of four frames
    out = tmp_path / "out"
    sampled = ditlab("sample", tmp_path / "run", "--out", out, "--seeds", "0-1", "--fps", "5", "--json")
    files = json.loads(sampled.out)["files"]
    assert [Path(file).name for file in files] == ["a-seed0.webp", "a-seed1.webp", "b-seed0.webp", "b-seed1.webp"]
    assert animation(files[0])[1] == 200
    repeated = ditlab("sample", "--like", files[1], "--out", tmp_path / "again", "--json")
    (file,) = json.loads(repeated.out)["files"]
    assert file.endswith("a-seed1.webp")
    assert animation(file) == animation(files[1])  # also its frame rate


def animation(file):
    """The first frame of an animation, and its duration in milliseconds."""
    with Image.open(file) as image:
        image.load()
        return image.tobytes(), image.info["duration"]
