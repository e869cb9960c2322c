import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.data import SampleFile, open_dataset
from ditlab.data import npz as module
from ditlab.data.npz import map_array
from ditlab.data.rows import RowFile
from ditlab.inference.npz import write_samples
from ditlab.inference.samples import Samples

QUIET = Console(quiet=True)
OPTIONS = {"num_inference_steps": 2}


def drawn(pipe, folder, **changes):
    given = {"count": 12, "labels": "balanced", "seed": 0, "batch_size": 5, "options": OPTIONS} | changes
    return write_samples(pipe, folder, QUIET, **given)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)


def test_the_file_holds_the_images_of_the_pipeline(tmp_path, small_blocks):
    pipe = tiny_pipeline(channels=3)
    file = drawn(pipe, tmp_path / "a")
    assert sorted(path.name for path in file.parent.iterdir()) == ["samples.json", "samples.npz"]
    assert json.loads((file.parent / "samples.json").read_text())["label_sampling"] == "balanced"
    with np.load(file) as arrays:  # as other tools read it
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert (images.shape, images.dtype) == ((12, 8, 8, 3), np.uint8)
    assert labels.tolist() == [0, 1, 2] * 4
    one = pipe([1], seeds=[7], output_type="np", **OPTIONS).images[0]
    np.testing.assert_allclose(images[7] / 255, one, atol=1e-6)
    read = open_dataset(str(file))
    assert isinstance(read, SampleFile)
    assert isinstance(read.pixels, RowFile)
    batch = read.fetch(torch.tensor([7, 0]))
    assert np.array_equal(batch.x.permute(0, 2, 3, 1).numpy(), images[[7, 0]])
    assert batch.labels.tolist() == [1, 0]


def test_any_number_of_processes_generate_the_same(tmp_path, small_blocks):
    pipe = tiny_pipeline()
    alone = np.load(drawn(pipe, tmp_path / "alone"))["arr_0"]
    assert drawn(pipe, tmp_path / "shared", rank=2, world=3) is None
    assert drawn(pipe, tmp_path / "shared", rank=0, world=3) is None
    together = drawn(pipe, tmp_path / "shared", rank=1, world=3)
    assert np.array_equal(np.load(together)["arr_0"], alone)


def test_a_stopped_run_goes_on(tmp_path, small_blocks, monkeypatch):
    pipe = tiny_pipeline()
    whole = np.load(drawn(pipe, tmp_path / "whole"))["arr_0"]
    fetch, calls = Samples.fetch, []

    def stops(self, indices):
        calls.append(indices.tolist())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fetch(self, indices)

    monkeypatch.setattr(Samples, "fetch", stops)
    with pytest.raises(KeyboardInterrupt):
        drawn(pipe, tmp_path / "a")
    with pytest.raises(InputError, match="started with another model or other settings"):
        drawn(pipe, tmp_path / "a", seed=3)
    file = drawn(pipe, tmp_path / "a")
    assert calls[2:] == [[5, 6, 7, 8, 9], [10, 11]]  # the first block is not drawn again
    assert np.array_equal(np.load(file)["arr_0"], whole)
    with pytest.raises(InputError, match="exists; give another"):
        drawn(pipe, tmp_path / "a")
    assert drawn(pipe, tmp_path / "a", overwrite=True, seed=3) == file
    assert not np.array_equal(np.load(file)["arr_0"], whole)


def test_marks_of_images_that_are_gone_do_not_count(tmp_path, small_blocks, monkeypatch):
    pipe = tiny_pipeline()
    whole = np.load(drawn(pipe, tmp_path / "whole"))["arr_0"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "samples.done").write_bytes(b"\1\1\1")
    assert np.array_equal(np.load(drawn(pipe, tmp_path / "a"))["arr_0"], whole)


def test_another_model_does_not_go_on_with_a_draft(tmp_path, small_blocks):
    drawn(tiny_pipeline(), tmp_path / "a", rank=0, world=2)
    other = tiny_pipeline()
    with torch.no_grad():
        other.net.final_layer.linear.bias.add_(0.1)
    with pytest.raises(InputError, match="started with another model or other settings"):
        drawn(other, tmp_path / "a")
    file = drawn(tiny_pipeline(), tmp_path / "a", rank=1, world=2)
    assert drawn(tiny_pipeline(), tmp_path / "a", rank=2, world=3) == file  # started late


def test_labels(tmp_path):
    pipe = tiny_pipeline()
    given = {"seed": 0, "batch_size": 5, "options": OPTIONS}
    with pytest.raises(InputError, match=r"10 .* cannot be shared equally among 3 classes; give a count of 9 or 12"):
        Samples(pipe, 10, labels="balanced", **given)
    random = Samples(pipe, 3000, labels="random", **given).labels
    assert random.bincount().tolist() != [1000] * 3
    assert (random.bincount() - 1000).abs().max() < 120  # about five standard deviations
    assert torch.equal(random, Samples(pipe, 3000, labels="random", **given).labels)
    free = tiny_pipeline(classes=0)
    assert "arr_1" not in np.load(drawn(free, tmp_path / "a", count=3))


def test_other_seeds_give_other_images():
    pipe = tiny_pipeline()
    sets = [
        Samples(pipe, 6, labels="balanced", seed=seed, batch_size=4, options=OPTIONS).fetch(torch.arange(6)).x
        for seed in (0, 1)
    ]
    assert len(torch.unique(torch.cat(sets).flatten(1), dim=0)) == 12


def test_images_that_are_not_finite_are_named():
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.net.final_layer.linear.bias.fill_(torch.nan)
    samples = Samples(pipe, 6, labels="balanced", seed=2, batch_size=4, options=OPTIONS)
    with pytest.raises(InputError, match=r"the image of seed 15 is not finite"):
        samples.fetch(torch.arange(3, 6))


@pytest.mark.parametrize("compressed", [False, True])
def test_files_of_others(tmp_path, compressed):
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", images, mu=np.arange(3.0))
    read = SampleFile(tmp_path / "a.npz")
    assert (len(read), read.size, read.channels, read.classes) == (4, (6, 5), 3, [])
    assert np.array_equal(read.fetch(torch.arange(4)).x.permute(0, 2, 3, 1).numpy(), images)
    assert map_array(tmp_path / "a.npz", "mu").tolist() == [0, 1, 2]


def test_unusable_files(tmp_path):
    file = tmp_path / "a.npz"
    with pytest.raises(InputError, match="no file"):
        SampleFile(file)
    file.write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"truncated or not an \.npz"):
        SampleFile(file)
    np.savez(file, mu=np.zeros(3))
    with pytest.raises(InputError, match="has no arr_0"):
        SampleFile(file)
    np.savez(file, np.zeros((3, 4, 4, 3), complex))
    with pytest.raises(InputError, match="complex128"):
        SampleFile(file)


def test_a_draft_of_another_count_is_named(tmp_path):
    (tmp_path / "samples.draft").write_bytes(b"123")
    with pytest.raises(InputError, match=r"belongs to another run \(3 bytes, not 768\)"):
        drawn(tiny_pipeline(), tmp_path)


@pytest.mark.slow
def test_launched_processes_write_one_file(tmp_path):
    tiny_pipeline().save(tmp_path / "model")
    command = [sys.executable, "-m", "ditlab", "sample", str(tmp_path / "model"), "--npz", "--count", "600"]
    command += ["--steps", "2", "--device", "cpu"]
    subprocess.run([*command, "--out", str(tmp_path / "alone")], check=True, capture_output=True)
    for rank in (1, 0):
        place = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"}
        subprocess.run([*command, "--out", str(tmp_path / "two")], check=True, capture_output=True, env=place)
    alone, two = (np.load(tmp_path / name / "samples.npz") for name in ("alone", "two"))
    assert np.array_equal(alone["arr_0"], two["arr_0"])
    assert np.array_equal(alone["arr_1"], two["arr_1"])
