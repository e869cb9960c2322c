"""Latent caches of images and clips of several sizes."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.autoencoders.patch import Patch
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import Dataset, Latents, open_dataset
from ditlab.data.latents.cache import is_cache
from ditlab.data.latents.encode import encode
from ditlab.data.summary import Summary

NATIVE = Preparation(size="native", pixels=256, multiple=4)
SIZES = [(16, 16)] * 5 + [(20, 12)] * 4 + [(24, 40)] * 3
QUIET = Console(quiet=True)
AUTOENCODER = Patch(1, 4, 2, 8, 1).requires_grad_(False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of three shapes, whose gray level is their index."""
    for i, (height, width) in enumerate(SIZES):
        place = tmp_path / "photos" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height), 20 * i).save(place / f"{i:02d}.png")
        (place / f"{i:02d}.txt").write_text(f"number {i}")
    return tmp_path / "photos"


def make(dataset: Dataset, out: Path) -> Latents:
    encode(dataset, "photos", AUTOENCODER, out, QUIET, batch_size=2, shard=5, dtype="fp32")
    return Latents(out)


def test_a_cache_holds_the_moments_of_images_of_several_sizes(photos: Path, tmp_path: Path) -> None:
    dataset, out = open_dataset(str(photos), NATIVE), tmp_path / "cache"
    cache = make(dataset, out)
    assert dataset.buckets is not None
    assert cache.buckets is not None
    assert (cache.buckets.sizes, cache.buckets.counts) == (((20, 12), (16, 16), (12, 20)), [4, 5, 3])
    assert (cache.size, cache.shape, cache.buckets.pixels) == ((16, 16), (8, 8, 8), 256)
    for i, source in enumerate(cache._sources.tolist()):  # the entries of a shard are ordered by size
        image = dataset.fetch(torch.tensor([source]))
        batch = cache.fetch(torch.tensor([i]))
        assert torch.equal(batch.x, AUTOENCODER.encode(image.x))
        assert torch.equal(batch.labels, image.labels)
        assert cache.captions(i) == dataset.captions(source)
        assert cache.buckets.size_of(i) == image.x.shape[2:]
    for indices in islice(cache.buckets.order(8, 0, 0), 4):
        assert len(cache.fetch(indices)) == 8
    assert (out / "index.json").read_text().count('"native": {\n  "pixels": 256,\n  "frame_multiple": 1\n }') == 1
    line = Summary.of(open_dataset(str(out)), "cache").lines()[0]
    assert line.startswith(
        "data: cache: 12 images of 3 sizes from 20x12 to 12x20 pixels, gray, uint8, 0..255, as laten"
    )
    with pytest.raises(InputError, match="have several sizes, and here they must have one"):
        cache.fetch(torch.arange(12))


def test_a_finished_cache_is_kept_and_one_with_new_sizes_is_completed(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    make(open_dataset(str(photos), NATIVE), out)
    before = {file.name: file.stat().st_mtime_ns for file in (out / "shards").iterdir()}
    make(open_dataset(str(photos), NATIVE), out)
    assert before == {file.name: file.stat().st_mtime_ns for file in (out / "shards").iterdir()}
    Image.new("L", (32, 8), 250).save(photos / "b" / "99.png")
    cache = make(open_dataset(str(photos), NATIVE), out)
    assert cache.buckets is not None
    assert cache.buckets.sizes == ((20, 12), (16, 16), (12, 20), (8, 32))
    line = "holds another cache \\(native is pixels 256, frame_multiple 1 there, pixels 400, frame_multiple 1 here"
    with pytest.raises(InputError, match=line):
        make(open_dataset(str(photos), Preparation(size="native", pixels=400, multiple=4)), out)


def test_settings_that_a_cache_of_several_sizes_contradicts(photos: Path, tmp_path: Path) -> None:
    make(open_dataset(str(photos), NATIVE), tmp_path / "cache")
    opened = open_dataset(str(tmp_path / "cache"), NATIVE)
    assert opened.buckets is not None
    line = (
        "was encoded with pixels = 256 and multiple = 4, not 400 and 8; omit data.size, data.pixels and data.multiple"
    )
    with pytest.raises(InputError, match=line):
        open_dataset(str(tmp_path / "cache"), Preparation(size="native", pixels=400))


def test_a_cache_holds_clips_of_several_lengths(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name, count in (("long", 9), ("short", 4), ("image", 1)):
        first, *others = [Image.new("L", (16, 16), 20 * i) for i in range(count)]
        file = tmp_path / "clips" / f"{name}.gif"
        first.save(file, save_all=True, append_images=others, duration=100)
    settings = Preparation(size="native", pixels=256, multiple=4, frames=4, frame_multiple=2, gray=True)
    clips = open_dataset(str(tmp_path / "clips"), settings)
    cache = make(clips, tmp_path / "cache")
    assert clips.buckets is not None
    assert cache.buckets is not None
    assert (cache.buckets.sizes, cache.buckets.counts) == (((1, 16, 16), (4, 16, 16)), [1, 3])
    assert cache.buckets.batches(8) == clips.buckets.batches(8) == [16, 8]
    assert (cache.size, cache.shape) == ((4, 16, 16), (8, 4, 8, 8))


def test_a_damaged_description_is_one_line(photos: Path, tmp_path: Path) -> None:
    make(open_dataset(str(photos), NATIVE), tmp_path / "cache")
    assert is_cache(tmp_path / "cache")
    index = tmp_path / "cache" / "index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"native": {"pixels": 0, "frame_multiple": 1}}))
    with pytest.raises(InputError, match=r"index.json.*remove it and encode again"):
        Latents(tmp_path / "cache")
