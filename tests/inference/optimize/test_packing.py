import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import relative
from torch import nn

from ditlab.backbones import create
from ditlab.backbones.layers import LinearGELU, attend
from ditlab.inference.optimize import packing
from ditlab.inference.optimize.compilation import compile_blocks, is_compiled
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.optimize.packing import PackedLinear, has_kernels, packed

FAMILIES = {
    "DiT-S/4": {"width": 32, "depth": 2, "heads": 2},
    "DiT-S/2": {"width": 32, "depth": 2, "heads": 2, "condition": "in-context"},
    "DiT-B/4": {"width": 32, "depth": 2, "heads": 2, "swiglu": True, "rms_norm": True, "rope": True},
    "Skip-DiT-S/4": {"width": 32, "depth": 3, "heads": 2},
    "U-DiT-S": {"width": 16, "heads": 2, "depths": [1, 1, 1, 1, 1]},
    "U-ViT-S/2": {"width": 32, "depth": 3, "heads": 2},
}
needs_kernels = pytest.mark.skipif(not has_kernels(torch.float32), reason="needs a CPU with AVX-512")


def network(name):
    torch.manual_seed(0)
    net = create(name, size=16, channels=2, classes=5, **FAMILIES[name]).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.fused()


def given():
    chance = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 16, 16, generator=chance), torch.tensor([3.0, 500.0, 999.0]), torch.tensor([0, 5, 3])


def packed_layers(net):
    return sum(isinstance(module, PackedLinear) for module in net.modules())


@needs_kernels
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_packed_layers_compute_the_same(name):
    net = network(name)
    expected = net(*given())
    quick = packed(net)
    assert packed_layers(quick) == sum(isinstance(module, LinearGELU) for module in net.modules())
    assert relative(quick(*given()), expected) < 2e-6
    half = copy.deepcopy(net).bfloat16()
    quick = packed(half)
    assert packed_layers(quick) >= 2 * len(getattr(net, "blocks", [None]))
    assert relative(quick(*given()).float(), expected) < max(0.02, 1.2 * relative(half(*given()).float(), expected))
    assert packed_layers(half) == packed_layers(net) == 0


@needs_kernels
@torch.no_grad()
def test_packed_networks_are_tabulated_and_copied():
    net = packed(network("DiT-S/4").bfloat16())
    x, t, y = given()
    expected = net(x, t, y)
    table = tabulated(net, t, y)
    assert table is not net
    assert relative(table(x, t, y), expected) < 0.01
    assert torch.equal(copy.deepcopy(net)(x, t, y), expected)


def test_without_kernels_the_network_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(packing, "has_kernels", lambda dtype: False)
    net = network("DiT-S/4")
    assert packed(net) is net


@needs_kernels
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@torch.no_grad()
def test_what_lies_between_packed_layers_is_compiled():
    net = packed(network("DiT-S/4").bfloat16())
    expected = net(*given())
    assert compile_blocks(net, lambda: net(*given()), dynamic=False) is not None
    assert is_compiled(net)
    assert relative(net(*given()).float(), expected.float()) < 0.02


@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention_that_is_trained_in_bfloat16_has_the_gradients_of_the_fused_kernel(scale, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8).bfloat16().requires_grad_() for _ in range(3))
    exact = [value.detach().double().requires_grad_() for value in (q, k, v)]
    out = F.scaled_dot_product_attention(*exact, scale=scale)
    expected = torch.autograd.grad(out.square().sum(), exact)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # which is not called
    found = attend(q, k, v, scale)
    assert relative(found.double(), out) < 0.01
    for mine, theirs in zip(torch.autograd.grad(found.square().sum(), (q, k, v)), expected, strict=True):
        assert relative(mine.double(), theirs) < 0.015


def test_attention_elsewhere_is_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 3, 7, 8)
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    long = torch.randn(1, 1, 1025, 8).bfloat16().requires_grad_()
    assert torch.equal(attend(long, long, long), F.scaled_dot_product_attention(long, long, long))


def test_gelu_has_a_form_for_compilers(monkeypatch):
    layer, x = LinearGELU(16, 64, "tanh"), 4 * torch.randn(50, 16)
    expected = nn.functional.gelu(F.linear(x, layer.weight, layer.bias), approximate="tanh")
    assert torch.equal(layer(x), expected)
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    assert not torch.equal(layer(x), expected)
    assert relative(layer(x), expected) < 1e-6
