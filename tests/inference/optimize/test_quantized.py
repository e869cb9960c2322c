import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import perturbed, relative, tiny_pipeline
from torch import nn

from ditlab.backbones import create
from ditlab.backbones.layers import LinearGELU
from ditlab.core.errors import InputError
from ditlab.inference import prepared
from ditlab.inference.optimize import precision, quantized
from ditlab.inference.optimize.compilation import pays
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.optimize.quantized import (
    Float8Linear,
    IntMMLinear,
    OneDNNLinear,
    QuantizedLinear,
    balance,
    eligible,
    missing,
)
from ditlab.inference.samples import Samples

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(missing("int8", CPU) is not None, reason="needs a CPU with AVX-512 VNNI")
KERNELS = [pytest.param(OneDNNLinear, marks=needs_int8), IntMMLinear, Float8Linear]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return perturbed(create("DiT-S/2", size=16, channels=2, classes=5, width=64, depth=3, heads=2), 0.05).eval()


def given(rows=3):
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2, 16, 16, generator=chance)
    return x, torch.linspace(3, 990, rows), torch.arange(rows) % 6


def quantized_layers(net):
    return [name for name, module in net.named_modules() if isinstance(module, QuantizedLinear)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["plain", "without bias", "tanh", "none"])
@torch.no_grad()
def test_a_quantized_layer_computes_nearly_the_same(kernel, kind):
    torch.manual_seed(0)
    linear = (
        nn.Linear(64, 96, bias=kind != "without bias") if kind not in ("tanh", "none") else LinearGELU(64, 96, kind)
    )
    x = torch.randn(2, 5, 64) * torch.tensor([0.01, 1, 30, 1, 1])[:, None]  # each token has its own scale
    x[0, 3] = 0
    layer, expected = kernel(linear), linear(x)
    assert relative(layer(x), expected) < (0.04 if kernel is Float8Linear else 0.012)
    assert torch.allclose(layer(x)[0, 3], expected[0, 3], atol=1e-6)
    assert not [*layer.parameters()]
    x[1, 4, 7] = float("nan")
    assert layer(x)[1, 4].isnan().all()
    assert layer(x)[1, :4].isfinite().all()


@torch.no_grad()
def test_gelu_has_a_quicker_form():
    x = torch.linspace(-12, 12, 1001)
    for approximate in ("tanh", "none"):
        assert relative(quantized.gelu(x, approximate), F.gelu(x, approximate=approximate)) < 1e-6
    assert quantized.gelu(torch.tensor([-1e30, 1e30]), "tanh").tolist() == pytest.approx([0, 1e30])


@needs_int8
@torch.no_grad()
def test_int8_has_a_smaller_error_than_bfloat16(net):
    expected = net(*given())
    fast = quantized.quantized(net, "int8", given())
    half = relative(copy.deepcopy(net).bfloat16()(*given()).float(), expected)
    assert 1e-4 < relative(fast(*given()), expected) < half / 3
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert quantized_layers(fast) == [f"blocks.{i}.{layer}" for i in range(3) for layer in layers]
    assert quantized_layers(net) == []
    assert (fast.precision, net.precision) == ("int8", "float32")


@needs_int8
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(net):
    fast = quantized.quantized(net, "int8", given())
    x, t, y = given()
    together = fast(x, t, y)
    for i in range(3):
        assert relative(fast(x[i : i + 1], t[i : i + 1], y[i : i + 1]), together[i : i + 1]) < 1e-3


@needs_int8
@torch.no_grad()
def test_quantized_networks_are_tabulated_and_copied(net):
    fast = quantized.quantized(net, "int8", given())
    x, t, y = given()
    assert relative(tabulated(fast, t, y)(x, t, y), fast(x, t, y)) < 1e-3
    assert torch.equal(copy.deepcopy(fast)(x, t, y), fast(x, t, y))
    assert not pays(fast, torch.float32, 1e6)


@needs_int8
@torch.no_grad()
def test_the_kernel_receives_unsigned_rows(net, monkeypatch, tmp_path):
    """With signed rows oneDNN would compute in its reference kernel, which takes minutes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel, seen = torch.ops.onednn.qlinear_pointwise, set()

    def spy(x, scale, zero, *others):
        seen.add((x.dtype, zero))
        return kernel(x, scale, zero, *others)

    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", spy)
    quantized.quantized(net, "int8", given())(*given())
    assert seen == {(torch.uint8, 128)}
    seen.clear()
    precision.int8_pays(64, "float32", CPU)
    assert seen == {(torch.uint8, 128)}


@needs_int8
@torch.no_grad()
def test_large_channels_are_balanced(net, monkeypatch):
    """A few channels of the modulated norms are 40 times as large, as in trained networks."""
    large = copy.deepcopy(net)
    for block in large.blocks:
        last = block.adaLN_modulation[1]
        for start, layer in ((64, block.attn.qkv), (4 * 64, block.mlp.fc1)):
            last.bias[start + 3] += 40
            layer.weight[:, 3] /= 40
    expected = large(*given())
    half = relative(copy.deepcopy(large).bfloat16()(*given()).float(), expected)
    errors = {}
    for limit in (quantized.OUTLIERS, float("inf")):
        monkeypatch.setattr(quantized, "OUTLIERS", limit)
        errors[limit] = relative(quantized.quantized(large, "int8", given())(*given()), expected)
    balanced, unbalanced = errors.values()
    assert unbalanced > half
    assert balanced < half / 3


def test_balanced_channels_are_equally_large():
    weight, largest = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.5]]), torch.tensor([1.0, 100.0, 1.0])
    factors = balance(weight, largest)
    assert torch.allclose(largest / factors, (weight * factors).abs().amax(0))
    assert balance(weight, torch.tensor([1.0, 5.0, 1.0])) is None


@needs_int8
def test_auto_takes_int8_if_it_is_fast_and_accurate(monkeypatch):
    pipe = tiny_pipeline()
    monkeypatch.setattr(prepared, "quick_precision", lambda width, device: "float32")
    monkeypatch.setattr(prepared, "int8_pays", lambda width, against, device: True)
    assert pipe.prepared().net.precision == "int8"
    assert repr(pipe.prepared()).startswith("PreparedPipeline(int8 of ")
    assert pipe([0], seeds=0).settings[0]["precision"] == "float32"
    assert pipe.prepared()([0], seeds=0).settings[0]["precision"] == "int8"
    monkeypatch.setattr(prepared, "LARGEST_ERROR", 0.0)
    assert pipe.prepared().net.precision == "float32"
    monkeypatch.setattr(prepared, "LARGEST_ERROR", 1.0)
    monkeypatch.setattr(prepared, "SHARE", 1.01)  # as of a network of convolutions
    assert pipe.prepared().net.precision == "float32"


@needs_int8
def test_an_evaluation_in_int8(net):
    samples = Samples(tiny_pipeline(), 6, labels="balanced", seed=0, batch_size=2, options={}, precision="int8")
    pipe, batch_size = samples.generating
    assert (pipe.net.precision, batch_size) == ("int8", 2)


@needs_int8
@pytest.mark.parametrize(("seconds", "expected"), [(1.0, True), (2.0, False)])
def test_int8_is_timed_once_for_each_machine(seconds, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    times = {"int8": seconds, "bfloat16": 2.0}
    monkeypatch.setattr(precision, "interleaved", lambda sides, rounds: calls.append([*sides]) or times)
    assert [precision.int8_pays(32, "bfloat16", CPU) for _ in range(2)] == [expected] * 2
    assert calls == [["int8", "bfloat16"]]


def test_a_device_without_the_instructions(net, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(quantized, "processor", lambda: "Old CPU")
    line = "int8 needs AVX-512 VNNI instructions, which Old CPU does not have; use auto, float32 or bfloat16"
    with pytest.raises(InputError, match=f"^{line}$"):
        tiny_pipeline().prepared("int8")
    assert not precision.int8_pays(64, "float32", CPU)
    with pytest.raises(
        InputError, match=r"^float8 needs a device of type cuda, not cpu; use auto, float32 or bfloat16$"
    ):
        tiny_pipeline().prepared("float8")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert missing("int8", CPU) == "PyTorch with oneDNN"
    assert missing("int8", torch.device("mps")) == "a device of type cpu or cuda, not mps"


@pytest.mark.parametrize(("precision", "capability", "lacking"), [("int8", (7, 5), "7.5"), ("float8", (8, 9), "8.9")])
def test_an_old_gpu(precision, capability, lacking, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert missing(precision, torch.device("cuda")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    expected = f"CUDA compute capability {lacking}, which Old GPU does not have"
    assert missing(precision, torch.device("cuda")) == expected


@needs_int8
def test_a_network_without_such_layers(monkeypatch):
    pipe = tiny_pipeline()
    monkeypatch.setattr(type(pipe.net), "packable", lambda net: [])
    with pytest.raises(InputError, match=r"^DiT-S/2 has no linear layers for int8; use auto, float32 or bfloat16$"):
        pipe.prepared("int8")


def test_layers_that_a_gpu_cannot_multiply_stay(net, monkeypatch):
    monkeypatch.setitem(quantized.KERNELS, ("float8", "cpu"), Float8Linear)
    assert len(eligible(net, "float8")) == 12
    narrow = create("DiT-S/2", size=16, channels=2, classes=5, width=40, depth=1, heads=2)
    assert [layer.out_features for layer in eligible(narrow, "float8")] == []
    monkeypatch.setattr(Float8Linear, "multiple", 8)
    assert [layer.out_features for layer in eligible(narrow, "float8")] == [120, 40, 160, 40]


@torch.no_grad()
@pytest.mark.parametrize(("precision", "kernel"), [("int8", IntMMLinear), ("float8", Float8Linear)])
def test_networks_with_the_kernels_of_a_gpu(net, precision, kernel, monkeypatch):
    """PyTorch has both products on a CPU too."""
    monkeypatch.setitem(quantized.KERNELS, (precision, "cpu"), kernel)
    monkeypatch.setattr(quantized, "missing", lambda precision, device: None)
    fast = quantized.quantized(net, precision, given())
    assert relative(fast(*given()), net(*given())) < (0.06 if precision == "float8" else 0.01)
