"""Images and videos: everything between noise and files takes any number of dimensions."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from rich.console import Console
from torch import nn

import ditlab
from ditlab.backbones import Backbone
from ditlab.core.errors import InputError
from ditlab.core.types import Between
from ditlab.core.values import PixelValues
from ditlab.core.version import __version__
from ditlab.diffusion.objective import Objective
from ditlab.inference.npz import write_samples
from ditlab.inference.output import Output
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.records import read_record
from ditlab.report.videos import save_video

FRAMES, SIDE = 3, 4


class Video(Backbone):
    """Predicts a velocity that takes every pixel to a value of its frame and label."""

    def __init__(self):
        nn.Module.__init__(self)
        self.size, self.channels, self.classes = (FRAMES, SIDE, SIDE), 1, 2
        self.learn_variance, self.out_channels, self.config = False, 1, {"name": "video"}
        self.one = nn.Parameter(torch.ones(1))

    @classmethod
    def variants(cls):
        return {}

    @property
    def tokens(self):
        return 1

    def forward(self, x, t, condition, *, trace=None):
        """x0 is -1 + 0.5 frame + 0.25 label; the velocity of the linear path is (x - x0) / t."""
        frames = torch.arange(FRAMES).view(1, 1, -1, 1, 1)
        x0 = -1 + 0.5 * frames + 0.25 * condition.label.view(-1, 1, 1, 1, 1)
        return (x - x0) / (t / 1000).view(-1, 1, 1, 1, 1) * self.one


@pytest.fixture
def video():
    return Pipeline(Video(), Objective(time="uniform"), classes=["still", "bright"])


@pytest.mark.parametrize("sampler", ["euler", "heun", "ab4", "dpmpp"])
def test_a_video_model_generates_videos(video, sampler):
    assert video.shape == (1, FRAMES, SIDE, SIDE)
    out = video([0, "bright"], seeds=[0, 1], steps=4, sampler=sampler)
    expected = [[0, 64, 128], [32, 96, 159]]
    for clip, levels in zip(out.videos, expected, strict=True):
        assert clip.shape == (FRAMES, SIDE, SIDE, 1)
        assert clip.dtype == np.uint8
        assert np.abs(clip.reshape(FRAMES, -1).astype(int) - np.array(levels)[:, None]).max() <= 1
    strip = np.array(out.images[1])
    assert strip.shape == (SIDE, FRAMES * SIDE)
    assert np.array_equal(strip[:, SIDE : 2 * SIDE], out.videos[1][1, ..., 0])


def test_forms_and_files_of_videos(video, tmp_path):
    options = {"seeds": [0, 1], "steps": 2}
    assert video(0, output_type="latent", **options).images.shape == (2, 1, FRAMES, SIDE, SIDE)
    assert video(0, output_type="pt", **options).images.shape == (2, 1, FRAMES, SIDE, SIDE)
    assert video(0, output_type="np", **options).images.shape == (2, FRAMES, SIDE, SIDE, 1)
    files = video([0, 1], **options).save(tmp_path / "clips")
    assert [file.name for file in files] == ["0000.webp", "0001.webp"]
    with Image.open(files[0]) as animation:
        assert animation.n_frames == FRAMES
    with pytest.raises(InputError, match=r"give a name that ends in .webp or .gif or .mp4 or .webm or .npy"):
        video(0, **options).save(tmp_path / "a.png")


def frames_of(file):
    """Gray levels and milliseconds of an animation."""
    with Image.open(file) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            found.append((np.asarray(image.convert("L")), image.info["duration"]))
    return found


def test_formats_and_frame_rates(video, tmp_path):
    out = video([0, 1], seeds=[0, 1], steps=2)
    for suffix in (".webp", ".gif"):
        (file, _) = out.save(tmp_path / f"a{suffix}", fps=5)
        frames = frames_of(file)
        assert [milliseconds for _, milliseconds in frames] == [200] * FRAMES
        assert all(
            np.array_equal(frame, shown[..., 0]) for (frame, _), shown in zip(frames, out.videos[0], strict=True)
        )
    video.config["recipe"] = {"data": {"fps": 12.5}}
    (file, _) = video([0, 1], seeds=[0, 1], steps=2).save(tmp_path / "trained", format="gif")
    assert frames_of(file)[0][1] == 80
    assert read_record(tmp_path / "trained").common["fps"] == 12.5
    files = out.save(tmp_path / "folders", format="frames")
    assert [path.name for path in sorted(files[1].iterdir())] == ["0000.png", "0001.png", "0002.png"]
    save_video(out.videos[0], tmp_path / "seed0-to-1-0.50")  # the end of a name is no format
    assert (tmp_path / "seed0-to-1-0.50" / "0002.png").is_file()
    with Image.open(files[1] / "0002.png") as image:
        assert np.array_equal(np.asarray(image), out.videos[1][2, ..., 0])
    listed = json.loads((tmp_path / "folders" / "samples.json").read_text())
    assert [image["file"] for image in listed["images"]] == ["0000", "0001"]
    assert listed["fps"] == 8
    for path in (files[1], tmp_path / "folders"):
        repeat = read_record(path)
        assert (repeat.format, repeat.images[-1]["seed"]) == ("frames", 1)
    with pytest.raises(InputError, match='format "png" for videos; choose from: webp, gif, mp4, webm, npy, frames'):
        out.save(tmp_path / "b", format="png")
    with pytest.raises(InputError, match="fps is 5, which has no effect on images; remove it"):
        tiny_pipeline()(0, steps=1).save(tmp_path / "b", fps=5)
    with pytest.raises(InputError, match='format "mp4" for images; choose from: png, npy'):
        tiny_pipeline()(0, steps=1).save(tmp_path / "b", format="mp4")
    with pytest.raises(InputError, match=r"fps is 1000; give 0\.1 to 240"):
        out.save(tmp_path / "b", fps=1000)


@pytest.mark.parametrize("name", ["o.avi", "o.MOV", "o.apng"])
def test_an_unknown_suffix_is_refused(video, tmp_path, name):
    with pytest.raises(InputError) as error:
        video(0, seeds=0, steps=1).save(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name}; files of videos end in .webp or .gif or .mp4 or .webm or .npy; give such a name, or a "
        "folder without a suffix"
    )
    with pytest.raises(InputError, match=r"files of images end in .png or .npy; give such a name, or a folder"):
        tiny_pipeline()(0, steps=1).save(tmp_path / name)
    (tmp_path / name).mkdir()
    assert video(0, seeds=0, steps=1).save(tmp_path / name)[0].name == "0000.webp"
    assert video(0, seeds=0, steps=1).save(tmp_path / "v1.5")[0].parent.name == "v1.5"


def test_a_file_of_images_holds_no_videos(video, tmp_path):
    with pytest.raises(InputError, match=r"holds images, and this model generates videos; write \.npy files"):
        write_samples(
            video, tmp_path, Console(quiet=True), count=2, labels="balanced", seed=0, batch_size=2, options={}
        )


@pytest.mark.skipif(find_spec("av") is None, reason="needs PyAV (ditlab[video])")
class TestVideoFiles:
    def test_read_back(self, tmp_path):
        import av

        ramp = np.linspace(20, 220, 32).astype(np.uint8)
        clip = np.stack([np.roll(np.broadcast_to(ramp[:, None], (16, 32, 3)), i, 1) for i in range(5)])
        for suffix in (".mp4", ".webm"):
            save_video(clip, tmp_path / f"a{suffix}", 12)
            with av.open(str(tmp_path / f"a{suffix}")) as container:
                assert container.streams.video[0].average_rate == 12
                decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert len(decoded) == 5
            assert np.abs(np.stack(decoded).astype(int) - clip).mean() < 4

    def test_odd_sides(self, tmp_path):
        clip = np.zeros((3, 15, 31, 3), np.uint8)
        message = r"frames of 15x31 as .mp4 \(H.264 needs even sides\); give 14x30, or save .webm, .webp or .gif"
        with pytest.raises(InputError, match=message):
            save_video(clip, tmp_path / "a.mp4")
        save_video(clip, tmp_path / "a.webm")

    def test_encoders_get_only_options_that_they_use(self, tmp_path, monkeypatch):
        import av

        given = {}
        opening = av.open
        monkeypatch.setattr(
            av,
            "open",
            lambda file, **options: given.update({options["format"]: options["options"]}) or opening(file, **options),
        )
        for suffix in (".mp4", ".webm"):
            save_video(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / f"a{suffix}")
        assert given == {"mp4": {"movflags": "faststart"}, "webm": {}}


def test_images_are_saved_under_the_names_that_are_asked_for(tmp_path):
    out = tiny_pipeline()([0, 1], seeds=[0, 1], steps=2)
    assert out.videos == []
    assert [file.name for file in out.save(tmp_path / "images")] == ["0000.png", "0001.png"]
    assert [file.name for file in out.save(tmp_path / "otter.png")] == ["otter-0.png", "otter-1.png"]
    one = Output(out.images[:1])
    (file,) = one.save(str(tmp_path / "one.png"))
    assert Image.open(file).tobytes() == out.images[0].tobytes()
    (file,) = tiny_pipeline()(0, seeds=0, steps=2, output_type="pt").save(tmp_path / "floats.png")
    assert Image.open(file).tobytes() == out.images[0].tobytes()
    with pytest.raises(InputError, match='latents cannot be saved as images; leave output_type="latent" out'):
        tiny_pipeline()(0, steps=1, output_type="latent").save(tmp_path)


def test_videos_of_other_numbers(video, tmp_path):
    video.values = PixelValues("int16", (-1000.0,), (3000.0,))
    options = {"seeds": [0, 1], "steps": 4, "sampler": "euler"}
    numbers = video([0, 1], output_type="native", **options).images
    assert (numbers.shape, numbers.dtype) == ((2, FRAMES, SIDE, SIDE, 1), np.int16)
    expected = np.array([[-1000, 0, 1000], [-500, 500, 1500]])  # x0 of each frame, from -1000 to 3000
    assert np.abs(numbers.reshape(2, FRAMES, -1) - expected[..., None]).max() <= 1
    out = video([0, 1], **options)
    assert np.abs(out.videos[1].reshape(FRAMES, -1) - np.array([32, 96, 159])[:, None]).max() <= 1
    files = out.save(tmp_path / "clip.npy")
    assert [np.array_equal(np.load(file), clip) for file, clip in zip(files, numbers, strict=True)] == [True, True]
    assert [file.suffix for file in out.save(tmp_path / "clips")] == [".webp", ".webp"]


class TestSettings:
    """Every image carries what decides it."""

    options = {"seeds": [4, 5], "steps": 2, "guidance": 1.5}  # noqa: RUF012

    def test_of_images(self, tmp_path):
        pipe = tiny_pipeline()
        loaded = ditlab.load(pipe.save(tmp_path / "model"))
        identity = pipe.identity()
        out = loaded([1, "class 2"], **self.options)
        assert out.settings[1] == {
            "version": __version__, "model": "DiT-S/2", "source": str(tmp_path / "model"), "images_seen": None,
            "precision": "float32", "size": "8x8",
            "settings": {
                "steps": 2, "sampler": "heun", "guidance": 1.5, "guidance_interval": [0.0, 1.0], "schedule": "uniform",
            },
            "weights_hash": identity["weights_hash"], "autoencoder_hash": identity["autoencoder_hash"],
            "label": "class 2", "seed": 5,
        }  # fmt: skip
        assert "source" not in pipe(1, steps=1).settings[0]
        assert [loaded([1], steps=1, output_type=kind).settings[0]["seed"] for kind in ("np", "pt", "latent")] == [
            0
        ] * 3

    def test_are_saved(self, tmp_path):
        out = tiny_pipeline()([1, 2], **self.options)
        files = out.save(tmp_path / "images")
        for file, settings in zip(files, out.settings, strict=True):
            with Image.open(file) as image:
                assert json.loads(image.text["ditlab"]) == settings
        listed = json.loads((tmp_path / "images" / "samples.json").read_text())
        assert listed.pop("images") == [
            {"file": "0000.png", "label": 1, "seed": 4}, {"file": "0001.png", "label": 2, "seed": 5},
        ]  # fmt: skip
        assert listed | {"label": 2, "seed": 5} == out.settings[1]
        out.save(tmp_path / "alone" / "a.png")
        assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["a-0.png", "a-1.png"]
        out.images.pop()
        out.save(tmp_path / "changed")
        assert [path.name for path in (tmp_path / "changed").iterdir()] == ["0000.png"]
        with Image.open(tmp_path / "changed" / "0000.png") as image:
            assert image.text == {}

    def test_of_interpolations_images_and_guides(self, tmp_path):
        pipe, guide = tiny_pipeline(), tiny_pipeline()
        with torch.no_grad():
            next(guide.net.parameters()).add_(1)
        (middle,) = pipe(Between(0, 1, 0.5), seeds=Between(3, 9, 0.25), steps=1).settings
        assert middle["label"] == {"first": 0, "second": 1, "weight": 0.5}
        assert middle["seed"] == {"first": 3, "second": 9, "weight": 0.25}
        pictures = [Image.new("L", (8, 8), 10 * i) for i in range(2)]
        pictures[1].save(tmp_path / "picture.png")
        pictures[1] = Image.open(tmp_path / "picture.png")
        first, second = pipe(0, seeds=[0, 1], image=pictures, strength=0.5, steps=2).settings
        assert "image" not in first
        assert second["image"] == str(tmp_path / "picture.png")
        assert first["image_hash"] != second["image_hash"]
        assert second["settings"]["strength"] == 0.5
        guided = pipe(0, steps=1, guide=guide, guidance=2.0).settings[0]
        assert guided["guide_hash"] == guide.identity()["weights_hash"]

    def test_no_hash_is_recorded_of_weights_that_were_changed(self):
        pipe = tiny_pipeline()
        out, kept = pipe(1, steps=1), pipe(1, steps=1)
        assert kept.settings[0]["weights_hash"] == pipe.identity()["weights_hash"]
        with torch.no_grad():
            next(pipe.net.parameters()).add_(1)
        assert out.settings[0]["weights_hash"] is None

    def test_of_a_prepared_model_are_those_of_the_model(self):
        pipe = tiny_pipeline()
        settings = pipe.prepared("bfloat16")(1, steps=1).settings[0]
        assert (settings["precision"], settings["weights_hash"]) == ("bfloat16", pipe.identity()["weights_hash"])
