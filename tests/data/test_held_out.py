"""The setting `held_out`: images of any source are divided into a training part and a held-out part."""

import re
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import Latents, open_dataset, parse_source
from ditlab.data.latents.encode import encode
from ditlab.data.parse import as_divided, content_identity, find_spec
from ditlab.data.sources import open_source
from ditlab.data.sources.part import held_out_indices
from ditlab.data.summary import Summary

from .latents.test_cache import autoencoder

COUNTS = {"a": 20, "b": 12, "c": 1}
HELD_OUT = ["a/5.png", "a/10.png", "a/12.png", "b/7.png"]
"""The names of `folder` whose hashes lie below 0.1, and the lowest one of class b, which has none below."""


@pytest.fixture
def folder(tmp_path):
    for name, count in COUNTS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "photos" / name / f"{i}.png")
            (tmp_path / "photos" / name / f"{i}.txt").write_text(f"{name}{i}")
    return tmp_path / "photos"


def opened(path, share=0.1, **settings):
    return open_source(str(path), Preparation(held_out=share, **settings))


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_the_parts_of_a_folder(folder):
    train, val, whole = opened(folder), opened(f"{folder}:val"), open_source(str(folder))
    assert names(val) == names(opened(folder, split="val")) == names(opened(folder, split="valid")) == HELD_OUT
    assert names(train) == names(opened(f"{folder}:train")) == [name for name in names(whole) if name not in HELD_OUT]
    assert (val.classes, val.labels.tolist(), train.labels.bincount().tolist()) == (
        ["a", "b", "c"],
        [0] * 3 + [1],
        [17, 11, 1],
    )
    assert train.reading.split == "train (4 of 33 images held out, as val)"
    assert val.reading.split == "val (4 of 33 images; the others are train)"
    assert list(val.columns["caption"].values) == ["a5", "a10", "a12", "b7"]
    position = names(whole).index("a/10.png")
    assert (val.stamp(1), val.content(1)) == (whole.stamp(position), whole.content(position))
    data = open_dataset(f"{folder}:val", Preparation(held_out=0.1))
    assert data.fetch(torch.arange(4)).x[:, 0, 0, 0].tolist() == [5, 10, 12, 7]
    assert data.preprocessing == {"held_out": 0.1, "split": "val"}
    assert (
        "split: train (4 of 33 images held out, as val)"
        in Summary.of(open_dataset(str(folder), Preparation(held_out=0.1)), "photos").lines()
    )


def test_the_division_is_the_same_after_adding_images_and_elsewhere(folder, tmp_path):
    for i in range(20, 60):
        Image.new("RGB", (8, 8)).save(folder / "a" / f"{i}.png")
    (folder / "0").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0" / "first.png")
    moved = folder.rename(tmp_path / "elsewhere")
    before = {f"{name}/{i}.png" for name, count in COUNTS.items() for i in range(count)}
    assert [name for name in names(opened(f"{moved}:val")) if name in before] == HELD_OUT


def test_each_class_keeps_an_image():
    places = np.array([0.3, 0.1, 0.2, 0.05, 0.6, 0.7, 0.8, 0.9])
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 2])
    assert held_out_indices(places, labels, 0.5).tolist() == [1, 2, 4]  # of class 2, half should be held out
    assert held_out_indices(places, labels, 0.2).tolist() == [1]
    assert held_out_indices(places, labels, 0.01).tolist() == []


def test_many_images_are_divided_by_the_share(folder):
    generator = np.random.default_rng(0)
    chosen = held_out_indices(generator.random(100_000), generator.integers(0, 10, 100_000), 0.1)
    assert len(chosen) == pytest.approx(10_000, abs=300)  # three standard errors


def test_other_sources(folder, tmp_path):
    val = [f"{name}.png" for name in ("5", "10", "12")]  # the names in a flat folder have other hashes
    flat = opened(f"{folder / 'a'}:val")
    assert (len(flat), flat.classes) == (1, [])
    assert names(opened(f"{folder / 'a'}/*.png:val")) == names(flat) != val
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(folder, ".")
    shards = opened(f"{tmp_path / 's.tar'}:val")
    assert shards.classes == ["a", "b", "c"]
    assert len(shards) + len(opened(tmp_path / "s.tar")) == 33
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(20)))
    labeled = opened(f"{folder / 'a'}:val", labels=str(table))
    assert (names(labeled), labeled.classes) == (["16.png", *names(flat)], ["0", "1"])
    rows = {"image": [Image.new("RGB", (8, 8))] * 30}
    datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image()})).save_to_disk(tmp_path / "saved")
    for text in (f"{tmp_path / 'saved'}", f"hf:{tmp_path / 'saved'}"):
        assert len(opened(f"{text}:val")) + len(opened(text)) == 30


NONE_HELD_OUT = "holds out none of {} of {{}}; give a greater share, or more images of a class"
PARTS = "but held_out divides {} into train and val; choose one of them"


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("{}:val", {}, 'split is "val", but {} has no folders train and val; remove split, or set held_out'),
        ("{}:test", {"held_out": 0.1}, f'split is "test", {PARTS}'),
        ("{}", {"held_out": 0.1, "split": "x"}, f'split is "x", {PARTS}'),
        (
            "{}:val",
            {"held_out": 0.1, "split": "train"},
            'split is "train", but the source is {}:val; remove one of them',
        ),
        ("{}/c", {"held_out": 0.9}, f"held_out is 0.9, which {NONE_HELD_OUT.format('1 image').replace('{}', '{}/c')}"),
        ("{}", {"held_out": 0.001}, f"held_out is 0.001, which {NONE_HELD_OUT.format('33 images')}"),
        ("{}", {"held_out": 1.0}, "held_out is 1.0; give at least 0 and less than 1"),
        (
            "digits",
            {"held_out": 0.1},
            "held_out is 0.1, but the data set digits has held-out images of its own (digits-held-out); "
            "remove held_out",
        ),
        (
            "{}/../divided",
            {"held_out": 0.1},
            "held_out is 0.1, but {}/../divided is divided already (train, val); remove held_out",
        ),
    ],
)
def test_bad_input(folder, text, settings, message):
    for part in ("train", "val"):
        (folder.parent / "divided" / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder.parent / "divided" / part / "1.png")
    with pytest.raises(InputError, match=f"^{re.escape(message.format(folder))}$"):
        open_dataset(text.format(folder), Preparation(**settings))


def test_the_source_of_the_held_out_images(folder):
    settings = Preparation(held_out=0.1)
    held_out = parse_source(str(folder), settings).held_out()
    assert held_out.text == f"{folder}:val"
    assert len(held_out.open(settings)) == 4
    assert held_out.held_out() is None
    assert parse_source(f"{folder}:train", settings).held_out() == held_out
    assert parse_source(str(folder), Preparation(held_out=0.1, split="val")).held_out() is None


def test_a_part_of_a_divided_folder_can_be_named(folder):
    for part in ("train", "val"):
        (folder.parent / "divided" / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder.parent / "divided" / part / f"{part}.png")
    assert names(open_source(f"{folder.parent / 'divided'}:val")) == ["val.png"]


def test_settings_of_a_training_are_used_for_named_parts_only(folder):
    trained = Preparation(held_out=0.1, label_column="none", gray=True)
    assert as_divided(f"{folder}:val", Preparation(), trained) == Preparation(held_out=0.1, label_column="none")
    for whole in (str(folder), "digits", "digits:val"):
        assert as_divided(whole, Preparation(), trained) == Preparation()
    assert find_spec("digits:val") is None


@pytest.mark.slow
def test_a_cache_holds_the_training_images_and_says_so(folder, tmp_path):
    def run(out, **settings):
        settings = Preparation(**settings)
        return encode(
            open_dataset(str(folder), settings), str(folder), autoencoder(), tmp_path / out, Console(quiet=True)
        )

    assert run("cache", held_out=0.1).entries == 29
    cache = open_dataset(str(tmp_path / "cache"))
    assert cache.reading.split == "train (a share of 0.1 of each class is held out, as val)"
    assert isinstance(cache, Latents)
    assert cache.preprocessing == {"held_out": 0.1, "split": "train"}
    with pytest.raises(InputError, match=r"holds another cache \(held_out is 0\.1 there, .* here"):
        run("cache", held_out=0.2)
    with pytest.raises(InputError, match=r"holds another cache \(held_out is 0\.1 there"):
        run("cache")


def test_the_identity_covers_the_part(folder):
    parts = {content_identity(text, Preparation(held_out=share)) for text, share in
             ((str(folder), 0.0), (str(folder), 0.1), (f"{folder}:val", 0.1), (str(folder), 0.5))}  # fmt: skip
    assert len(parts) == 4
