"""The depth-wise convolution whose weights get their gradient a few columns at a time."""

import pytest
import torch
import torch.nn.functional as F

from ditlab.backbones.depthwise import depthwise_conv


def gradients(function, x, weight, bias):
    leaves = [each.clone().requires_grad_() for each in (x, weight, bias)]
    y = function(*leaves)
    pull = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).sin()
    return y, *torch.autograd.grad(y, leaves, pull)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("grid", [(8, 8), (5, 12), (3, 1)])
def test_values_and_gradients_are_those_of_the_plain_convolution(kernel, grid):
    torch.manual_seed(kernel)
    x = torch.randn(2, 6, *grid, dtype=torch.float64)
    weight, bias = torch.randn(6, 1, kernel, kernel, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    plain = gradients(lambda *leaves: F.conv2d(*leaves, padding=kernel // 2, groups=6), x, weight, bias)
    ours = gradients(depthwise_conv, x, weight, bias)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_autocast_computes_in_its_precision():
    x, weight, bias = torch.randn(2, 4, 6, 6), torch.randn(4, 1, 5, 5), torch.randn(4)
    exact = gradients(depthwise_conv, x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        y, *rounded = gradients(depthwise_conv, x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in rounded)
    for mine, theirs in zip((y, *rounded), exact, strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=0.05, atol=0.15)


def test_without_bias_and_without_a_gradient_for_the_images():
    weight = torch.randn(3, 1, 5, 5).requires_grad_()
    x = torch.randn(1, 3, 7, 7)
    depthwise_conv(x, weight, None).square().sum().backward()
    mine, weight.grad = weight.grad, None
    F.conv2d(x, weight, padding=2, groups=3).square().sum().backward()
    torch.testing.assert_close(mine, weight.grad, rtol=1e-4, atol=1e-3)
