"""Guidance on two devices. A second copy of the weights on the CPU stands for the second device."""

import pytest
import torch
from helpers import tiny_pipeline

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.types import Between
from ditlab.diffusion.flow_map import Guided

OPTIONS = {"steps": 3, "sampler": "euler", "guidance": 2.0, "guidance_interval": (0.0, 0.8), "output_type": "latent"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_pipeline().save(place)
    return place


def rows(net):
    """A list that receives the number of rows of each call."""
    seen = []
    net.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    return seen


def test_a_guide_does_not_leave_the_second_device_unused(folder):
    pipe = ditlab.load(folder, device="cpu", guidance_device="cpu")
    with pytest.raises(InputError) as error:
        pipe(0, guide=ditlab.load(folder, device="cpu"), **OPTIONS)
    assert str(error.value) == (
        "guide replaces the null condition, which the model evaluates on guidance_device; load it without "
        "guidance_device, or leave the guide out"
    )


@pytest.mark.parametrize("ready", [lambda pipe: pipe, lambda pipe: pipe.prepared("float32")])
def test_the_second_device_evaluates_the_null_condition(folder, ready):
    one, two = ditlab.load(folder, device="cpu"), ditlab.load(folder, device="cpu", guidance_device="cpu")
    assert two.second.net is not two.net
    labels = [0, Between(0, 2, 0.3), None, 1]
    expected, made = (ready(pipe)(labels, seeds=[5, 6, 7, 8], **OPTIONS).images for pipe in (one, two))
    assert torch.equal(made, expected)


def test_both_copies_compute_one_half(folder, monkeypatch):
    pipe = ditlab.load(folder, device="cpu", guidance_device="cpu").prepared("float32")
    first, second = rows(pipe.net), rows(pipe.second.net)
    for module in ("base", "extras"):
        monkeypatch.setattr(f"ditlab.inference.{module}.inference_net", lambda model, plan, condition: model.net)
    pipe([0, 1], **OPTIONS)
    assert (first, second) == ([2, 2, 2], [2, 2])  # at t = 1, guidance does not act


def test_models_and_settings_without_a_second_half(folder, tmp_path):
    with pytest.raises(InputError) as error:
        ditlab.load(folder, device="cpu", guidance_device="cpu")(0, reuse=2, **OPTIONS)
    line = "reuse is 2, which does not work with guidance on two devices; leave out reuse, or guidance_device"
    assert str(error.value) == line
    with pytest.raises(
        InputError, match=r"reuse_error is 0\.1, which does not work with guidance on two devices; leave"
    ):
        ditlab.load(folder, device="cpu", guidance_device="cpu")(0, reuse_error=0.1, **OPTIONS)
    for name, pipe, reason in (
        ("free", tiny_pipeline(classes=0), "is unconditional"),
        ("guided", tiny_pipeline(objective=Guided(guidance=(2.0, 2.0))), "has its guidance built in"),
    ):
        pipe.save(tmp_path / name)
        with pytest.raises(InputError) as error:
            ditlab.load(tmp_path / name, guidance_device="cpu")
        assert str(error.value) == f"guidance_device is cpu, but this model {reason}; leave it out"
