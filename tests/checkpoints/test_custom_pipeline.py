"""Users of diffusers open a model folder of ditlab with `DiffusionPipeline`."""

import json

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline

import ditlab
from ditlab.core.errors import InputError

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipeline().save_pretrained(tmp_path_factory.mktemp("custom") / "model")


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where diffusers copies the code to."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def opened(folder, **options):
    return diffusers.DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True, **options)


@pytest.mark.parametrize("code", ["pipeline", "folder", None])
def test_images_are_those_of_ditlab(folder, code):
    options = {} if code is None else {"custom_pipeline": str(folder) if code == "folder" else code}
    pipe, own = opened(folder, **options), ditlab.load(folder, device="cpu")
    words = {"num_inference_steps": 3, "guidance_scale": 2, "output_type": "np"}
    images = pipe(["class 1", "class 2"], generator=torch.Generator().manual_seed(4), **words).images
    expected = own([1, 2], seeds=[4, 5], steps=3, guidance=2, output_type="np").images
    assert np.array_equal(images, expected)
    assert np.array_equal(pipe(class_labels=[1], generator=None, **words, return_dict=False)[0], own(1, **words).images)
    assert pipe.to("cpu").device == torch.device("cpu")


def test_a_pipeline_saves_its_model(folder, tmp_path):
    opened(folder).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (tmp_path / "copy" / "pipeline.py").read_bytes() == (folder / "pipeline.py").read_bytes()


def test_other_weights_are_an_error(tmp_path):
    folder = tiny_pipeline().save(tmp_path / "model")
    actual = ditlab.load(folder).identity()["weights_hash"]
    index = json.loads((folder / "model_index.json").read_text()) | {"weights_hash": "0123456789abcdef"}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="for another revision than main, download it and give its folder") as caught:
        opened(folder)("class 0")
    assert f"holds weights with the hash {actual}, and 0123456789abcdef was opened" in str(caught.value)


def test_nothing_runs_without_permission(folder):
    with pytest.raises(ValueError, match="Pass `trust_remote_code=True`"):
        diffusers.DiffusionPipeline.from_pretrained(str(folder))
    with pytest.raises(InputError, match='did you mean "guidance_scale"'):
        opened(folder)(0, guidance_scal=2)


def test_the_card_shows_both_ways(folder):
    card = (folder / "README.md").read_text()
    assert "pipe = ditlab.load('model')" in card
    call = "DiffusionPipeline.from_pretrained('model', custom_pipeline=\"pipeline\", trust_remote_code=True)"
    assert call in card
