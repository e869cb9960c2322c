"""Averages, moments and activations in the memory of the host, and moments of 8 bits."""

import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_pipeline
from rich.console import Console
from torch.testing._internal.two_tensor import TwoTensor

from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Optim
from ditlab.core.errors import InputError
from ditlab.training import train
from ditlab.training.checks import check_recipe
from ditlab.training.ema import EMA
from ditlab.training.loop import take_step
from ditlab.training.memory import Activations, held_in_training, host_parts, memory_parts
from ditlab.training.offload import offload_activations
from ditlab.training.optim import make_optimizer, numbered_parameters
from ditlab.training.state import on_cpu

SMALL = {"model": {"name": "DiT", "width": 64, "depth": 4, "heads": 2, "patch": 2}}


def stepped(net, optimizer, count):
    for step in range(count):
        for i, parameter in enumerate(net.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (i % 3) + 0.01 * step)
        optimizer.step()
        optimizer.zero_grad()


def test_moments_on_the_host_give_the_same_bits():
    here, host = tiny_pipeline().net, tiny_pipeline().net
    one, other = (make_optimizer(net, Optim(), offloaded=net is host) for net in (here, host))
    stepped(here, one, 2)
    stepped(host, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(here.parameters(), host.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in host.parameters())
    copies = numbered_parameters(other).values()
    assert not {id(parameter) for parameter in host.parameters()} & {id(copy) for copy in copies}
    fresh = tiny_pipeline().net
    fresh.load_state_dict(here.state_dict())
    again = make_optimizer(fresh, Optim(), offloaded=True)
    again.load_state_dict(deepcopy(one.state_dict()))  # of a run without offloading
    stepped(here, one, 1)
    stepped(fresh, again, 1)
    assert all(torch.equal(a, b) for a, b in zip(here.parameters(), fresh.parameters(), strict=True))


def test_an_average_on_the_host_is_the_same():
    net = tiny_pipeline().net
    here, host = EMA(net, 0.9), EMA(net, 0.9, offloaded=True)
    with torch.no_grad():
        next(net.parameters()).add_(1)
    for average in (here, host):
        average.update(net)
    assert host.net.device.type == "cpu"
    assert all(torch.equal(a, b) for a, b in zip(here.net.parameters(), host.net.parameters(), strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_on_the_host_give_the_same_gradient(checkpointing):
    from ditlab.training.parallel import keep_inputs_only

    gradients, kept = [], [0, 0]
    for offloaded in (False, True):
        net = tiny_pipeline().net.train().requires_grad_(True)
        if checkpointing:
            keep_inputs_only(net)
        if offloaded:
            offload_activations(net)

        def count(value, offloaded=offloaded):
            kept[offloaded] += 1
            return value

        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            net(*net.example(2, torch.Generator().manual_seed(0))).square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert kept[1] < kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_rate_that_is_a_tensor_is_changed_in_place():
    """As of torchao, whose compiled step would not see another tensor."""
    rate, nothing = torch.tensor(0.0), lambda *_: None
    groups = [{"lr": rate}, {"lr": 0.0}]
    optimizer = SimpleNamespace(param_groups=groups, step=nothing, zero_grad=nothing)
    average = SimpleNamespace(update=nothing)
    take_step(SimpleNamespace(optimizer=optimizer, ema=average, profiles=average, net=None, in_a_row=3), 0.5)
    assert groups[0]["lr"] is rate
    assert (rate.item(), groups[1]["lr"]) == (0.5, 0.5)


def test_a_tensor_of_several_inner_ones_is_copied_with_all_of_them():
    value = TwoTensor(torch.zeros(3), torch.ones(3))
    copy = on_cpu(value, copied=True)
    assert isinstance(copy, TwoTensor)
    value.a.fill_(5)
    assert copy.a.tolist() == [0, 0, 0]
    assert copy.b.tolist() == [1, 1, 1]


def small():
    from ditlab.backbones import create

    return create("DiT", size=16, channels=1, classes=3, learn_variance=False, width=64, depth=4, heads=2, patch=2)


def parts_of(**settings):
    recipe = parse_recipe(SMALL | settings)
    held = held_in_training(small, recipe)
    return memory_parts(small, held, 8, recipe, 1, "cuda", True), held, recipe


def test_the_memory_of_the_device_lacks_what_is_on_the_host():
    usual, held, recipe = parts_of()
    less, _, offloading = parts_of(parallel={"offload": ("average", "moments", "activations")})
    assert usual.keys() - less.keys() == {"optimizer", "averages"}
    outside = Activations(small, 8, recipe, kind="cuda", half=True).outside
    assert less["activations"] == outside < 0.3 * usual["activations"]
    assert less["workspace"] > usual["workspace"]
    on_host = host_parts(held, offloading, 1, 1000.0)
    assert on_host == {
        "copy for the checkpoint": held.saved,
        "optimizer": held.moments + 2 * held.gradients,
        "averages": held.averages,
        "activations": 1000.0,
    }
    assert host_parts(held, recipe, 1, 0.0) == {"copy for the checkpoint": held.saved}
    assert Activations(small, 8, recipe, kind="cuda", half=True).sizes()[0] == usual["activations"]


def test_the_memory_of_moments_of_8_bits():
    _, held, _ = parts_of()
    _, low, _ = parts_of(optim={"moments": "8bit"})
    assert 0.25 < low.moments / held.moments < 0.3  # biases stay in float32
    assert low._replace(moments=held.moments) == held


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"parallel": {"offload": ("average",), "shard": "full"}},
            "parallel.offload keeps complete tensors on the host, which parallel.shard splits; omit one of them",
        ),
        (
            {"parallel": {"offload": ("moments",)}, "optim": {"name": "muon"}},
            'muon works on the GPU; use adamw, or omit "moments" from parallel.offload',
        ),
        (
            {"parallel": {"offload": ("moments",)}, "optim": {"moments": "8bit"}},
            'optim.moments "8bit" are small and stay on the GPU; omit "moments" from parallel.offload',
        ),
        (
            {"parallel": {"shard": "full"}, "optim": {"moments": "8bit"}},
            'optim.moments "8bit" cannot be divided among processes; set it to "float32", or omit parallel.shard and '
            "parallel.checkpoint",
        ),
        (
            {"optim": {"moments": "8bit", "name": "muon"}},
            'optim.moments is "8bit", but optim.name is "muon"; remove it or set optim.name',
        ),
    ],
)
def test_settings_that_exclude_each_other(settings, problem):
    with pytest.raises(InputError) as error:
        check_recipe(parse_recipe(SMALL | settings))
    assert str(error.value) == problem


def test_offloading_needs_a_gpu_and_8_bits_need_torchao(tmp_path, monkeypatch):
    recipe = SMALL | {"data": {"source": "digits"}, "train": {"device": "cpu"}}
    with pytest.raises(InputError, match="in the memory of the CPU, on which this run computes; omit it"):
        train(recipe | {"parallel": {"offload": ("average",)}}, tmp_path / "run", console=Console(quiet=True))
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(
        InputError, match=r'"8bit" needs torchao; pip install "ditlab\[lowbit\]", or set it to "float32"'
    ):
        train(recipe | {"optim": {"moments": "8bit"}}, tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
