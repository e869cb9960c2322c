"""Commands on images that `held_out` divides, and features that are trained on them."""

import json

import pytest
from helpers import tiny_pipeline, two_classes

from ditlab.config.sections import Preparation
from ditlab.data import open_dataset

SAMPLING = ("--count", 4, "--steps", 1, "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images in two classes, and a model that was trained on a part of them."""
    place = tmp_path_factory.mktemp("parts")
    two_classes(place / "photos")
    pipe = tiny_pipeline(classes=2)
    pipe.classes = ["a", "b"]
    pipe.config |= {"held_out": 0.2}
    pipe.save(place / "model")
    return place


@pytest.mark.slow
def test_features_evaluation_reference_and_memorization(place, ditlab):
    photos, val = place / "photos", f"{place / 'photos'}:val"
    count = len(open_dataset(val, Preparation(held_out=0.2)))
    features = ("--features", "own", "--feature-weights", place / "own.safetensors")
    written = ditlab("features", photos, "--held-out", 0.2, "--minutes", 1e-4, "--out", features[3], "--json").out
    trained = json.loads(written)
    assert (trained["images"], trained["held_out"], trained["classes"]) == (40 - count, count, ["a", "b"])
    shown = ditlab("features", photos, "--minutes", 1e-4, "--out", place / "whole.safetensors").err
    assert shown == f"1 step on 40 images\nfeatures: {place / 'whole.safetensors'}\n"
    metrics = ("--metrics", "frechet", "accuracy")
    result = json.loads(
        ditlab(
            "evaluate", place / "model", "--reference", val, *features, *metrics, "--out", place / "e", *SAMPLING
        ).out
    )
    assert {"fd_own", "accuracy"} <= result.keys()
    made = json.loads(ditlab("reference", val, "--held-out", 0.2, *features, "--out", place / "r.npz", "--json").out)
    assert made["count"] == count
    sets = ("--training", photos, "--held-out", val)
    tested = json.loads(
        ditlab("memorization", place / "model", *sets, *features, "--out", place / "m.png", *SAMPLING).out
    )
    assert (tested["training"], tested["held_out"]) == (40 - count, count)
    ditlab("sample", place / "model", "--npz", "--count", 4, "--steps", 1, "--out", place / "npz")
    tested = json.loads(
        ditlab(
            "memorization", place / "npz" / "samples.npz", *sets, *features, "--held-out-share", 0.2,
            "--out", place / "n.png", "--json",
        ).out
    )  # fmt: skip
    assert (tested["training"], tested["held_out"]) == (40 - count, count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("data", "digits", "--held-out", 0.1),
            "held_out is 0.1, but the data set digits has held-out images of its own",
        ),
        (("train-autoencoder", "digits", "--held-out-share", 0.1, "--out", "x"), "held_out is 0.1, but the data set"),
        (("features", "digits", "--minutes", 0, "--out", "x.safetensors"), "minutes is 0; give more than 0"),
        (("evaluate", "digits", "--reference", "digits", "--features", "own"), "the features own are trained on your"),
    ],
)
def test_bad_input(ditlab, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert ditlab(*arguments, code=2).err.startswith(f"ditlab: {message}")
