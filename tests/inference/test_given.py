"""Clips with given frames: image to video, interpolation and continuation."""

import numpy as np
import pytest
import torch
from helpers import perturbed, relative, tiny_pipeline
from PIL import Image

from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.core.types import Between
from ditlab.diffusion.objective import Objective
from ditlab.inference import longer
from ditlab.inference.given import given_frames
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.records import read_record

LATENT = {"seeds": [3, 4], "steps": 3, "guidance": 2.0, "output_type": "latent"}


@pytest.fixture(params=["VideoDiT", "Latte", "ClipHourglass"])
def pipe(request):
    torch.manual_seed(0)
    sizes = {"depth": 2, "width": 32, "heads": 2, "patch": 2, "classes": 2, "channels": 1, "learn_variance": False}
    more = {"VideoDiT": {"patch_frames": 2}, "ClipHourglass": {"outer": [16]}}.get(request.param, {})
    return Pipeline(perturbed(create(request.param, size=(4, 8, 8), **sizes, **more), 0.05).eval(), Objective())


def picture(seed, side=8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8))


def test_given_frames_come_back_and_change_the_others(pipe):
    first, last = picture(0), picture(1)
    out = pipe([0, 1], seeds=[3, 4], steps=3, guidance=2.0, given={0: first, -1: last})
    for video in out.videos:
        assert np.array_equal(video[0, ..., 0], np.asarray(first))
        assert np.array_equal(video[3, ..., 0], np.asarray(last))
    about = out.settings[0]
    assert about["image_hash"] == out.settings[1]["image_hash"]
    latents = pipe([0, 1], given={0: first, -1: last}, **LATENT).images
    plain, other = pipe([0, 1], **LATENT).images, pipe([0, 1], given={0: first, -1: first}, **LATENT).images
    assert latents.shape == plain.shape == (2, 1, 4, 8, 8)
    assert (latents[:, :, 1:3] - plain[:, :, 1:3]).abs().amax((1, 2, 3, 4)).min() > 1e-3
    assert (latents[:, :, 1:3] - other[:, :, 1:3]).abs().amax((1, 2, 3, 4)).min() > 1e-3


def test_each_clip_has_its_own_frames_and_does_not_depend_on_the_batch(pipe):
    images = [picture(0), picture(1)]
    together = pipe([0, 1], given={0: images}, **LATENT).images
    single = torch.cat([pipe([i], given={0: images[i]}, **LATENT | {"seeds": [3 + i]}).images for i in range(2)])
    assert relative(together, single) < 1e-5
    parts = pipe([0, 1], given={0: images}, batch_size=1, **LATENT).images
    assert relative(together, parts) < 1e-5


def test_interpolated_labels_and_a_prepared_pipeline_take_given_frames(pipe):
    options = LATENT | {"seeds": [3], "given": {1: picture(0)}}
    half = pipe([Between(0, 1, 0.5)], **options).images
    assert relative(half, pipe([0], **options).images) > 1e-4
    assert relative(pipe.prepared("float32")([Between(0, 1, 0.5)], **options).images, half) < 1e-5


@pytest.mark.slow
def test_longer_clips_continue_their_last_frames(pipe):
    out = pipe([0, 1], frames=9, overlap=1, given={0: picture(0)}, **LATENT)
    first = pipe([0, 1], given={0: picture(0)}, **LATENT).images
    assert out.images.shape == (2, 1, 9, 8, 8)
    assert relative(out.images[:, :, :4], first) < 1e-6
    assert (out.images[:, :, 4:7] - out.images[:, :, 1:4]).abs().amax() > 1e-2
    assert [about["frames"] for about in out.settings] == [9, 9]
    assert (
        relative(pipe([0, 1], frames=9, overlap=1, given={0: picture(0)}, batch_size=1, **LATENT).images, out.images)
        < 1e-5
    )
    assert pipe([0], frames=6, seeds=[0], steps=2).videos[0].shape == (6, 8, 8, 1)
    assert pipe.resolve(steps=3, original=None).steps == 3


def test_given_frames_and_longer_clips_have_any_size(pipe):
    first = picture(0).resize((16, 8))
    options = {"given": {0: first}, "seeds": [3], "steps": 2, "size": (6, 8, 16)}
    (video,) = pipe([0], **options).videos
    assert video.shape == (6, 8, 16, 1)
    assert np.array_equal(video[0, ..., 0], np.asarray(first))
    out = pipe([0], frames=9, **options)
    assert out.videos[0].shape == (9, 8, 16, 1)
    assert np.array_equal(out.videos[0][:6], video)
    assert (out.settings[0]["size"], out.settings[0]["frames"], out.settings[0]["overlap"]) == ("6x16x8", 9, 3)


def test_given_frames_without_a_path_are_recorded(pipe, tmp_path):
    options = {"seeds": [3], "steps": 1, "sampler": "euler"}
    pipe([0], given={0: picture(0)}, **options).save(tmp_path / "a")
    record = read_record(tmp_path / "a" / "samples.json")
    assert record.start == {"given": ()}  # the command line asks for them
    assert "strength" not in record.settings
    pipe([0], frames=6, **options).save(tmp_path / "b")
    assert read_record(tmp_path / "b" / "samples.json").start == {"frames": 6, "overlap": 2}
    pipe([0], **options).save(tmp_path / "c")
    assert read_record(tmp_path / "c" / "samples.json").start == {}


def test_steps_of_longer_clips_are_those_of_all_parts(pipe):
    original = given_frames(pipe, {0: picture(0)}, 9, 1)
    plan = pipe.resolve(original=original, steps=2, sampler="euler", guidance=2.0)
    assert (plan.steps, plan.evaluations) == (6, 12)  # three parts of two steps, each with guidance
    reported = []
    options = {"seeds": [3, 4], "steps": 2, "sampler": "euler"}
    out = pipe([0, 1], frames=9, overlap=1, given={0: picture(0)}, output_type="latent",
               callback_on_step_end=reported.append, **options)  # fmt: skip
    steps = [*pipe.steps([0, 1], original=original, **options)]
    assert [step.i for step in steps] == [step.i for step in reported] == [*range(6)]
    assert torch.equal(steps[-1].x, out.images)
    assert torch.equal(reported[-1].x, out.images)
    assert steps[0].x.shape == out.images.shape
    assert not steps[1].x[:, :, 4:].any()  # frames that are not generated yet


def test_memory_is_checked_before_a_long_clip(pipe, monkeypatch):
    monkeypatch.setattr(longer, "total_memory", lambda device: 2**30)
    monkeypatch.setattr(longer, "free_memory", lambda device: 2**29)
    monkeypatch.setattr(type(pipe.net), "forward", lambda *args: pytest.fail("the network ran"))
    # 4 copies of 8x8 bytes, and 2 latents of 8x8 floats, for each frame.
    message = (
        "about 14.3 GiB of memory are needed for 2 clips of 10,000,000 frames of 8x8, and there are 1.0 GiB, of which "
        "0.5 are free; give fewer frames or clips"
    )
    for call in (
        lambda: pipe([0, 1], seeds=[0, 1], frames=10_000_000),
        lambda: pipe.steps([0, 1], seeds=[0, 1], original=given_frames(pipe, None, 10_000_000)),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == message


def test_requests_that_do_not_fit_are_refused_in_one_line(pipe):
    image = picture(0)
    for options, message in (
        ({"given": {4: image}}, "given frame 4 of clips of 4 frames; give 0 to 3, or -4 to -1"),
        ({"given": {0: image, -4: image}}, "given has frame 0 twice, as 0 and -4; leave one of them out"),
        (
            {"given": dict.fromkeys(range(4), image)},
            "all 4 frames are given, so that nothing is generated; give 1 to 3",
        ),
        ({"given": {}}, "given has no frames; give 1 to 3 of 4, or leave given out"),
        ({"given": {}, "frames": 9}, "given has no frames; give 1 to 3 of 4, or leave given out"),
        ({"given": [image]}, "given is a list; give images by frame, such as {0: image}"),
        ({"given": {0: None}}, r"given[0] has no image; give a PIL image, or leave the frame out"),
        ({"given": {-1: []}}, r"given[-1] has no image; give a PIL image, or leave the frame out"),
        ({"given": {0: picture(0, 6)}}, "frame 0 has 6x6 pixels (height x width), and the clip 8x8; resize it first"),
        (
            {"given": {0: image}, "size": (16, 8)},
            "frame 0 has 8x8 pixels (height x width), and the clip 16x8; resize it first",
        ),
        ({"given": {0: "a.png"}}, r"given[0] is a str; give a PIL image, or a list of them"),
        ({"given": {0: [image] * 3, 1: [image] * 2}}, "2 images for frame 1 of 3 clips; give 1 or 3"),
        (
            {"given": {0: [image] * 3}},
            "given frames for 3 clips, and 2 clips to generate; give 1 image for each frame, or 2",
        ),
        ({"frames": 4}, "frames is 4, and a clip has 4 without being continued; give more, or leave frames out"),
        (
            {"frames": 7, "size": (8, 8, 8)},
            "frames is 7, and a clip has 8 without being continued; give more, or leave frames out",
        ),
        ({"overlap": 2}, "overlap is 2, which has no effect without frames; give frames too"),
        ({"overlap": 2, "given": {0: image}}, "overlap is 2, which has no effect without frames; give frames too"),
        ({"frames": 9, "overlap": 4}, "overlap 4 of clips of 4 frames; give 1 to 3"),
        (
            {"frames": 9, "given": {-1: image}},
            "one of the last frames is given, so that a clip cannot be continued; leave frames out",
        ),
    ):
        with pytest.raises(InputError) as error:
            pipe([0, 1], seeds=[0, 1], **options)
        assert str(error.value) == message


def test_models_that_have_no_given_frames_say_why(pipe):
    with pytest.raises(
        InputError, match="given, frames and overlap are for clips, and DiT-S/2 generates images; leave them out, or g"
    ):
        tiny_pipeline()([0], given={0: picture(0)})
    pipe.config = {"recipe": {"train": {"given_first": 0.0}}}
    with pytest.raises(InputError, match=r"need; set train.given_first, train.given_start or train.given_ends to"):
        pipe([0], given={0: picture(0)})
    pipe.config = {"recipe": {"train": {"given_ends": 0.5}}}
    pipe([0], given={0: picture(0)}, steps=1)


def test_clips_do_not_start_from_an_image(pipe):
    with pytest.raises(InputError, match=r"which generates clips; give frames with given$"):
        pipe([0], image=picture(0))


def test_networks_ask_for_a_timestep_for_each_frame(pipe):
    x, t, condition = pipe.net.example(1)
    with pytest.raises(InputError, match="a condition with given frames; give one for each frame"):
        pipe.net(x, t, condition.with_given(torch.tensor([[True, False, False, False]])))
