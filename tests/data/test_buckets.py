"""Images of several sizes: buckets, their batches and their order."""

import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import Images, open_dataset, parse_source, preprocessing
from ditlab.data.buckets import Buckets, Native, crop_loss, sample_batch
from ditlab.data.summary import Summary
from ditlab.data.survey import survey

NATIVE = Preparation(size="native", pixels=256, multiple=4)
SIZES = [(16, 16)] * 5 + [(20, 12)] * 4 + [(24, 40)] * 3
QUIET = Console(quiet=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of three shapes, whose gray level is their index."""
    for i, (height, width) in enumerate(SIZES):
        place = tmp_path / "images" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height), i).save(place / f"{i:02d}.png")
    return tmp_path / "images"


def test_sizes_fill_the_budget_and_none_is_part_of_another() -> None:
    assert Native(1024, 8).sizes() == [(64, 16), (40, 24), (32, 32), (24, 40), (16, 64)]
    sizes = Native(65536, 16).sizes()
    assert len(sizes) == 17
    assert all(0.9 * 65536 < height * width <= 65536 and 1 / 4 <= height / width <= 4 for height, width in sizes)


def test_an_image_gets_the_nearest_aspect_ratio_and_loses_least() -> None:
    buckets = Buckets.nearest([(30, 40), (40, 30), (32, 32), None, (100, 1000)], Native(1024, 8))
    assert buckets.sizes == ((40, 24), (32, 32), (24, 40), (16, 64))
    assert [buckets.sizes[i] for i in buckets.of] == [(24, 40), (40, 24), (32, 32), (24, 40), (16, 64)]
    assert buckets.losses == pytest.approx((0.2, 0.2, 0, 0, 0.6))
    assert crop_loss((10, 400), (16, 64)) == pytest.approx(0.9)


def test_a_panorama_is_reported() -> None:
    line = "cropping to at most 4:1 takes more than half of 1 image, up to 90%; crop them yourself, or move them away"
    assert Buckets.nearest([(10, 400), (32, 32)], Native(1024, 8)).notes() == [line]


def test_batches_have_about_as_many_pixels_for_any_rank() -> None:
    of = torch.tensor([0, 1, 2])
    assert Buckets(((40, 24), (32, 32), (16, 16)), of, 1024).batches(32) == [32, 32, 128]
    assert Buckets(((1, 32, 32), (4, 16, 16), (16, 32, 32)), of, 1024).batches(32) == [32, 32, 8]
    assert Buckets(((8, 8), (16, 4), (4, 4)), of, 64).batches(3) == [3, 3, 12]  # 3 and 8 have nothing in common


def test_every_batch_has_one_size_and_every_image_comes_equally_often() -> None:
    buckets = Buckets.nearest([(30, 40)] * 100 + [(40, 30)] * 61 + [(32, 32)] * 7 + [(20, 80)] * 3, Native(1024, 8))
    counts = torch.zeros(171, dtype=torch.long)
    tokens = 0
    for indices in islice(buckets.order(16, 5, 0), 400):
        assert len(buckets.of[indices].unique()) == 1
        counts += torch.bincount(indices, minlength=171)
        tokens += len(indices)
    epochs = tokens / 171
    assert counts.max() - counts.min() <= 8  # a small bucket has not filled its next batch, of which it has 16 / 3
    assert (counts - epochs).abs().max() <= 16 / 3 + 1
    large = counts[buckets.of == 2]
    assert large.max() - large.min() <= 1


@pytest.mark.parametrize("batch", [8, 16])
def test_an_order_resumes_after_any_batch(batch: int) -> None:
    buckets = Buckets.nearest([(30, 40)] * 20 + [(40, 30)] * 11 + [(32, 32)] * 3, Native(1024, 8))
    whole = list(islice(buckets.order(batch, 3, 0), 40))
    seen = 0
    for i, indices in enumerate(whole[:-3]):
        resumed = buckets.order(batch, 3, seen)
        assert all(torch.equal(a, b) for a, b in zip(whole[i : i + 3], islice(resumed, 3), strict=True))
        seen += len(indices)
    assert torch.equal(next(buckets.order(batch, 3, 1)), whole[1])  # not the end of a batch
    assert not torch.equal(next(buckets.order(batch, 4, 0)), whole[0])


def test_a_small_bucket_is_reported() -> None:
    buckets = Buckets.nearest([(32, 32)] * 20 + [(40, 30)] * 4, Native(1024, 8))
    assert buckets.plan(16) == [
        "batches (images): 16 of 40x24 (4), 16 of 32x32 (20); the largest has 7% more pixels",
        "40x24 has 4 images, fewer than its batch of 16, which repeats images and comes once in 4 passes through the "
        "data",
    ]


def test_a_folder_gives_batches_of_one_size(folder: Path) -> None:
    dataset = open_dataset(str(folder), NATIVE)
    assert dataset.buckets is not None
    assert dataset.buckets.sizes == ((20, 12), (16, 16), (12, 20))
    assert dataset.size == (16, 16)
    for indices in islice(dataset.buckets.order(8, 0, 0), 6):
        batch = dataset.fetch(indices)
        assert batch.x.shape[2:] == dataset.buckets.size_of(int(indices[0]))
        assert batch.index is not None
        assert torch.equal(batch.index, indices)
        again = dataset.fetch(indices)  # kept in memory
        assert torch.equal(again.x, batch.x)
    assert sample_batch(dataset, 12).unique().numel() == 5
    assert dataset.preprocessing | {"size": "native", "pixels": 256, "multiple": 4} == dataset.preprocessing
    with pytest.raises(InputError, match=r"the images have several sizes \(data.size is native\), and here they must"):
        dataset.fetch(torch.arange(len(dataset)))


def test_mirrored_copies_have_the_size_of_their_image(folder: Path) -> None:
    dataset = open_dataset(str(folder), Preparation(size="native", pixels=256, multiple=4, flip=True))
    assert dataset.buckets is not None
    assert torch.equal(dataset.buckets.of[:12], dataset.buckets.of[12:])
    i = int(dataset.buckets.members[0][0])
    pair = dataset.fetch(torch.tensor([i, i + 12])).x
    assert torch.equal(pair[1], pair[0].flip(-1))


def test_an_unreadable_image_is_replaced_by_one_of_its_size(folder: Path) -> None:
    file = folder / "b" / "05.png"  # 20x12
    file.write_bytes(file.read_bytes()[:45])
    dataset = open_dataset(str(folder), Preparation(size="native", pixels=256, multiple=4, max_skipped=0.5))
    assert isinstance(dataset, Images)
    broken = next(i for i in range(12) if dataset.source.name(i).endswith("05.png"))
    batch = dataset.fetch(torch.tensor([broken]))
    assert batch.x.shape[2:] == (20, 12)
    assert batch.index is not None
    assert batch.index[0] != broken


def test_a_tar_shard_has_sizes_too(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for i, (height, width) in enumerate(SIZES):
            content = io.BytesIO()
            Image.new("L", (width, height), i).save(content, "PNG")
            for name, data in ((f"{i}.png", content.getvalue()), (f"{i}.txt", b"a caption")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    dataset = open_dataset(str(tmp_path / "a.tar"), NATIVE)
    assert dataset.buckets is not None
    assert dataset.buckets.counts == [4, 5, 3]
    assert dataset.captions(3) == ("a caption",)


def test_the_summary_and_the_survey_have_the_sizes(folder: Path) -> None:
    dataset = open_dataset(str(folder), NATIVE)
    summary = Summary.of(dataset, "photos")
    assert summary.lines()[0] == "data: photos: 12 images of 3 sizes from 20x12 to 12x20 pixels, gray, uint8, 0..255"
    assert summary.describe()["sizes"] == {"20x12": 4, "16x16": 5, "12x20": 3}
    result = survey(parse_source(str(folder)).images(NATIVE), QUIET, native=preprocessing(NATIVE).native)
    assert {size: bucket.images for size, bucket in result.buckets.items()} == summary.sizes
    assert result.buckets["16x16"].most == 0
    assert any(table.title == "batches are of one of these sizes" for table in result.tables())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"size": "native"}, "size is native, but pixels is not set; give it, such as 65536 for as many as in 256x256"),
        ({"size": "32", "pixels": 5}, "pixels is 5, which only size = native uses; remove it, or set size to native"),
        ({"multiple": 5}, "multiple is 5, which only size = native uses; remove it, or set size to native"),
        (
            {"size": "native", "pixels": 255, "multiple": 16},
            "pixels is 255, less than one square of 16x16 (multiple); give more pixels, such as 65536 for as many as "
            "256x256, or a smaller multiple",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings: dict[str, object], line: str) -> None:
    with pytest.raises(InputError) as error:
        preprocessing(Preparation(**settings))  # type: ignore[arg-type]
    assert str(error.value) == line


def test_data_of_one_size_have_no_native_sizes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    line = "a.npz has images of one size, 8x8; omit data.size, data.pixels and data.multiple"
    with pytest.raises(InputError, match=line):
        open_dataset(str(tmp_path / "a.npz"), NATIVE)
