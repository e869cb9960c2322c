"""Low-rank updates in the layout of peft: written from a run, read by peft, and added at any scale."""

import json

import pytest
import torch
from helpers import tiny_pipeline

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.weights import read_tensors, write_tensors
from ditlab.inference.adapters import SETTINGS, UPDATES

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A source, a run that trained its updates apart, and the adapter of that run."""
    place = tmp_path_factory.mktemp("adapters")
    source = tiny_pipeline(classes=10).save(place / "source")
    train = {"init_from": str(source), "lora": 2, "lora_apart": True, "images": 64, "batch": 16, "log_every": 64}
    ditlab.train({"data": {"source": "digits"}, "optim": {"lr": 0.01}, "train": train}, out=place / "run")
    ditlab.checkpoints.convert(ditlab.load(place / "run"), place / "adapter", "peft")
    return place


def weights(pipe):
    return pipe.net.state_dict()


def close(one, other):
    return all(torch.allclose(value, other[name], atol=1e-6) for name, value in one.items())


def test_an_adapter_gives_the_trained_model(trained):
    source, run = ditlab.load(trained / "source"), ditlab.load(trained / "run")
    before = {name: value.clone() for name, value in weights(source).items()}
    assert close(weights(source.with_adapter(trained / "adapter")), weights(run))
    assert close(weights(source), before)
    assert close(weights(source.with_adapter(trained / "adapter", scale=0)), before)
    half = weights(source.with_adapter(trained / "adapter", scale=0.5))
    assert close(half, {name: (value + weights(run)[name]) / 2 for name, value in before.items()})
    assert not close(half, before)
    twice = source.with_adapter(trained / "adapter", 0.5).with_adapter(trained / "adapter", 0.5)
    changed = next(name for name in before if "qkv.weight" in name)
    assert torch.allclose(weights(twice)[changed], weights(run)[changed], atol=1e-6)


def test_peft_reads_it(trained):
    source, run = ditlab.load(trained / "source"), ditlab.load(trained / "run")
    example = run.net.example(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = run.net(*example)
        model = peft.PeftModel.from_pretrained(source.net, str(trained / "adapter"))
        assert torch.allclose(model(*example), expected, atol=1e-5)


def test_an_adapter_of_peft_may_update_the_convolution_of_the_patches(trained, tmp_path):
    source = ditlab.load(trained / "source")
    example = source.net.example(2, torch.Generator().manual_seed(0))
    settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["qkv", "x_embedder.proj"])
    model = peft.get_peft_model(ditlab.load(trained / "source").net, settings)
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(*example)
        assert torch.allclose(source.with_adapter(tmp_path).net(*example), expected, atol=1e-5)
        assert not torch.allclose(source.net(*example), expected, atol=1e-3)


def test_a_second_device_has_the_adapter_too(trained):
    pipe = ditlab.load(trained / "source", guidance_device="cpu").with_adapter(trained / "adapter")
    assert close(weights(pipe.second), weights(ditlab.load(trained / "run")))


def test_half_of_a_pair_is_an_error(trained, tmp_path):
    tensors = read_tensors(trained / "adapter" / UPDATES)
    first = next(key for key in tensors if ".lora_A." in key)
    (tmp_path / SETTINGS).write_text((trained / "adapter" / SETTINGS).read_text())
    for odd in ({first: None}, {first.replace("lora_A", "lora_B"): None}, {first: tensors[first][:1]}):
        changed = {key: value for key, value in (tensors | odd).items() if value is not None}
        write_tensors({key: value.contiguous() for key, value in changed.items()}, tmp_path / UPDATES)
        with pytest.raises(InputError, match=r"has no pair of matrices for blocks|lora_B.weight .* has no such"):
            ditlab.load(trained / "source").with_adapter(tmp_path)


def test_what_is_no_adapter_of_the_model_is_an_error(trained, tmp_path):
    source = ditlab.load(trained / "source")
    with pytest.raises(InputError, match=f"no adapter at {tmp_path}; give a folder with adapter_config.json"):
        source.with_adapter(tmp_path)
    with pytest.raises(InputError, match="scale nan of an adapter; give a finite number"):
        source.with_adapter(trained / "adapter", float("nan"))
    with pytest.raises(InputError, match="give the model from which the adapter was trained"):
        tiny_pipeline(classes=3).with_adapter(trained / "adapter")
    (tmp_path / "adapter_model.safetensors").write_bytes((trained / "adapter/adapter_model.safetensors").read_bytes())
    settings = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(InputError, match="is an adapter of the kind LORA with use_dora; only plain LORA is supported"):
        source.with_adapter(tmp_path)
    with pytest.raises(InputError, match="source has no low-rank updates of its own; give a run that was trained with"):
        ditlab.checkpoints.convert(source, tmp_path / "again", "peft")
