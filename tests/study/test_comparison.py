"""Two models, or two sets of images, under one protocol."""

import json
import re
import shutil
import sys
from statistics import fmean

import numpy as np
import pytest
from helpers import tiny_pipeline
from PIL import Image

from ditlab.cli import main
from ditlab.config.evaluation import Evaluation
from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.evaluation.protocols import evaluate
from ditlab.study import comparison
from ditlab.study.claims import NOT_SIGNIFICANT
from ditlab.study.comparison import compare_sides, shared_protocol
from ditlab.study.comparison_page import publish

SCORE = Evaluation(reference="digits-held-out", count=30, sampler="euler", steps=1, device="cpu", metrics=("frechet",))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models for digits."""
    home = tmp_path_factory.mktemp("models")
    for name, width in (("a", 32), ("b", 48)):
        tiny_pipeline(classes=10, width=width, depth=1).save(home / name)
    return home


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two folders of images: digits, and noise."""
    home = tmp_path_factory.mktemp("images")
    digits = open_dataset("digits").images[:60, 0].numpy()
    noise = np.random.default_rng(0).integers(256, size=digits.shape, dtype=np.uint8)
    for name, arrays in (("digits", digits), ("noise", noise)):
        (home / name).mkdir()
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(home / name / f"{i:03d}.png")
    return home


@pytest.mark.slow
def test_models_are_compared_with_the_same_seeds(models):
    found = compare_sides(str(models / "a"), str(models / "b"), SCORE, repeats=2)
    first = found.differences[0]
    assert (found.kind, first.result, list(first.a)) == (
        "model",
        "fd_digits",
        [f"samples with seed {k}" for k in (0, 1)],
    )
    alone = evaluate(str(models / "b"), SCORE, seed=1)
    assert first.b["samples with seed 1"] == alone.metrics["fd_digits"]
    gaps = [first.a[pair] - first.b[pair] for pair in first.a]
    assert first.comparison.mean == pytest.approx(fmean(gaps))
    assert first.comparison.error == pytest.approx(abs(gaps[0] - gaps[1]) / 2)
    assert first.verdict in ("A is better", "B is better", "no significant difference")
    same = compare_sides(str(models / "a"), str(models / "a"), SCORE, repeats=2).differences[0]
    assert (same.comparison.mean, same.comparison.verdict) == (0, NOT_SIGNIFICANT)
    assert (found.protocol["steps"], found.protocol["guidance"]) == (1, 1.0)


@pytest.mark.slow
def test_images_are_compared_in_parts(images, tmp_path):
    found = compare_sides(str(images / "digits"), str(images / "noise"), SCORE, repeats=3)
    (fd,) = found.differences
    assert list(fd.a) == ["part 1 of 3", "part 2 of 3", "part 3 of 3"]
    assert fd.verdict == "A is better"
    assert compare_sides(str(images / "noise"), str(images / "digits"), SCORE, repeats=3).differences[0].verdict == (
        "B is better"
    )
    publish(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h1>A is better</h1>" in text
    assert str(fd.comparison) in text
    assert text.count("src='data:image/png;base64,") == 2
    assert not re.search(r"(?:src|href)='(?!data:)", text)


def test_runs_are_paired_by_training_seed(models, tmp_path, monkeypatch):
    for side, seeds in (("a", (0, 1, 2)), ("b", (1, 2, 3))):
        for seed in seeds:
            run = tmp_path / side / f"run-{seed}"
            run.mkdir(parents=True)
            (run / "recipe.toml").write_text(f"[train]\nseed = {seed}\n")
    monkeypatch.setattr(comparison, "is_model", lambda source: "run-" in source)
    pairs, notes = comparison.paired_sources(str(tmp_path / "a"), str(tmp_path / "b"), "folder of runs", SCORE, 5)
    assert list(pairs) == ["training seed 1", "training seed 2"]
    first, second, settings = pairs["training seed 2"]
    assert (first, second) == (str(tmp_path / "a" / "run-2"), str(tmp_path / "b" / "run-2"))
    assert settings.seed == 2
    assert notes == ["only one side has runs with the training seeds 0, 3"]
    assert comparison.common_kind(str(tmp_path / "a"), str(tmp_path / "b")) == "folder of runs"
    shutil.copytree(tmp_path / "a" / "run-1", tmp_path / "a" / "run-4")
    with pytest.raises(InputError, match=r"run-1 and run-4 in .* have the training seed 1; keep one"):
        comparison.common_kind(str(tmp_path / "a"), str(tmp_path / "b"))


def test_sides_that_cannot_be_compared(models, images):
    with pytest.raises(InputError, match=r"is read as model and .* as images; compare two models"):
        compare_sides(str(models / "a"), str(images / "noise"), SCORE)
    with pytest.raises(InputError, match="repeats is 1; give 2 or more"):
        compare_sides(str(models / "a"), str(models / "b"), SCORE, repeats=1)
    with pytest.raises(InputError, match="60 images for 40 parts; give 80 or more"):
        compare_sides(str(images / "noise"), str(images / "noise"), SCORE, repeats=40)
    one = {"num_inference_steps": 20, "model": "x"}
    assert shared_protocol(one, one | {"model": "y"}) == {"steps": 20}
    with pytest.raises(InputError) as error:
        shared_protocol(one, one | {"num_inference_steps": 12})
    assert str(error.value) == "steps is 20 for A and 12 for B; set steps for both"
    with pytest.raises(InputError, match="count is 30 for A and 29 for B; the numbers of images must be equal"):
        shared_protocol({"count": 30}, {"count": 29})


@pytest.mark.slow
def test_the_command(images, tmp_path, monkeypatch, capfd):
    sides, page = [str(images / "digits"), str(images / "noise")], tmp_path / "page.html"
    options = ["--reference", "digits-held-out", "--repeats", "3", "--metrics", "frechet", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["ditlab", "compare", *sides, *options, "--publish", str(page)])
    main()
    out = capfd.readouterr().out.splitlines()
    assert out[:2] == [f"A: {sides[0]}", f"B: {sides[1]}"]
    assert re.fullmatch(r"fd_digits \d+\.\d{3} against \d+\.\d{3}: A is better", out[2])
    assert out[4].startswith("± is the standard error over parts of the images")
    assert page.exists()
    monkeypatch.setattr(sys, "argv", ["ditlab", "compare", *sides, *options, "--json"])
    main()
    result = json.loads(capfd.readouterr().out)["results"]["fd_digits"]
    assert result["verdict"] == "A is better"
    assert list(result["pairs"]) == ["part 1 of 3", "part 2 of 3", "part 3 of 3"]
