"""Clips: frames are chosen by their times, whatever the file format says about their number."""

import importlib.util
import io
import json
import tarfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.autoencoders.patch import Patch
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import Latents, open_dataset, open_source
from ditlab.data.check import UnreadableImagesError
from ditlab.data.clips.dataset import Clips
from ditlab.data.clips.header import ClipHeader
from ditlab.data.clips.reading import read_clip_header
from ditlab.data.clips.stamps import durations
from ditlab.data.clips.survey import survey_clips
from ditlab.data.clips.timing import Timing, timing_of
from ditlab.data.images import write_folder
from ditlab.data.latents.encode import encode
from ditlab.data.parse import preprocessing
from ditlab.data.reading import LeftOut
from ditlab.data.sources import files
from ditlab.data.summary import Summary, skipped_counts
from ditlab.report import videos

SIDE = 8
video = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV (ditlab[video])")


def images(levels, size=(SIDE, SIDE)):
    """Plain images, whose level is the number of the frame times ten."""
    return [Image.new("RGB", size[::-1], (10 * level, 0, 0)) for level in levels]


def animation(file, levels, milliseconds, size=(SIDE, SIDE)):
    file.parent.mkdir(parents=True, exist_ok=True)
    first, *others = images(levels, size)
    exact = {"lossless": True} if file.suffix == ".webp" else {}
    first.save(file, save_all=True, append_images=others, duration=milliseconds, loop=0, **exact)
    return file


def movie(file, levels, times=None, rate=10, size=(16, 16), rotation=0):
    """A video whose frames have these levels, with time stamps in frames."""
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libvpx-vp9" if file.suffix == ".webm" else "libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 100)
        if rotation:
            stream.set_display_rotation(rotation)
        for i, image in enumerate(images(levels, size)):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = round((i if times is None else times[i]) * 100 / rate), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def levels(clips):
    """The number of each frame (B, T)."""
    return (clips[:, 0].float().mean((2, 3)) / 10).round().long().tolist()


def open_clips(folder, **settings):
    return open_dataset(str(folder), Preparation(**settings))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_durations_are_those_that_pillow_finds_and_merged_frames_count(suffix, tmp_path):
    file = animation(tmp_path / f"a{suffix}", [0, 0, 0, 1, 2, 2], 100)
    with Image.open(file) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            found.append(image.info["duration"])
    content = file.read_bytes()
    assert durations(content) == found
    assert sum(found) == 600
    if suffix != ".png":
        assert len(found) == 3  # equal frames are one
    header = read_clip_header(file)
    assert (header.duration, header.rate, header.variable) == (0.6, 10.0, False)
    clips = open_clips(tmp_path, frames=6)
    assert levels(clips.fetch(torch.tensor([0])).x) == [[0, 0, 0, 1, 2, 2]]
    with pytest.raises(ValueError, match="truncated"):
        durations(content[:-3])


def test_durations_of_a_frame_without_one_are_those_of_browsers(tmp_path):
    file = animation(tmp_path / "a.gif", [0, 1], 0)
    assert durations(file.read_bytes()) == [100, 100]
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    assert durations((tmp_path / "still.png").read_bytes()) == [100]


def test_frame_rates_strides_and_lengths(tmp_path):
    animation(tmp_path / "a.webp", range(12), 50)
    for settings, expected in (
        ({"frames": 4}, [0, 1, 2, 3]),
        ({"frames": 4, "stride": 2}, [0, 2, 4, 6]),
        ({"frames": 4, "stride": 3}, [0, 3, 6, 9]),
        ({"frames": 3, "fps": 5.0}, [0, 4, 8]),
        ({"frames": 6, "fps": 10.0}, [0, 2, 4, 6, 8, 10]),
        ({"frames": 8, "fps": 40.0}, [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"seconds": 0.4, "fps": 10.0}, [0, 2, 4, 6]),
        ({"seconds": 0.6, "frames": 3}, [0, 4, 8]),
    ):
        assert levels(open_clips(tmp_path, **settings).fetch(torch.tensor([0])).x) == [expected], settings


def test_positions_do_not_depend_on_rounded_stamps():
    for rate in (24.0, 25.0, 30000 / 1001, 60.0):
        for count in (1, 16, 250):
            exact = ClipHeader((8, 8), False, count / rate, rate)
            rounded = ClipHeader((8, 8), False, round(1000 * count / rate) / 1000, rate)
            for timing in (Timing(16), Timing(16, rate)):
                assert timing.positions(exact) == timing.positions(rounded) == count
    assert Timing(4, 8.0).words() == "4 frames at 8 fps (0.5 s)"
    assert Timing(4, stride=3).words() == "4 frames, every 3 frames of a file"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 8.0}, "fps is 8, which has no effect on images; set frames for clips, or remove it"),
        ({"stride": 2}, "stride is 2, which has no effect on images"),
        ({"frame_folders": True}, "frame_folders has no effect on images"),
        ({"frames": 4, "fps": 8.0, "stride": 2}, "fps is 8 and stride is 2, which both choose the frames; remove one"),
        ({"seconds": 2.0}, "seconds is 2; give a length above 0, and one of frames and fps"),
        ({"seconds": 2.0, "frames": 4, "fps": 8.0}, "seconds is 2; give a length above 0, and one of frames and fps"),
    ],
)
def test_settings_that_contradict_each_other(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        timing_of(Preparation(**settings))


def test_settings_that_other_sources_do_not_use(tmp_path):
    animation(tmp_path / "a.gif", range(4), 100)
    with pytest.raises(InputError, match="frames is 4, which has no effect on the data set colored-shapes; remove it"):
        open_dataset("colored-shapes", Preparation(frames=4))
    with pytest.raises(InputError, match='range is "0,1", which has no effect'):
        open_clips(tmp_path, frames=4, range="0,1")
    with pytest.raises(InputError, match=r"fps is 8\.0, which has no effect"):
        open_clips(tmp_path, frames=4, frame_folders=True, fps=8.0)


def test_classes_captions_and_what_is_left_out(tmp_path):
    for name in ("walk/a", "walk/b", "run/c"):
        animation(tmp_path / f"{name}.gif", range(4), 100)
    (tmp_path / "walk" / "a.txt").write_text("a red square")
    (tmp_path / "walk" / "notes.md").write_bytes(b"")
    clips = open_clips(tmp_path, frames=4)
    assert isinstance(clips, Clips)
    assert (clips.classes, clips.labels.tolist(), clips.size) == (["run", "walk"], [0, 1, 1], (4, SIDE, SIDE))
    assert [clips.captions(i) for i in range(3)] == [(), ("a red square",), ()]
    assert clips.reading.left_out["not a clip (.md)"].count == 1
    assert "3 clips of 4x8x8 pixels, RGB" in Summary.of(clips, "x").lines()[0]
    assert "clips of 4 frames, every frame of a file" in Summary.of(clips, "x").lines()


def test_which_part_of_a_long_file_is_a_function_of_seed_and_images_seen(tmp_path):
    animation(tmp_path / "a.gif", range(20), 100)
    animation(tmp_path / "b.gif", range(4), 100)
    clips, indices, seen = open_clips(tmp_path, frames=4), torch.zeros(64, dtype=torch.long), torch.arange(64)
    batch = clips.fetch_at(indices, 3, seen)
    starts = [frames[0] for frames in levels(batch.x)]
    assert set(starts) == set(range(17))
    assert all(frames == list(range(frames[0], frames[0] + 4)) for frames in levels(batch.x))
    clips.kept = None  # the same frames when nothing is kept in memory
    assert torch.equal(clips.fetch_at(indices[9:], 3, seen[9:]).x, batch.x[9:])
    assert not torch.equal(clips.fetch_at(indices, 4, seen).x, batch.x)
    assert levels(clips.fetch_at(indices[:2] + 1, 3, seen[:2]).x) == [[0, 1, 2, 3]] * 2


def test_mirrored_clips_and_sizes(tmp_path):
    image = Image.new("RGB", (16, 8))
    image.paste((200, 0, 0), (0, 0, 8, 8))
    image.save(
        tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGB", (16, 8))], duration=100, lossless=True
    )
    clips = open_clips(tmp_path, frames=2, size="4x8", flip=True)
    plain, mirrored = clips.fetch(torch.tensor([0, 1])).x
    assert plain.shape == (3, 2, 4, 8)
    assert torch.equal(mirrored, plain.flip(3))
    assert plain[0, 0, 0, 0] > 150 > plain[0, 0, 0, 7]
    animation(tmp_path / "b.gif", range(4), 100)
    with pytest.raises(InputError, match=r"b.gif has 8x8 pixels .* but a.webp has 8x16; give a size"):
        open_clips(tmp_path, frames=2)


def test_clips_that_cannot_be_read_are_listed_and_replaced(tmp_path):
    for name in "abcd":
        animation(tmp_path / "data" / f"{name}.gif", range(6), 100)
    animation(tmp_path / "data" / "short.gif", range(2), 100)
    (tmp_path / "data" / "empty.gif").write_bytes(b"")
    whole = (tmp_path / "data" / "a.gif").read_bytes()
    (tmp_path / "data" / "zero.gif").write_bytes(whole[:14])
    settings = Preparation(frames=4, max_skipped=0.6)
    clips = open_dataset(str(tmp_path / "data"), settings, tmp_path / "skipped.csv")
    clips.check(Console(quiet=True), resumed=False)
    assert clips.skipped.keys() == {"short.gif", "empty.gif", "zero.gif"}
    assert clips.skipped["short.gif"] == "too short: 2 frames of 4 (0.2 s)"
    assert "short.gif,too short: 2 frames of 4 (0.2 s)" in (tmp_path / "skipped.csv").read_text()
    assert Summary.of(clips, "data").reading.left_out == {
        "clips that cannot be read": LeftOut(2, "empty.gif"),
        "clips that are too short": LeftOut(1, "short.gif: 2 frames of 4 (0.2 s)"),
    }
    assert skipped_counts(clips) == "2 clips could not be read, 1 clip is too short"
    short = next(i for i in range(7) if clips.source.name(i) == "short.gif")
    assert clips.fetch(torch.tensor([short])).index.tolist() != [short]
    assert len(clips.fetch_readable(torch.arange(7))) == 4
    strict = open_dataset(str(tmp_path / "data"), Preparation(frames=4))
    with pytest.raises(UnreadableImagesError) as error:
        strict.check(Console(quiet=True), resumed=False)
    assert str(error.value).startswith("3 of 7 clips cannot be read or are too short, the last one is ")
    assert "; repair them, give fewer frames, or allow a greater share than 0.05 (max_skipped); it is" in str(
        error.value
    )
    (tmp_path / "none").mkdir()
    for name in ("bad.gif", "worse.gif"):
        (tmp_path / "none" / name).write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"none of the 2 clips can be read, beginning with bad\.gif"):
        open_clips(tmp_path / "none", frames=4)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [({}, "fewer frames"), ({"stride": 2}, "fewer frames, or a smaller stride"),
     ({"fps": 5.0}, "fewer frames, or a higher fps")],
)  # fmt: skip
def test_clips_that_are_too_short_name_the_settings_that_ask_for_more(tmp_path, settings, remedy):
    for name in "ab":
        animation(tmp_path / f"{name}.gif", range(6), 100)
    with pytest.raises(UnreadableImagesError) as error:
        open_clips(tmp_path, frames=9, **settings).fetch(torch.arange(2))
    assert " clips are too short, the last one is " in str(error.value)
    assert f"; give {remedy}, or allow a greater share than 0.05 (max_skipped); it is 1 so far" in str(error.value)
    source, timing = open_source(str(tmp_path), Preparation(frames=9)), timing_of(Preparation(frames=9, **settings))
    with pytest.raises(InputError) as error:
        survey_clips(source, timing, Console(quiet=True), preprocessing(Preparation(frames=9)))
    assert str(error.value).startswith("all 2 clips are too short, beginning with a.gif (too short: ")
    assert str(error.value).endswith(f"); give {remedy}")


def test_a_request_beyond_the_memory(tmp_path, monkeypatch):
    animation(tmp_path / "a.gif", range(6), 100)
    monkeypatch.setattr("ditlab.data.clips.dataset.free_memory", lambda device: 2**30)
    with pytest.raises(
        InputError, match=r"a clip of 1,000 frames of 512x512 takes 0.7 GiB, two are read ahead, and 1.0"
    ):
        open_clips(tmp_path, frames=1000, size="512")


def test_folders_of_frames(tmp_path):
    for name in ("walk/a", "walk/c", "walk/d", "run/b"):
        (tmp_path / name).mkdir(parents=True)
        for number, image in enumerate(images(range(12))):
            image.save(tmp_path / name / f"{number}.png")  # 10 comes after 9
    clips = open_clips(tmp_path, frames=4, stride=3, frame_folders=True)
    assert (clips.classes, clips.labels.tolist()) == (["run", "walk"], [0, 1, 1, 1])
    assert levels(clips.fetch(torch.tensor([0, 1])).x) == [[0, 3, 6, 9]] * 2
    part = open_clips(tmp_path, frames=4, frame_folders=True, held_out=0.5, max_skipped=0)
    assert levels(part.fetch(torch.arange(len(part))).x) == [[0, 1, 2, 3]] * len(part)
    stamp = clips.source.stamp(0)
    Image.new("RGB", (SIDE, SIDE), (255, 9, 4)).save(tmp_path / "run" / "b" / "11.png")
    assert clips.source.stamp(0) != stamp
    flat = open_clips(tmp_path / "run", frames=12, frame_folders=True)
    assert (flat.classes, len(flat)) == ([], 1)
    with pytest.raises(InputError, match=r"walk/a.*0.png lies beside the folders of frames"):
        open_clips(tmp_path / "walk" / "a", frames=4, frame_folders=True)
    with pytest.raises(UnreadableImagesError, match=r"too short: 1 frame of 4"):  # as clips, these are 24 still images
        open_clips(tmp_path, frames=4).fetch(torch.arange(4))


def test_folders_of_frames_have_no_seconds(tmp_path):
    for name, count in (("a", 6), ("b", 4), ("c", 2)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images(range(count))):
            image.save(tmp_path / name / f"{number}.png")
    settings = Preparation(frames=4, frame_folders=True)
    found = survey_clips(open_source(str(tmp_path), settings), Timing(4), Console(quiet=True), preprocessing(settings))
    assert (found.seconds, found.frames, found.rates) == (None, (4, 5, 6), {})
    assert found.unreadable == {"c": "too short: 2 frames of 4"}
    screen = Console(record=True, width=100, file=io.StringIO())
    screen.print(*found.tables())
    said = screen.export_text()
    assert "frames, min / median / max" in said
    assert "4 / 5 / 6" in said
    assert "seconds" not in said
    assert "fps" not in said


def test_tar_shards(tmp_path):
    animation(tmp_path / "a.webp", range(4), 100)
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        for key in ("1", "2"):
            shard.add(tmp_path / "a.webp", f"{key}.webp")
            (tmp_path / "t.json").write_text(json.dumps({"caption": f"clip {key}"}))
            shard.add(tmp_path / "t.json", f"{key}.json")
    clips = open_clips(tmp_path / "x.tar", frames=4)
    assert levels(clips.fetch(torch.arange(2)).x) == [[0, 1, 2, 3]] * 2
    assert [clips.captions(i) for i in range(2)] == [("clip 1",), ("clip 2",)]


def test_latents_frame_by_frame(tmp_path):
    for name in "ab":
        animation(tmp_path / "data" / f"{name}.webp", [3, 7, 9], 100)
    clips = open_clips(tmp_path / "data", frames=3)
    autoencoder = Patch(3, 4, 2, width=8, depth=1)
    encode(clips, "data", autoencoder, tmp_path / "cache", Console(quiet=True), dtype="fp32")
    cache = Latents(tmp_path / "cache")
    assert (cache.size, cache.shape) == ((3, SIDE, SIDE), (8, 3, SIDE // 2, SIDE // 2))
    moments = cache.fetch(torch.tensor([1])).x
    frame = autoencoder.encode(clips.fetch(torch.tensor([1])).x[:, :, 1])
    assert torch.equal(moments[:, :, 1], frame)
    assert autoencoder.decode(autoencoder.latents(moments, torch.zeros_like)).shape == (1, 3, 3, SIDE, SIDE)


def test_survey_and_export(tmp_path):
    for name in ("walk/a", "walk/b", "run/c"):
        animation(tmp_path / "data" / f"{name}.gif", range(6), [100, 100, 300, 100, 100, 150], (8, 16))
    animation(tmp_path / "data" / "run" / "short.gif", range(2), 50)
    settings = Preparation(frames=4, size="8x16")
    source = open_source(str(tmp_path / "data"), settings)
    sheet, console = tmp_path / "sheet.png", Console(quiet=True)
    survey = survey_clips(source, Timing(4), console, preprocessing(settings), sheet)
    assert (survey.clips, survey.classes, survey.variable) == (4, {"run": 1, "walk": 2}, 3)
    assert survey.seconds == (0.85, 0.85, 0.85)
    assert (survey.rates, survey.sizes) == ({"10": 3}, {"8x16": 3})
    assert survey.unreadable == {"run/short.gif": "too short: 2 frames of 4 (0.1 s)"}
    assert len(survey.tables()) == 5
    assert "3 clips of variable frame rate, resampled to their own frame rate" in survey.reading.notes
    with Image.open(sheet) as image:
        assert image.height < image.width
    clips = open_clips(tmp_path / "data", **{"frames": 4, "size": "8x16", "max_skipped": 0.5})
    assert write_folder(clips, tmp_path / "out", 9) == 3
    again = open_clips(tmp_path / "out", frames=4)
    assert torch.equal(again.fetch(torch.arange(3)).x, clips.fetch_readable(torch.arange(4)).x)


def test_videos_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "has_pyav", lambda: False)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"no clips in .*needs PyAV, pip install 'ditlab\[video\]' \(.mp4\): a.mp4"):
        open_clips(tmp_path, frames=4)
    monkeypatch.setattr(videos, "has_pyav", lambda: False)
    with pytest.raises(InputError, match=r".mp4 files need PyAV; pip install 'ditlab\[video\]', or save .webp or .gif"):
        videos.check_video(".mp4", (8, 8), 8)


@video
class TestVideos:
    @pytest.mark.parametrize("suffix", [".mp4", ".webm"])
    def test_frames_by_time(self, suffix, tmp_path):
        movie(tmp_path / f"a{suffix}", range(20))
        clips = open_clips(tmp_path, frames=4, fps=5.0)
        assert levels(clips.fetch(torch.tensor([0])).x) == [[0, 2, 4, 6]]
        header = clips.headers.found[0]
        assert (header.duration, header.rate, header.variable) == (pytest.approx(2, abs=0.02), 10, False)
        clips.kept = None
        starts = {
            frames[0] for frames in levels(clips.fetch_at(torch.zeros(24, dtype=torch.long), 0, torch.arange(24)).x)
        }
        assert starts <= set(range(0, 14, 2))
        assert len(starts) > 3

    def test_late_clips_are_found_after_a_key_frame(self, tmp_path):
        file = movie(tmp_path / "a.mp4", [i % 24 for i in range(60)])
        clips = open_clips(tmp_path, frames=2)
        header = read_clip_header(file)
        clips.kept = None
        assert levels(torch.from_numpy(clips._decode(0, header, 45, 2)).permute(3, 0, 1, 2)[None]) == [[21, 22]]

    def test_variable_frame_rates_are_resampled_and_reported(self, tmp_path):
        movie(tmp_path / "a.mp4", range(8), times=[0, 1, 2, 6, 7, 8, 12, 13])
        clips = open_clips(tmp_path, frames=6, fps=5.0)
        assert levels(clips.fetch(torch.tensor([0])).x) == [[0, 2, 2, 3, 5, 5]]
        assert "1 clip of variable frame rate, resampled to 5 fps" in clips.reading.notes

    def test_rotation(self, tmp_path):
        movie(tmp_path / "a.mp4", range(4), size=(16, 32), rotation=90)
        assert open_clips(tmp_path, frames=2).size == (2, 32, 16)

    def test_audio_only_and_broken_files(self, tmp_path):
        import av

        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with pytest.raises(InputError, match=r"the only clip cannot be read: a.mp4 \(no video in it, only audio\)"):
            open_clips(tmp_path, frames=2)
        (tmp_path / "a.mp4").write_bytes(b"\0" * 99)
        with pytest.raises(InputError, match=r"a.mp4 \(Invalid data found when processing input\)"):
            open_clips(tmp_path, frames=2)
