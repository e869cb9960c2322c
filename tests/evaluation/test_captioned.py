"""Sets of images that a text model generates from prompts, for evaluation."""

import json

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from rich.console import Console
from text_net import RECIPE

import ditlab
from ditlab.cli import app, import_commands
from ditlab.config.evaluation import Evaluation
from ditlab.core.errors import InputError
from ditlab.evaluation.protocols import evaluate
from ditlab.inference.npz import write_samples
from ditlab.inference.samples import Samples

QUIET = Console(quiet=True)
OPTIONS = {"steps": 1, "sampler": "euler"}
SHADES = {"black": 0, "gray": 128, "white": 255}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with captioned gray images ("data") and a model of them ("run")."""
    place = tmp_path_factory.mktemp("captioned")
    (place / "data").mkdir()
    with (place / "data/metadata.jsonl").open("w") as file:
        for i in range(12):
            name = [*SHADES][i % 3]
            Image.new("L", (8, 8), SHADES[name]).save(place / f"data/{i}.png")
            texts = [] if i == 11 else [f"all {name}", f"a {name} square"]
            file.write(json.dumps({"file_name": f"{i}.png", "text": texts}) + "\n")
    data = {"source": str(place / "data"), **RECIPE["data"]}
    ditlab.train(RECIPE | {"data": data, "train": RECIPE["train"] | {"images": 16}}, place / "run", console=QUIET)
    return place


@pytest.fixture(scope="module")
def pipe(place):
    return ditlab.load(place / "run", device="cpu")


def samples(pipe, count=6, **options):
    return Samples(pipe, count, **{"labels": "balanced", "seed": 0, "batch_size": 4, "options": OPTIONS} | options)


def images_of(data):
    return data.fetch(torch.arange(len(data))).x


def test_the_images_have_the_prompts_of_the_training_data(pipe):
    few, all_images, other = samples(pipe), samples(pipe, 24), samples(pipe, seed=1)
    assert few.prompts == samples(pipe).prompts
    assert len(few.prompts) == 6
    assert len(all_images.prompts) == 12  # each image of the data once, then the same again
    assert all_images.captions(0) == all_images.captions(12) == (all_images.prompts[0],)
    assert sorted({text.split()[1] for text in all_images.prompts if text}) == ["black", "gray", "white"]
    assert {text.split()[0] for text in all_images.prompts if text} == {"all", "a"}  # one of several captions
    assert all_images.prompts.count(None) == 1  # of the image without a caption, as in training
    assert other.prompts != few.prompts
    expected = pipe(other.prompts, seeds=range(6, 12), output_type="native", batch_size=4, **OPTIONS).images
    assert torch.equal(images_of(other), torch.from_numpy(expected).movedim(-1, 1))


def test_prompts_of_a_file_are_used_in_turn_or_at_random(pipe, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a black square\n\nall white\n")
    turns = samples(pipe, 5, prompts=str(file))
    assert [turns.captions(i)[0] for i in range(5)] == ["a black square", "all white"] * 2 + ["a black square"]
    alone = pipe(["all white"], seeds=[3], output_type="native", **OPTIONS).images
    assert torch.equal(turns.fetch(torch.tensor([3])).x, torch.from_numpy(alone).movedim(-1, 1))
    random = samples(pipe, 400, prompts=str(file), labels="random")
    share = sum(random.captions(i) == ("all white",) for i in range(400)) / 400
    assert 0.4 < share < 0.6
    assert not random.labels.any()


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        (["all white", "all red"], 'unknown word "red" in "all red"; this model was trained on 6 words'),
        (["all white", " "], "a prompt is empty; give a text, or None for no prompt"),
        ("prompt.txt", "no file of prompts prompt.txt; give an existing file"),
        ("digits", "digits has no captions; give prompts: a text file with one in each line, or other data"),
        ("photos", 'no data "photos"; give an existing folder of images, or choose from: digits'),
    ],
)
def test_prompts_that_cannot_be_used(pipe, prompts, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:  # before any image is generated
        samples(pipe, prompts=prompts)
    assert str(caught.value).startswith(line)


def test_training_data_that_cannot_be_opened_again(pipe, tmp_path):
    config = pipe.config
    try:
        for recipe, which in (({}, "are not known"), ({"data": {"source": "python:InMemory"}}, "were given in Python")):
            pipe.config = {**config, "recipe": recipe}
            with pytest.raises(InputError) as caught:
                samples(pipe)
            assert str(caught.value) == (
                f"this model reads prompts, and its training data {which}; give prompts: a text file with one in each "
                "line (.txt), or data with captions"
            )
    finally:
        pipe.config = config


def test_an_evaluation_compares_with_captioned_images(place, tmp_path):
    settings = Evaluation(
        reference=str(place / "data"), features="digits", count=12, metrics=("frechet",), device="cpu", batch_size=4,
        steps=1, sampler="euler",
    )  # fmt: skip
    first = evaluate(str(place / "run"), settings, QUIET)
    expected = samples(ditlab.load(place / "run", device="cpu"), 12)
    lines = (first.folder / "prompts.txt").read_text().split("\n")
    assert lines == [prompt or "" for prompt in expected.prompts] + [""]
    assert evaluate(str(place / "run"), settings, QUIET).folder == first.folder

    (tmp_path / "prompts.txt").write_text("all white\n")
    white = evaluate(str(place / "run"), settings, QUIET, prompts_from=str(tmp_path / "prompts.txt"))
    assert white.protocol["prompts"] != first.protocol["prompts"]
    assert white.metrics["fd_digits"] != first.metrics["fd_digits"]
    with pytest.raises(InputError, match="prompts for a model that reads no text; leave them out"):
        evaluate(tiny_pipeline(), settings, QUIET, prompts_from="digits")


def test_an_npz_file_resumes_and_records_its_prompts(place, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ditlab.data.npz.BLOCK", 4)
    given = {"count": 10, "labels": "balanced", "seed": 0, "batch_size": 4, "options": OPTIONS}
    prompts = ["all white", "a gray square"]
    assert write_samples(pipe, tmp_path / "parts", QUIET, **given, prompts=prompts, rank=1, world=2) is None
    with pytest.raises(InputError, match="was started with another model or other settings"):
        write_samples(pipe, tmp_path / "parts", QUIET, **given, prompts=prompts[::-1])
    file = write_samples(pipe, tmp_path / "parts", QUIET, **given, prompts=prompts)
    with np.load(file) as arrays:
        images = torch.from_numpy(arrays["arr_0"]).movedim(-1, 1)
        assert "arr_1" not in arrays
    assert torch.equal(images, images_of(samples(pipe, 10, prompts=prompts)))
    record = json.loads((tmp_path / "parts/samples.json").read_text())
    assert (record["prompts"], record["count"], record["seed"]) == (prompts, 10, 0)

    monkeypatch.chdir(tmp_path)
    run("sample", "--like", file.with_name("samples.json"), "--out", "again", "--device", "cpu", "--compile", "never",
        model=place / "run")  # fmt: skip
    assert file.read_bytes() == (tmp_path / "again/samples.npz").read_bytes()


def run(command, *arguments, model):
    """A command of the command line in this process."""
    import_commands("")
    app([command, str(model), *map(str, arguments)], exit_on_error=False, result_action="return_value")
