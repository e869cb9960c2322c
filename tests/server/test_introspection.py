import pytest
import torch
from helpers import inputs, perturbed, relative

from ditlab import create
from ditlab.server.introspection import Inspector, as_grid, weights

SMALL = {"size": 16, "channels": 2, "classes": 3}
FAMILIES = {
    "DiT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "in-context": {"width": 32, "depth": 3, "heads": 2, "patch": 2, "condition": "in-context"},
    "U-ViT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "Skip-DiT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "U-DiT": {"width": 16, "heads": 2, "depths": (1, 1, 1)},
}


def made(name, **more):
    options = FAMILIES[name] | more
    return perturbed(create("DiT" if name == "in-context" else name, **SMALL, **options)).eval()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_inspection_changes_nothing_and_returns_weights_of_patches(name):
    net = made(name)
    given = inputs(net)
    watcher = Inspector(net, attention=0)
    with watcher.watching():
        seen = net(*given)
    assert torch.equal(seen, net(*given))
    found = watcher.attention
    side = 16 if name == "U-DiT" else 8
    assert found is not None
    # U-DiT attends on sub-grids, each of which has every other row and column.
    assert (found.height, found.width) == ((side // 2, side // 2) if name == "U-DiT" else (side, side))
    rows = found.weights.sum(1)
    assert (rows <= 1 + 1e-5).all()
    assert (rows > 0.9).all()
    assert not any(block._forward_hooks for block in net.repeated)


def test_weights_are_the_softmax_of_the_products():
    q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    expected = torch.stack([torch.softmax(q[0, i] @ k[0, i].T / 2, -1) for i in range(2)]).mean(0)
    assert relative(weights(q, k, None), expected) < 1e-6


@pytest.mark.slow
def test_fine_grids_are_averaged_and_keep_their_sums():
    net = made("DiT")
    net.size, net.patch = (64, 64), 1
    attention = as_grid(torch.rand(4096, 4096).softmax(-1), net)
    assert (attention.height, attention.width) == (32, 32)
    assert torch.allclose(attention.weights.sum(1), torch.ones(1024), atol=1e-4)


@torch.no_grad()
def test_changes_are_those_of_the_first_image_between_steps():
    net = made("DiT")
    x, t, y = inputs(net)
    watcher = Inspector(net)
    for time in (t, t, t + 100):
        with watcher.watching():
            net(x, time, y)
        with watcher.watching():  # a second call of the same step is not recorded
            net(x * 5, time, y)
        watcher.next_step()
    same, other = watcher.changes
    assert same == [0.0] * 3  # the depth; the output layer is no block
    assert min(other) > 0
