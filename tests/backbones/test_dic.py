import pytest
import torch
from helpers import inputs, perturbed, relative

from ditlab.backbones import create
from ditlab.backbones.dic import DiC
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.evaluation import measure

TINY = {"size": 8, "channels": 3, "classes": 3, "width": 16}


@pytest.fixture
def published(golden):
    vectors = golden("dic")
    return vectors, {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [
        ("S", 32.8, 5.87),
        ("B", 129.5, 23.44),
        pytest.param("XL", 702.3, 116.1, marks=pytest.mark.slow),
        pytest.param("H", 1034.5, 204.3, marks=pytest.mark.slow),
    ],
)
def test_cost_agrees_with_the_paper(name, millions, gmacs):
    cost = measure(lambda: create(f"DiC-{name}"))
    assert cost.parameters == pytest.approx(millions * 1e6, rel=2e-3)
    assert cost.gmacs == pytest.approx(gmacs, rel=1e-3)


def test_published_weights_give_published_numbers(published):
    vectors, state = published
    settings = DiC.read_sizes(state)
    assert settings == {
        "channels": 4,
        "classes": 10,
        "learn_variance": True,
        "width": 8,
        "depths": [4, 5, 2, 5, 4],
    }
    net = create("DiC", size=16, **settings)
    net.load_state_dict(DiC.from_published(state))
    x, t, y = vectors["x"], vectors["t"], vectors["y"]
    with torch.no_grad():
        assert relative(net(x, t, y), vectors["out"]) < 1e-5
        assert relative(net(x, t, torch.full_like(y, net.classes)), vectors["out_null"]) < 1e-5


def test_initial_output_is_zero_and_gates_are_not():
    net = create("DiC", **TINY, depths=[1, 1, 1])
    out = net(*inputs(net))
    assert torch.equal(out, torch.zeros(2, 6, 8, 8))
    assert net.enc_blocks[0][0].adaLN_modulation[1].weight.std() > 0.1


def test_every_third_decoder_block_has_a_skip_from_its_mirror_image():
    net = perturbed(create("DiC", **TINY, depths=[5, 1, 5]))
    assert [block.norm0.num_channels for block in net.dec_blocks[0]] == [32, 16, 16, 32, 16]
    given, trace = inputs(net), Trace([f"blocks.{i}" for i in range(11)])
    received = []
    net.dec_blocks[0][3].register_forward_pre_hook(lambda block, args: received.append(args[0]))
    net(*given, trace=trace)
    assert torch.equal(received[0], torch.cat([trace.taps["blocks.8"], trace.taps["blocks.1"]], dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 6, "depths": [1, 1, 1, 1, 1]}, "size 6x6 is not divisible by 4, which 3 levels need; choose another"),
        ({"depths": [1, 1]}, "depths 1, 1; give an odd number of 3 or more, and the same for the encoder and"),
        ({"depths": [2, 1, 3]}, "depths 2, 1, 3; give an odd number"),
        ({"depths": [1, 1, 1], "width": 68}, "width 68 cannot be normalized in groups at all levels; give a multiple"),
        ({"depths": [0, 1, 0]}, "depths 0; give 1 or more"),
    ],
)
def test_sizes_that_do_not_fit_together_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        create("DiC", **TINY | options)


def test_only_five_depths_have_a_published_layout():
    net = create("DiC", **TINY, depths=[1, 1, 1])
    with pytest.raises(InputError, match="DiC with 3 depths has no published layout, which has 5; convert to ditlab"):
        DiC.to_published(net.state_dict())
