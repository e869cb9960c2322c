"""`ditlab sample --given`: frames of clips."""

import json

import numpy as np
import pytest
import torch
from helpers import perturbed
from PIL import Image

from ditlab.backbones import create
from ditlab.diffusion.objective import Objective
from ditlab.inference.pipeline import Pipeline

OPTIONS = ("--labels", 1, "--seeds", 0, "--steps", 2, "--format", "npy")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model of clips and two frames, in the current folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"depth": 1, "width": 16, "heads": 2, "patch": 4, "classes": 2, "channels": 1, "learn_variance": False}
    Pipeline(perturbed(create("VideoDiT", size=(4, 8, 8), **sizes), 0.05).eval(), Objective()).save("model")
    for i, name in enumerate("ab"):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(f"{name}.png")
    return "model"


def clip_in(folder):
    (file,) = folder.glob("*.npy")
    return np.load(file)


def test_frames_are_given_and_recorded(ditlab, model, tmp_path):
    ditlab("sample", model, *OPTIONS, "--given", "0=a.png", "last=b.png", "--out", "one")
    ditlab("sample", "--like", "one", "--out", "two")
    clip = clip_in(tmp_path / "one")
    assert np.array_equal(clip[[0, 3], ..., 0], np.stack([np.asarray(Image.open(f"{name}.png")) for name in "ab"]))
    assert np.array_equal(clip_in(tmp_path / "two"), clip)
    ditlab("sample", model, *OPTIONS, "--given", "0=a.png", "--frames", 7, "--overlap", 1, "--out", "long")
    assert clip_in(tmp_path / "long").shape == (7, 8, 8, 1)
    ditlab("sample", "--like", "long", "--out", "again")
    assert np.array_equal(clip_in(tmp_path / "again"), clip_in(tmp_path / "long"))


@pytest.mark.parametrize(
    "given",
    [
        ("--given", "0=a.png", "-1=b.png"),
        ("--given", "-1=b.png", "0=a.png"),
        ("--given=-1=b.png", "--given", "0=a.png"),
        ("--given", "0=a.png", "--given=-1=b.png"),
    ],
)
def test_a_negative_frame_counts_from_the_end(ditlab, model, tmp_path, given):
    ditlab("sample", model, *given, *OPTIONS, "--out", "one")
    clip = clip_in(tmp_path / "one")
    assert np.array_equal(clip[[0, 3], ..., 0], np.stack([np.asarray(Image.open(f"{name}.png")) for name in "ab"]))
    ditlab("sample", "--like", "one", "--out", "two")
    assert np.array_equal(clip_in(tmp_path / "two"), clip)


def test_the_frame_rate_is_recorded_and_repeated(ditlab, model, tmp_path):
    """The model itself plays 8 frames per second."""
    options = (*OPTIONS[:-1], "webp")
    asked = {"one": (model, *options, "--fps", 2), "two": ("--like", "one"), "three": ("--like", "two", "--fps", 4)}
    for name, words in asked.items():
        ditlab("sample", *words, "--out", name)
    rates = {name: json.loads((tmp_path / name / "samples.json").read_text())["fps"] for name in asked}
    assert rates == {"one": 2, "two": 2, "three": 4}
    for name, rate in rates.items():
        (file,) = (tmp_path / name).glob("*.webp")
        with Image.open(file) as video:
            video.load()
            assert video.info["duration"] == 1000 / rate


@pytest.mark.slow
def test_frames_of_another_size_are_shown_recorded_and_repeated(ditlab, model, tmp_path):
    given = ("--given", "0=a.png", "--size", "6x8x8")
    said = ditlab("sample", model, *OPTIONS, *given, "--out", "one").err
    assert ", size 6x8x8 (shifts the schedule by 1.22), " in said
    assert "1 clip in " in said
    assert clip_in(tmp_path / "one").shape == (6, 8, 8, 1)
    assert json.loads((tmp_path / "one" / "samples.json").read_text())["size"] == "6x8x8"
    ditlab("sample", "--like", "one", "--out", "two")
    assert np.array_equal(clip_in(tmp_path / "two"), clip_in(tmp_path / "one"))
    said = ditlab("sample", model, *OPTIONS, *given, "--frames", 9, "--sampler", "euler", "--guidance", 2,
                  "--out", "long").err  # fmt: skip
    assert "euler, 4 steps (8 NFE), " in said  # two parts of two steps
    assert ", in 2 parts, " in said
    ditlab("sample", "--like", "long", "--out", "again")
    assert np.array_equal(clip_in(tmp_path / "again"), clip_in(tmp_path / "long"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "4x8x4", "--frames", 4), "frames is 4, and a clip has 4 without being continued; give more, or"),
        (("--size", 0), "size 4x0x0; no side can be 0: give 4x4x4, the nearest one"),
        (("--given", "a.png"), "--given a.png; give INDEX=FILE, such as 0=first.png or -1=end.png"),
        (("--given", "0=a.png", "0=b.png"), "--given has frame 0 twice; leave one of them out"),
        (("--overlap", 2), "--overlap needs the length of the clips; add --frames"),
        (("--given", "0=a.png", "--image", "b.png"), "--image starts from an image, and --given and --frames are for"),
        (("--npz", "--frames", 9), "--npz generates all classes from noise; leave --frames out"),
    ],
)
def test_options_that_do_not_fit_are_refused(ditlab, model, options, message):
    words = OPTIONS[2:6] if "--npz" in options else OPTIONS
    assert message in ditlab("sample", model, *words, *options, code=2).err
