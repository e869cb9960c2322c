"""Attention in pseudo-shifted windows, against attention with a mask."""

import pytest
import torch
import torch.nn.functional as F
from helpers import inputs, perturbed, relative

from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.evaluation import measure

TINY = {"channels": 2, "classes": 3, "learn_variance": False, "width": 16, "depth": 2, "heads": 2, "patch": 1}


def masked(layer, x):
    """The same attention over all tokens (B, N, D), with a mask of the windows, and the convolution as a sum."""
    (h, w), side = layer.grid, layer.window
    rows, columns = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    window = rows // side * (w // side) + columns // side
    q, k, v = layer.qkv(x).unflatten(2, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    if layer.rotation is not None:
        cos, sin = layer.rotation  # pairs of channels are rotated
        q, k = (a * cos + torch.stack([-a[..., 1::2], a[..., ::2]], -1).flatten(-2) * sin for a in (q, k))
    mask = window[:, None] == window
    mixed = (
        F.scaled_dot_product_attention(layer.q_norm(q), layer.k_norm(k), v, attn_mask=mask).transpose(1, 2).flatten(2)
    )
    values = v.transpose(1, 2).flatten(2)
    for i in range(h * w):
        for j in range(h * w):
            up, right = int(rows[j] - rows[i]), int(columns[j] - columns[i])
            if max(abs(up), abs(right)) <= 1:
                mixed[:, i] += values[:, j] * layer.bridge.weight[:, 0, up + 1, right + 1]
    return layer.proj(mixed + layer.bridge.bias)


@pytest.mark.parametrize(("size", "window"), [((4, 8), 2), ((6, 6), 3)])
def test_it_equals_attention_with_a_mask(size, window):
    net = perturbed(create("DiT", size=size, window=window, qk_norm=True, **TINY))
    layer, x = net.blocks[0].attn, torch.randn(2, size[0] * size[1], 16)
    with torch.no_grad():
        assert relative(layer(x), masked(layer, x)) < 1e-6
        same = inputs(net)
        assert relative(net(*same), create_equal(net)(*same)) > 1e-3  # the windows make a difference


def create_equal(net):
    """The same network with attention to all tokens."""
    other = create(**net.config | {"window": 0, "size": net.size})
    other.load_state_dict({key: value for key, value in net.state_dict().items() if ".bridge." not in key})
    return other


def test_one_window_of_the_whole_grid_is_plain_attention():
    net = create("DiT", size=4, window=4, rope=True, **TINY)
    torch.nn.init.normal_(net.final_layer.linear.weight)
    for block in net.blocks:
        torch.nn.init.normal_(block.adaLN_modulation[1].weight)
    with torch.no_grad():
        same = inputs(net)
        assert relative(net(*same), create_equal(net)(*same)) < 1e-6


def test_products_of_attention_are_those_of_the_windows():
    macs = {w: measure(lambda w=w: create("DiT", size=8, window=w, **TINY)).gmacs * 1e9 for w in (0, 4)}
    tokens, width, depth = 64, 16, 2
    bridge = depth * tokens * width * 9
    assert macs[0] - macs[4] == pytest.approx(depth * 2 * tokens * (tokens - 16) * width - bridge)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 3}, "window 3 does not divide the grid of 4x4 patches; choose another window, patch or size"),
        ({"window": 1}, "window 1; give 2 or more, or 0 for attention to all tokens"),
        ({"window": 2, "condition": "in-context"}, "window 2 with condition in-context, whose tokens have no place"),
    ],
)
def test_windows_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        create("DiT", size=4, **TINY, **options)


def test_it_takes_one_size():
    net = create("DiT", size=4, window=2, **TINY)
    with pytest.raises(InputError, match="its windows are those of one grid"):
        net.check_size((8, 8))
    assert net.routable == []
