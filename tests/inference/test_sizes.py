"""Images of other sizes than the one that a model was made for."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tests.helpers import tiny_pipeline

from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, make_process
from ditlab.diffusion.samplers.grids import shifted, shifted_times
from ditlab.inference import sizes
from ditlab.inference.folder import sample_folder
from ditlab.inference.npz import write_samples
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.records import read_record
from ditlab.inference.samples import Samples

OPTIONS = {"seeds": [0, 1], "steps": 3, "sampler": "euler"}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return tiny_pipeline()


def test_height_and_width_are_the_size(pipe: Pipeline) -> None:
    named = pipe([0, 1], height=16, width=8, **OPTIONS).images
    assert all(np.array_equal(a, b) for a, b in zip(named, pipe([0, 1], size=(16, 8), **OPTIONS).images, strict=True))
    *_, step = pipe.steps(0, height=16, width=8, steps=2)
    assert step.x.shape == (1, 1, 16, 8)
    with pytest.raises(InputError, match="height without the other side; give height and width"):
        pipe(0, height=16)
    with pytest.raises(InputError, match="size and width are the same setting; give one of them"):
        pipe(0, width=16, size=(16, 16))


def test_images_have_the_size_and_equal_those_of_a_network_made_for_it(pipe: Pipeline) -> None:
    images = pipe([0, 1], size=(16, 8), **OPTIONS).images
    assert [image.size for image in images] == [(8, 16)] * 2
    other = Pipeline(create(**pipe.net.config | {"size": (16, 8)}), pipe.objective, conditioner=pipe.conditioner)
    other.net.load_state_dict({key: v for key, v in pipe.net.state_dict().items() if key != "pos_embed"}, strict=False)
    times = pipe.resolve(size=(16, 8), steps=3, sampler="euler").times
    expected = other([0, 1], **OPTIONS | {"schedule": times}).images
    assert all(np.array_equal(a, b) for a, b in zip(images, expected, strict=True))


def test_the_schedule_is_shifted_by_the_root_of_the_number_of_pixels(pipe: Pipeline) -> None:
    plain, plan = pipe.resolve(steps=4), pipe.resolve(steps=4, size=(16, 16))
    assert (plain.size_shift, plan.size_shift) == (1.0, 2.0)
    assert torch.allclose(plan.times, shifted(pipe.objective.process, 4, 2.0))
    assert torch.equal(pipe.resolve(steps=4, size=(8, 8)).times, plain.times)
    assert torch.equal(pipe.resolve(steps=4, size=(4, 16)).times, plain.times)  # as many pixels

    plan = pipe.resolve(steps=4, size=(16, 16), schedule="shifted")
    assert (plan.options.shift, plan.size_shift) == (6.0, 2.0)
    assert torch.equal(plan.times, shifted(pipe.objective.process, 4, 6.0))
    plan = pipe.resolve(steps=4, size=(16, 16), schedule="shifted", shift=3.0)
    assert (plan.options.shift, plan.size_shift) == (3.0, 1.0)
    assert pipe.resolve(steps=4, size=(16, 16), schedule="flux").size_shift == 1.0  # it depends on the tokens itself
    assert pipe.resolve(size=(16, 16), schedule=[1.0, 0.5, 0.0]).times.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_a_shift_divides_the_ratio_of_signal_and_noise(name: str) -> None:
    process = make_process(name)
    times = process.uniform(5)
    moved = shifted_times(process, times, 1.5)
    assert torch.allclose(process.log_snr(moved[1:-1]), process.log_snr(times[1:-1]) - math.log(1.5))
    assert (moved[0], moved[-1]) == (times[0], times[-1])


def test_a_chain_is_not_shifted() -> None:
    chain = tiny_pipeline(objective=Objective(DDPM(), "eps"))
    assert torch.equal(chain.resolve(steps=4, size=(16, 16)).times, chain.resolve(steps=4).times)


def test_an_image_to_start_from_gets_the_size(pipe: Pipeline) -> None:
    start = Image.new("L", (20, 30), 128)
    (image,) = pipe(0, seeds=0, image=start, strength=0.5, size=(12, 8), steps=4, sampler="euler").images
    assert image.size == (8, 12)
    prepared = pipe.original(start, size=(12, 8))
    (step,) = pipe.steps(0, original=prepared, steps=1, sampler="euler")
    assert step.x.shape[2:] == (12, 8)
    with pytest.raises(InputError, match="size 8x8, but the image to start from was prepared for another; give the sa"):
        pipe.resolve(original=prepared, size=(8, 8))


def test_generated_images_are_a_data_set_of_the_size(pipe: Pipeline) -> None:
    options = {"steps": 2, "sampler": "euler", "size": (8, 16)}
    samples = Samples(pipe, 6, labels="balanced", seed=0, batch_size=2, options=options)
    assert samples.size == (8, 16)
    assert samples.fetch(torch.tensor([0, 5])).x.shape == (2, 1, 8, 16)


def test_the_record_of_an_image_repeats_its_size(pipe: Pipeline, tmp_path: Path) -> None:
    options = {"steps": 2, "sampler": "euler", "schedule": "shifted", "size": (16, 8)}
    sample_folder(pipe, [0], [3], tmp_path / "a", Console(quiet=True), batch_size=2, trajectory=False, options=options)
    record = read_record(tmp_path / "a" / "samples.json")
    words = record.words({}, pipe.objective)
    assert words["size"] == (16, 8)
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["size"] == "8x16"
    (image,) = pipe(0, seeds=3, **words).images
    (file,) = (file for file in (tmp_path / "a").glob("*.png") if file.name != "grid.png")
    assert np.array_equal(image, Image.open(file))


def test_the_record_of_a_clip_repeats_its_frames(tmp_path: Path) -> None:
    sizes = {"depth": 1, "width": 16, "heads": 2, "patch": 4, "classes": 2, "channels": 1, "learn_variance": False}
    clips = Pipeline(create("VideoDiT", size=(4, 8, 8), **sizes), Objective())
    options = {"steps": 1, "sampler": "euler", "size": (6, 8, 16)}
    folder = tmp_path / "a"
    sample_folder(clips, [0], [3], folder, Console(quiet=True), batch_size=2, trajectory=False, options=options)
    record = read_record(folder / "samples.json")
    assert record.common["size"] == "6x16x8"  # frames, width, height
    assert record.words({}, clips.objective)["size"] == (6, 8, 16)
    (folder / "samples.json").write_text((folder / "samples.json").read_text().replace("6x16x8", "16x8"))
    assert read_record(folder / "samples.json").words({}, clips.objective)["size"] == (8, 16)  # of an earlier version
    for size, message in (
        ((0, 8, 8), "size 0x8x8; no side can be 0: give 1x8x8, the nearest one"),
        ((8, 0), "size 4x8x0; no side can be 0: give 4x8x4, the nearest one"),
        (8, "size 8; give height and width, such as (8, 8), or frames, height and width, such as (4, 8, 8)"),
    ):
        with pytest.raises(InputError) as error:
            clips(0, size=size)
        assert str(error.value) == message


def test_a_file_of_another_size_is_checked_and_repeated(pipe: Pipeline, tmp_path: Path) -> None:
    call = {"count": 3, "labels": "balanced", "seed": 0, "batch_size": 2}
    options = {"steps": 1, "sampler": "euler", "size": (16, 8)}
    write_samples(pipe, tmp_path / "a", Console(quiet=True), options=options, **call)
    assert read_record(tmp_path / "a" / "samples.json").words({}, pipe.objective)["size"] == (16, 8)
    write_samples(pipe, tmp_path / "b", Console(quiet=True), options=options | {"size": None}, **call)
    assert "size" not in json.loads((tmp_path / "b" / "samples.json").read_text())


def test_memory_is_checked_before_a_large_image(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "total_memory", lambda device: 2**30)
    monkeypatch.setattr(sizes, "free_memory", lambda device: 2**29)
    monkeypatch.setattr(type(pipe.net), "forward", lambda *args: pytest.fail("the network ran"))
    line = (
        r"2 images of 2048x2048 at a time need about \d+\.\d GiB of memory for 1,048,576 tokens each, and there are "
        r"1\.0 GiB, of which 0\.5 are free; give a smaller size or batch_size"
    )
    with pytest.raises(InputError, match=line):
        pipe([0, 1], size=(2048, 2048), **OPTIONS)


def test_a_model_for_one_size_says_why() -> None:
    pipe = tiny_pipeline(condition_grid=True)
    line = "size 16x8; this model generates images of 8x8 only, because condition_grid has a value for each position"
    with pytest.raises(InputError, match=line):
        pipe(0, size=(16, 8))
