import pytest
import torch
from helpers import inputs, perturbed, relative

import ditlab
from ditlab.backbones import create
from ditlab.backbones.pde_transformer import PDETransformer
from ditlab.backbones.windows import merged, windows
from ditlab.checkpoints import convert
from ditlab.core.errors import InputError
from ditlab.diffusion.next_state import NextState
from ditlab.evaluation import measure

TINY = {"channels": 2, "classes": 3, "learn_variance": False, "width": 16, "heads": 2, "depths": [2, 2, 2], "patch": 1}


@pytest.fixture
def published(golden):
    vectors = golden("pde_transformer_walls")
    return vectors, {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [
        ("S", 33.2, 19.8),
        pytest.param("B", 130.6, 76.9, marks=pytest.mark.slow),
        pytest.param("L", 518.1, 303.1, marks=pytest.mark.slow),
    ],
)
def test_cost_agrees_with_the_published_code(name, millions, gmacs):
    cost = measure(lambda: create(f"PDE-Transformer-{name}", size=256, channels=2, learn_variance=False))
    assert cost.parameters == pytest.approx(millions * 1e6, rel=2e-3)
    assert cost.gmacs == pytest.approx(gmacs, rel=1e-3)


def test_published_numbers_through_every_layout(published, tmp_path):
    vectors, state = published
    torch.save(state, tmp_path / "theirs.pt")
    settings = {"size": (32, 32), "window": 4, "periodic": False}
    pipe = ditlab.load(tmp_path / "theirs.pt", **settings)
    assert pipe.net.config["depths"] == [1, 2, 1, 1, 2]  # in execution order
    assert pipe.net.config["outputs"] == 3
    assert type(pipe.objective) is NextState
    convert(pipe, tmp_path / "official", "official")
    convert(pipe, tmp_path / "own", "ditlab")
    back = torch.load(tmp_path / "official")
    assert back.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    x, t, y = vectors["x"], vectors["t"], vectors["y"]
    for each in (pipe, ditlab.load(tmp_path / "official", **settings), ditlab.load(tmp_path / "own")):
        with torch.no_grad():
            assert relative(each.net(x, t, y), vectors["out"]) < 1e-5
            assert relative(each.net(x, t, torch.full_like(y, 10)), vectors["out_null"]) < 1e-5
            assert relative(each.net(x, 0 * t, y), vectors["out_without_t"]) < 1e-5


def test_initial_output_is_zero_and_gates_are_one():
    net = create("PDE-Transformer", size=16, **TINY, window=4)
    assert torch.equal(net(*inputs(net)), torch.zeros(2, 2, 16, 16))
    x, c = torch.randn(1, 8, 8, 32), torch.randn(1, 1, 1, 32)
    block = net.middle[0]
    expected = x + block.attn(block.norm1(x))
    assert relative(block(x, c), expected + block.mlp(block.norm2(expected))) < 1e-6


def test_windows_and_back():
    x = torch.arange(32.0).reshape(1, 4, 8, 1)
    assert windows(x, 2)[0, 1, :, 0].tolist() == [2, 3, 10, 11]
    assert torch.equal(merged(windows(x, 2), 4, 8), x)


def test_attention_does_not_pass_walls_but_a_period():
    torch.manual_seed(0)
    x, c = torch.randn(1, 8, 8, 16), torch.zeros(1, 1, 1, 16)
    for periodic in (True, False):
        net = perturbed(create("PDE-Transformer", size=16, **TINY | {"patch": 2}, window=4, periodic=periodic)).eval()
        block = net.encoders[0][1]
        changed = x.clone()
        changed[0, 0, 0] = torch.randn(16)
        with torch.no_grad():
            differs = (block(changed, c) - block(x, c)).abs().amax(-1)[0] > 1e-6
        reached = [[0, 1, 6, 7] if periodic else [0, 1]] * 2
        assert [differs.any(1).nonzero().flatten().tolist(), differs.any(0).nonzero().flatten().tolist()] == reached


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 12}, r"size 12x12 is not divisible by 8 \(patch 1, window 4 and 2 levels\); choose another size, or"),
        ({"window": 1}, "window 1; give 2 or more"),
        ({"depths": [1, 1]}, "2 depths; give an odd number of 3 or more"),
        ({"width": 9}, "width 9 with 2 heads; give a multiple of 2"),
        ({"outputs": 3, "learn_variance": True}, "outputs 3 with learn_variance, which doubles the channels; leave"),
    ],
)
def test_sizes_that_do_not_fit_together_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        create("PDE-Transformer", **{"size": 16, "window": 4} | TINY | options)


def test_carrier_tokens_are_rejected(published):
    _, state = published
    state["latent.blocks.0.hat_norm1.weight"] = torch.zeros(64)
    with pytest.raises(InputError, match="PDE-Transformer with carrier tokens is not supported; give a model without"):
        PDETransformer.from_published(state)


def test_muon_keeps_off_the_position_biases():
    net = create("PDE-Transformer", size=16, **TINY, window=4)
    _, _, muon = net.parameter_groups()
    positions = {id(p) for block in net.repeated for p in block.attn.positions.parameters()}
    assert positions.isdisjoint({id(p) for p in muon.parameters})
