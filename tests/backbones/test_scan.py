import sys
import types

import pytest
import torch
from helpers import relative

from ditlab.backbones import scan
from ditlab.backbones.scan import selective_scan
from ditlab.core.errors import InputError


def inputs(length=37, dtype=torch.float32, scale=1.0, batch=2, width=5, state=4):
    """Inputs of a scan, with step sizes up to 0.1 times the scale and decays down to -16."""
    torch.manual_seed(0)
    values = [
        torch.randn(batch, length, width, dtype=dtype),
        0.1 * scale * torch.rand(batch, length, width, dtype=dtype),
        -16 * torch.rand(width, state, dtype=dtype),
        torch.randn(batch, length, state, dtype=dtype),
        torch.randn(batch, length, state, dtype=dtype),
    ]
    return [value.requires_grad_() for value in values]


def reference(u, delta, a, b, c):
    """The recurrence as it is written."""
    h, outputs = u.new_zeros(len(u), *a.shape), []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * a) * h + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((h * c[:, t, None]).sum(-1))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("kind", ["loop", "chunked"])
@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_all_forms_agree_with_the_recurrence(kind, scale, length):
    given = inputs(length, scale=scale)
    exact = reference(*(value.double() for value in given))
    assert relative(selective_scan(*given, kind), exact) < 1e-6


@pytest.mark.parametrize("kind", ["loop", "chunked"])
def test_gradients_are_exact(kind):
    given = inputs(19, torch.float64, batch=1, width=2, state=3)
    assert torch.autograd.gradcheck(lambda *values: selective_scan(*values, kind), given)


def test_only_a_few_states_are_kept_for_the_backward_pass():
    given = inputs(64)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: saved.append(value.shape) or value, lambda value: value
    ):
        selective_scan(*given, "loop").sum().backward()
    states = [shape for shape in saved if len(shape) == 4]
    assert states == [(4, 2, 5, 4)]


def test_half_precision_is_computed_in_float32():
    given = [value.detach() for value in inputs()]
    low = [value.bfloat16() for value in given]
    out = selective_scan(*low)
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, selective_scan(*(value.float() for value in low)).bfloat16())


def test_shapes_are_known_without_computing():
    given = [value.detach().to("meta") for value in inputs()]
    assert selective_scan(*given).shape == (2, 37, 5)


def test_the_fused_kernel_needs_cuda():
    with pytest.raises(InputError, match=r"^scan mamba-ssm needs CUDA, and the network is on cpu; use scan auto$"):
        selective_scan(*inputs(), "mamba-ssm")


class OnCuda(torch.Tensor):
    """A tensor that says it is on CUDA."""

    is_cuda = True


def test_the_fused_kernel_needs_its_library(monkeypatch):
    monkeypatch.setattr(scan, "mamba", lambda: None)
    given = [value.detach().as_subclass(OnCuda) for value in inputs()]
    with pytest.raises(InputError, match=r"^scan mamba-ssm needs its library; pip install 'ditlab\[mamba\]', or use"):
        selective_scan(*given, "mamba-ssm")


def test_the_fused_kernel_receives_channels_before_positions(monkeypatch):
    library = types.ModuleType("selective_scan_interface")

    def selective_scan_fn(u, delta, a, b, c):
        return reference(*(value.transpose(1, 2) for value in (u, delta)), a, b.mT, c.mT).transpose(1, 2)

    library.selective_scan_fn = selective_scan_fn
    monkeypatch.setitem(sys.modules, "mamba_ssm", types.ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", types.ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", library)
    given = [value.detach() for value in inputs()]
    out = selective_scan(*(value.as_subclass(OnCuda) for value in given)).as_subclass(torch.Tensor)
    assert relative(out, selective_scan(*given)) < 1e-6


def test_autocast_does_not_round_the_scan():
    u, delta, b, c = (torch.rand(2, 20, width, requires_grad=True) for width in (3, 3, 4, 4))
    a = -torch.rand(3, 4)
    plain = selective_scan(u, delta, a, b, c)
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(u, delta, a, b, c)
    assert torch.equal(y, plain)
    y.sum().backward()  # which once failed on the types of the products
    assert all(value.grad.dtype is torch.float32 for value in (u, delta, b, c))
