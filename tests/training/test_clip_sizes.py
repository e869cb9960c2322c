"""Training on images and clips of several lengths and sizes."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import ditlab
from ditlab.config.sections import Train
from ditlab.core.errors import InputError
from ditlab.core.weights import newest_checkpoint
from ditlab.inference.sizes import trained_sizes
from ditlab.training.given import given_frames

FILES = {"a/0": (9, (16, 16)), "a/1": (5, (12, 20)), "b/0": (9, (16, 16)), "b/1": (1, (20, 12))}
TABLES: dict[str, dict[str, Any]] = {
    "model": {"name": "VideoDiT-XS/2x4x4", "width": 16, "heads": 2, "depth": 1},
    "data": {"size": "native", "pixels": 256, "multiple": 4, "frames": 8, "frame_multiple": 2, "gray": True},
    "optim": {"lr": 1e-2},
    "train": {"batch": 8, "precision": "float32", "device": "cpu", "compile": "never", "given_first": 0.5},
    "sample": {"sampler": "euler", "steps": 1, "guidance": 1},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Animations of 9 and 5 frames and an image, of noise."""
    root = tmp_path_factory.mktemp("clips")
    for name, (count, (height, width)) in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        first, *others = [Image.effect_noise((width, height), 50) for _ in range(count)]
        first.save(root / f"{name}.webp", save_all=True, append_images=others, duration=100, lossless=True)
    return root


def train(clips: Path, out: Path, images: int, **sections: dict[str, Any]) -> str:
    said = io.StringIO()
    sections["train"] = sections.get("train", {}) | {"images": images}
    tables = {name: table | sections.get(name, {}) for name, table in TABLES.items()}
    tables["data"]["source"] = str(clips)
    ditlab.train(tables, out, console=Console(file=said, width=1000))
    return said.getvalue()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_checkpoint(run) / "raw.safetensors")  # type: ignore[operator]


@pytest.mark.slow
def test_images_and_clips_train_together_and_resume_with_the_same_bits(clips: Path, tmp_path: Path) -> None:
    said = train(clips, tmp_path / "whole", 64)
    assert "4 clips of 3 sizes from 1x20x12 to 8x16x16 pixels, gray" in said
    assert "batches (images): 32 of 1x20x12 (1), 16 of 4x12x20 (1), 8 of 8x16x16 (2)" in said
    for images in (24, 64):
        train(clips, tmp_path / "run", images)
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    pipe = ditlab.load(tmp_path / "run")
    assert trained_sizes(pipe) == [(8, 16, 16), (1, 20, 12), (4, 12, 20)]
    assert pipe([0], seeds=[0]).videos[0].shape == (8, 16, 16, 1)
    assert pipe([0], seeds=[0], size=(4, 12, 24)).videos[0].shape == (4, 12, 24, 1)


def test_a_token_of_several_frames_needs_lengths_that_it_divides(clips: Path, tmp_path: Path) -> None:
    line = (
        "VideoDiT-XS/2x4x4 has tokens of 2 frames; the frames of clips must be divisible by 2, and an image costs as "
        "much as a clip of 2 frames: set data.frame_multiple = 2"
    )
    with pytest.raises(InputError) as error:
        train(clips, tmp_path / "run", 8, data={"frame_multiple": None})
    assert str(error.value) == line


def test_an_image_has_no_given_frames() -> None:
    given = given_frames(Train(given_first=0.5, given_ends=0.5), 8, 1, torch.Generator().manual_seed(0))
    assert given is not None
    assert not given.any()
