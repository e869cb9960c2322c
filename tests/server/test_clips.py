"""Clips over HTTP: formats, given frames, continuation, and film strips in streams."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from helpers import perturbed, tiny_pipeline
from PIL import Image

from ditlab.backbones import create
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import make_process
from ditlab.inference import longer
from ditlab.inference.pipeline import Pipeline
from ditlab.report import videos
from ditlab.server.app import create_app
from ditlab.server.batching import Call, Engine
from ditlab.server.files import as_base64, png


def decode(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def post(client, **body):
    return client.post("/v1/images/generations", json=body)


def error(response):
    return response.json()["error"]["message"]


@pytest.fixture(scope="module")
def clips():
    """A model of clips of 3 frames of 8x8 pixels, with random weights."""
    torch.manual_seed(0)
    net = create(
        "VideoDiT", size=(3, 8, 8), channels=1, classes=2, width=32, depth=1, heads=2, patch=4, learn_variance=False
    )
    objective = Objective(make_process("linear"), "velocity")
    perturbed(net, 0.05)
    return Pipeline(net, objective, classes=["left", "right"], config={"sample": {"sampler": "euler", "steps": 2}})


@pytest.fixture(scope="module")
def clip_client(clips):
    with TestClient(create_app({"clips": clips, "images": tiny_pipeline()})) as client:
        yield client


def gray_frame(seed, width=8, height=8):
    """A gray image, and its content as base64."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))
    return image, as_base64(png(image))


def shown_frames(text):
    with decode(text) as clip:
        return np.stack([np.asarray(clip.convert("L")) for number in range(clip.n_frames) if clip.seek(number) is None])


class TestClips:
    def test_are_animated_png_files(self, clips, clip_client):
        (one,) = post(clip_client, prompt="left", seeds=3).json()["data"]
        with decode(one["b64_json"]) as clip:
            assert (clip.format, clip.n_frames, clip.size, clip.info["duration"]) == ("PNG", 3, (8, 8), 125)
            about = json.loads(clip.info["ditlab"])
        assert (about["seed"], about["size"]) == (3, "3x8x8")
        assert clip_client.get("/v1/models").json()["data"][0]["size"] == "3x8x8"
        (expected,) = clips(["left"], seeds=3).videos
        assert np.array_equal(shown_frames(one["b64_json"]), expected[..., 0])
        (animated,) = post(clip_client, prompt="left", seeds=3, animation=True).json()["data"]
        with decode(animated["animation_b64"]) as trajectory:
            assert trajectory.width == 3 * trajectory.height  # film strips
        inspected = clip_client.post("/v1/inspect", json={"prompt": "left", "seeds": 3, "steps": 2}).json()
        assert decode(inspected["steps"][1]["b64_json"]).size == (24, 8)  # a film strip
        assert clip_client.get("/v1/thumbnails/1").status_code == 200

    @pytest.mark.parametrize("name", ["webp", "gif", "mp4", "webm"])
    def test_have_the_format_of_the_request(self, clips, clip_client, tmp_path, name):
        if name in ("mp4", "webm"):
            av = pytest.importorskip("av")
        (one,) = post(clip_client, prompt="left", seeds=3, format=name).json()["data"]
        content = base64.b64decode(one["b64_json"])
        assert one["settings"]["seed"] == 3
        (file,) = clips(["left"], seeds=3).save(tmp_path / f"a.{name}")
        if name in ("webp", "gif"):
            assert content == file.read_bytes()
            return
        with av.open(io.BytesIO(content)) as opened:  # the parameters of the encoder are in the file, and may differ
            shown = [frame.to_ndarray(format="gray") for frame in opened.decode(video=0)]
        with av.open(str(file)) as opened:
            expected = [frame.to_ndarray(format="gray") for frame in opened.decode(video=0)]
        assert len(shown) == 3
        assert np.abs(np.stack(shown).astype(int) - np.stack(expected)).max() <= 2

    def test_given_frames_continuation_and_size(self, clips, clip_client):
        (first, start), (last, end) = gray_frame(0), gray_frame(1)
        given = {"0": start, "-1": f"data:image/png;base64,{end}"}
        (one,) = post(clip_client, prompt="left", seeds=3, given=given).json()["data"]
        (expected,) = clips(["left"], seeds=3, given={0: first, -1: last}).videos
        assert np.array_equal(shown_frames(one["b64_json"]), expected[..., 0])
        assert np.array_equal(expected[[0, -1], ..., 0], np.stack([np.asarray(first), np.asarray(last)]))
        wide, content = gray_frame(2, 12, 8)
        body = {"prompt": "left", "seeds": 3, "given": {"0": content}, "size": "4x12x8", "frames": 9, "overlap": 1}
        (one,) = post(clip_client, **body).json()["data"]
        (expected,) = clips(["left"], seeds=3, given={0: wide}, size=(4, 8, 12), frames=9, overlap=1).videos
        assert np.abs(shown_frames(one["b64_json"]).astype(int) - expected[..., 0]).max() <= 1
        settings = one["settings"]
        assert (settings["size"], settings["frames"], settings["overlap"]) == ("4x12x8", 9, 1)
        assert len(settings["image_hash"]) == 16
        assert "strength" not in settings

    def test_streams_have_film_strips_of_whole_clips(self, clip_client):
        response = post(clip_client, prompt="left", seeds=3, frames=5, overlap=1, stream=True, partial_images=2)
        received = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
        assert [data["step"] for data in received] == [1, 2, 3, 4, 4]
        previews = [data["data"][0]["b64_json"] for data in received if data["type"].endswith("partial_image")]
        assert [decode(preview).size for preview in previews] == [(32, 8)] * 2  # 4 of 5 frames
        assert len(shown_frames(received[-1]["data"][0]["b64_json"])) == 5

    def test_requests_with_and_without_given_frames_share_no_network_call(self, clips):
        engine = Engine(clips)
        x, t, condition = clips.net.example(1)
        given = condition.with_given(torch.tensor([[True, False, False]]))
        assert engine._together(Call(x, t, condition), Call(x, t, condition), 1)
        assert not engine._together(Call(x, t, condition), Call(x, t[:, None].expand(-1, 3), given), 1)
        engine.close()

    def test_bad_requests_are_one_line(self, clip_client, monkeypatch):
        image, many = gray_frame(0)[1], {str(number): gray_frame(0)[1] for number in range(3)}
        for body, line in (
            ({"given": {"3": image}}, "given frame 3 of clips of 3 frames; give 0 to 2, or -3 to -1"),
            ({"given": {"0": image, "-3": image}}, "given has frame 0 twice, as 0 and -3; leave one of them out"),
            ({"given": many}, "all 3 frames are given, so that nothing is generated; give 1 to 2"),
            ({"given": {"0": "?"}}, "given frame 0 is not base64; encode the content of the file as base64"),
            ({"given": {"0": "data:image/png,x"}},
             "given frame 0 is not base64; encode the content of the file as base64"),
            ({"given": {"0": as_base64(b"x")}},
             "given frame 0 cannot be read as PNG, JPEG, WEBP, BMP, GIF; give another"),
            ({"given": {"1": gray_frame(0, 12, 8)[1]}},
             "frame 1 has 12x8 pixels (width x height), and the clip 8x8; resize it first"),
            ({"overlap": 2}, "overlap is 2, which has no effect without frames; give frames too"),
            ({"frames": 3}, "frames is 3, and a clip has 3 without being continued; give more, or leave frames out"),
            ({"frames": 400}, "400 steps in 200 parts; give fewer frames or steps, for at most 250 steps in all"),
            ({"image": image}, "an image to start from for VideoDiT, which generates clips; give frames with given"),
            ({"image": image, "frames": 9},
             "image starts from an image, and given, frames and overlap are for clips; leave one out"),
            ({"size": "15x16"}, "size 3x15x16; sides must be multiples of 1x4x4: give 3x16x16, the nearest one"),
            ({"model": "images", "frames": 9},
             "given, frames and overlap are for clips, and DiT-S/2 generates images; leave them out, or give image"),
            ({"model": "images", "format": "gif"},
             "format gif is for clips, and this model generates images; leave format out"),
            ({"model": "images", "size": "3x8x8"},
             "size 3x8x8 has frames, and this model generates images; give WIDTHxHEIGHT"),
        ):  # fmt: skip
            response = post(clip_client, **({"prompt": 0} | body))
            assert (response.status_code, error(response)) == (400, line)
        monkeypatch.setattr(videos, "has_pyav", lambda: False)
        response = post(clip_client, prompt=0, format="mp4")
        line = ".mp4 files need PyAV; pip install 'ditlab[video]', or save .webp or .gif"
        assert (response.status_code, error(response)) == (400, line)
        for key in ("last", "00", "+1", "1\u0662", "", "-0"):
            response = post(clip_client, prompt=0, given={key: image})
            keys = 'its keys are the numbers of frames: "0" to "2", or "-1" to "-3" from the end'
            assert (response.status_code, error(response)) == (400, f'given has the key "{key}"; {keys}')
        assert post(clip_client, prompt=0, given={}).status_code == 422
        response = post(clip_client, prompt=0, frames=4, size="3x8x8", n=16)
        assert response.status_code == 200

    def test_memory_for_long_clips_is_checked_first(self, clip_client, monkeypatch):
        monkeypatch.setattr(longer, "total_memory", lambda device: 1000)
        response = post(clip_client, prompt=0, frames=9)
        assert response.status_code == 400
        assert error(response).startswith("about 0.0 GiB of memory are needed for 1 clip of 9 frames of 8x8, and there")
