"""Clips that keep their length and their aspect ratio: which parts of files they are, and their buckets."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import open_dataset, open_source
from ditlab.data.buckets import Buckets, Native
from ditlab.data.clips.dataset import Clips
from ditlab.data.clips.header import ClipHeader
from ditlab.data.clips.survey import survey_clips
from ditlab.data.clips.timing import Timing, timing_of
from ditlab.data.clips.windows import Window, lengths, windows
from ditlab.data.parse import preprocessing

NATIVE = {"size": "native", "pixels": 256, "multiple": 4, "frames": 8}
FILES = {"a/long": (20, (12, 20)), "a/four": (4, (24, 24)), "a/three": (3, (24, 24)), "b/tall": (9, (40, 24))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Animations of several lengths and sizes, whose level is ten times the number of the frame, and an image."""
    root = tmp_path_factory.mktemp("clips")
    for name, (count, size) in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        first, *others = [Image.new("RGB", size[::-1], (10 * level, 0, 0)) for level in range(count)]
        first.save(root / f"{name}.webp", save_all=True, append_images=others, duration=100, lossless=True)
    Image.new("RGB", (20, 12), (50, 0, 0)).save(root / "b" / "photo.png")
    return root


def open_native(folder: Path, **settings: object) -> Clips:
    clips = open_dataset(str(folder), Preparation(**NATIVE | settings))  # type: ignore[arg-type]
    assert isinstance(clips, Clips)
    return clips


def levels(x: torch.Tensor) -> list[int]:
    return [*map(int, (x[0, 0].float().mean((1, 2)) / 10).round())]


def test_lengths_are_halves_and_one_frame() -> None:
    assert lengths(Timing(16), Native(64, 8)) == [16, 8, 4, 2, 1]
    assert lengths(Timing(12), Native(64, 8)) == [12, 6, 3, 1]
    assert lengths(Timing(16), Native(64, 8, frame_multiple=4)) == [16, 8, 4, 1]
    assert lengths(Timing(1), Native(64, 8)) == [1]
    line = "frames is 10, which frame_multiple = 4 does not divide; give 8, the nearest number"
    with pytest.raises(InputError, match=line):
        lengths(Timing(10), Native(64, 8, frame_multiple=4))


def test_a_long_file_is_cut_into_equal_parts_and_an_image_is_one_frame() -> None:
    header = ClipHeader((8, 8), False, 3.5, 10.0)  # 35 frames
    parts = windows(2, header, Timing(8), Native(64, 8))
    assert parts == [Window(2, 0, 8, 8), Window(2, 8, 9, 8), Window(2, 17, 9, 8), Window(2, 26, 9, 8)]
    still = ClipHeader((8, 8), False, 0.1, 10.0, still=True)
    assert windows(0, still, Timing(8, fps=60.0), Native(64, 8)) == [Window(0, 0, 1, 1)]


def test_clips_have_the_most_frames_and_the_nearest_aspect_ratio(folder: Path) -> None:
    clips = open_native(folder)
    assert clips.buckets is not None
    sizes = [clips.buckets.size_of(i) for i in range(len(clips))]
    assert sizes == [(4, 16, 16), (8, 12, 20), (8, 12, 20), (2, 16, 16), (1, 12, 20), (8, 20, 12)]
    assert (clips.size, clips.labels.tolist()) == ((8, 12, 20), [0, 0, 0, 0, 1, 1])
    shown = [levels(clips.fetch(torch.tensor([i])).x) for i in range(6)]
    assert shown == [[0, 1, 2, 3], [*range(8)], [*range(10, 18)], [0, 1], [5], [*range(8)]]
    later = clips.fetch_at(torch.tensor([2] * 30), 0, torch.arange(30)).x
    assert {levels(clip[None])[0] for clip in later} == {10, 11, 12}  # within its part of the file
    kept, clips.kept = clips.kept, None
    assert kept is not None
    assert torch.equal(clips.fetch_at(torch.tensor([2] * 30), 0, torch.arange(30)).x, later)
    line = "the clips have several sizes (data.size is native), and here they must have one; set it"
    with pytest.raises(InputError, match=re.escape(line)):
        clips.fetch(torch.arange(2))


def test_batches_have_the_same_number_of_pixels_times_frames(folder: Path) -> None:
    buckets = open_native(folder).buckets
    assert buckets is not None
    assert (buckets.sizes[buckets.frequent], buckets.pixels) == ((8, 12, 20), 8 * 256)
    assert dict(zip(buckets.sizes, buckets.batches(64), strict=True)) == {
        (1, 12, 20): 544, (2, 16, 16): 256, (4, 16, 16): 128, (8, 20, 12): 72, (8, 12, 20): 72
    }  # fmt: skip
    images = Buckets(((1, 16, 16), (8, 16, 16)), torch.tensor([0, 1]), 8 * 256, frame_multiple=2)
    assert images.batches(8) == [32, 8]  # an image fills tokens of two frames


def test_mirrored_clips_follow(folder: Path) -> None:
    clips = open_native(folder, flip=True)
    assert clips.buckets is not None
    assert len(clips) == len(clips.labels) == 12
    assert clips.buckets.size_of(8) == clips.buckets.size_of(2)
    pair = clips.fetch(torch.tensor([2, 8])).x
    assert torch.equal(pair[1], pair[0].flip(-1))
    assert [clips.captions(i) for i in (2, 8)] == [(), ()]


def test_an_unreadable_file_has_a_size_that_others_have_and_is_listed(folder: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / f"{name}.webp").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.webp").write_bytes((folder / f"{name}.webp").read_bytes())
    (tmp_path / "a" / "broken.webp").write_bytes(b"RIFF\0\0\0\0WEBP")
    clips = open_native(tmp_path, max_skipped=0.5)
    assert clips.buckets is not None
    broken = clips.first_of(0)
    assert clips.source.name(0) == "a/broken.webp"
    assert clips.buckets.size_of(broken) == (8, 12, 20)
    clips.check(Console(quiet=True), resumed=False)
    assert clips.skipped.keys() == {"a/broken.webp"}
    result = survey_clips(clips.source, Timing(8), Console(quiet=True), preprocessing(Preparation(**NATIVE)))  # type: ignore[arg-type]
    assert {size: bucket.images for size, bucket in result.buckets.items()} == {
        "2x16x16": 1, "4x16x16": 1, "8x20x12": 1, "8x12x20": 2
    }  # fmt: skip
    assert levels(clips.fetch(torch.tensor([broken])).x) == [*range(8)]


def test_photos_are_clips_of_one_frame_as_they_are_displayed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held upright
    Image.new("RGB", (20, 12), (50, 0, 0)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (20, 12), (50, 0, 0)).save(tmp_path / "b.png", exif=exif)
    (tmp_path / "c.jpeg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "d.mp4").write_bytes(b"")
    (tmp_path / "d.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    settings = Preparation(**NATIVE | {"max_skipped": 1.0})  # type: ignore[arg-type]
    source = open_source(str(tmp_path), settings)
    assert source.reading.left_out["image beside a video of the same name"].example == "d.jpg"
    result = survey_clips(source, Timing(8), Console(quiet=True), preprocessing(settings))
    assert {size: bucket.images for size, bucket in result.buckets.items()} == {"1x20x12": 2}
    assert (result.images, result.seconds, result.frames, result.rates) == (2, None, None, {})
    assert result.unreadable.keys() == {"c.jpeg", "d.mp4"}
    clips = open_native(tmp_path, max_skipped=1.0)
    assert [levels(clips.fetch(torch.tensor([i])).x) for i in (0, 1)] == [[5], [5]]


def test_every_part_of_a_file_has_a_stamp(folder: Path) -> None:
    stamps = open_native(folder).stamps()
    assert [*stamps.names][:3] == ["a/four.webp@0", "a/long.webp@0", "a/long.webp@10"]
    assert stamps.sizes[1] == stamps.sizes[2] > 0


def test_the_survey_and_the_notes_state_lengths_and_sizes(folder: Path, tmp_path: Path) -> None:
    settings = Preparation(**NATIVE)  # type: ignore[arg-type]
    source, console = open_source(str(folder), settings), Console(quiet=True)
    result = survey_clips(source, Timing(8), console, preprocessing(settings), tmp_path / "sheet.png")
    assert {size: bucket.images for size, bucket in result.buckets.items()} == {
        "1x12x20": 1, "2x16x16": 1, "4x16x16": 1, "8x20x12": 1, "8x12x20": 2
    }  # fmt: skip
    assert result.unreadable == {}
    assert (result.images, result.seconds, result.rates) == (1, (0.3, 0.65, 2.0), {"10": 4})
    assert any(table.title == "batches are of one of these sizes" for table in result.tables())
    assert result.reading.notes == [
        "clips of up to 8 frames, every frame of a file",
        "6 clips from 5 files: a file gives clips of 8, 4, 2 or 1 frames, the most that it has, and a long file "
        "several; an epoch leaves out 16.2% of the frames",
    ]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (296, 140)  # four frames and one, padded to squares


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"frame_multiple": 2}, "frame_multiple is 2, which has no effect on images; set frames for clips, or remove"),
        ({"frames": 4, "frame_multiple": 2}, "frame_multiple is 2, which only size = native uses; remove it, or set"),
    ],
)
def test_settings_without_effect(settings: dict[str, int], line: str) -> None:
    preparation = Preparation(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=line):
        _ = timing_of(preparation), preprocessing(preparation)
