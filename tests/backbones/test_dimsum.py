import pytest
import torch
from helpers import inputs, perturbed, relative

import ditlab
from ditlab.backbones import create
from ditlab.backbones.dimsum import DiMSUM, haar, spatial_order, unhaar, window_order
from ditlab.checkpoints import convert
from ditlab.core.errors import InputError
from ditlab.diffusion.process import Cosine
from ditlab.evaluation import measure

TINY = {
    "channels": 3,
    "classes": 3,
    "learn_variance": False,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "attention_every": 2,
}


@pytest.fixture
def published(golden):
    vectors = golden("dimsum_finalnorm")
    return vectors, {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}


@pytest.mark.parametrize(
    ("name", "millions", "dead", "gmacs"),
    [
        ("B/2", 198.5, 14.2, 41.0),
        pytest.param("L/2", 459.9, 33.6, 96.07, marks=pytest.mark.slow),
        pytest.param("XL/2", 854.8, 63.8, 181.7, marks=pytest.mark.slow),
    ],
)
def test_cost_agrees_with_the_products_of_the_published_code(name, millions, dead, gmacs):
    cost = measure(lambda: create(f"DiMSUM-{name}", learn_variance=False))
    assert cost.parameters / 1e6 + dead == pytest.approx(millions, abs=0.1)
    assert cost.gmacs == pytest.approx(gmacs, rel=2e-3)


def test_published_numbers_through_every_layout(published, tmp_path):
    vectors, state = published
    torch.save({"ema": state, "model": state}, tmp_path / "theirs.pt")
    pipe = ditlab.load(tmp_path / "theirs.pt", attention_every=2)
    assert pipe.net.config["final_norm"]
    assert pipe.net.config["size"] == [8, 8]
    assert (pipe.objective.process, pipe.objective.target) == (Cosine(clock_rate=-1.0, clock_start=1.0), "velocity")
    convert(pipe, tmp_path / "official", "official")
    convert(pipe, tmp_path / "own", "ditlab")
    back = torch.load(tmp_path / "official")
    assert back.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    x, t, y = vectors["x"], vectors["t"], vectors["y"]
    again = ditlab.load(tmp_path / "official", attention_every=2)
    for each in (pipe, again, ditlab.load(tmp_path / "own")):
        with torch.no_grad():
            assert relative(-each.net(x, t, y), vectors["out"]) < 1e-5
            assert relative(-each.net(x, t, torch.full_like(y, 5)), vectors["out_null"]) < 1e-5


def test_wavelet_coefficients_have_the_published_layout(published):
    vectors, _ = published
    tokens, coefficients = vectors["wavelet_tokens_in"], vectors["wavelet_tokens_out"]
    assert relative(haar(tokens, (4, 4)), coefficients) < 1e-6
    assert relative(unhaar(coefficients, (4, 4)), tokens) < 1e-6
    x = torch.randn(2, 32, 8)
    assert relative(unhaar(haar(x, (4, 8)), (4, 8)), x) < 1e-6


def test_orders_of_the_scans():
    assert spatial_order(2, 3, 0).tolist() == [0, 1, 2, 3, 4, 5]
    assert spatial_order(2, 3, 1).tolist() == [5, 4, 3, 2, 1, 0]
    assert spatial_order(2, 3, 2).tolist() == [0, 3, 1, 4, 2, 5]
    assert spatial_order(2, 3, 3).tolist() == [5, 2, 4, 1, 3, 0]
    assert window_order(8, 8, 0).tolist()[:6] == [0, 1, 8, 9, 2, 3]
    assert window_order(8, 8, 1).tolist()[:6] == [0, 8, 1, 9, 16, 24]


def test_without_a_final_norm_the_head_reads_the_last_block_alone():
    torch.manual_seed(0)
    net = perturbed(create("DiMSUM", size=8, **TINY)).eval()
    heard = []
    net.final_layer.register_forward_pre_hook(lambda layer, args: heard.append(args[0]))
    net.attn_block.register_forward_hook(lambda layer, args, out: heard.append(out))
    net(*inputs(net))
    assert torch.equal(heard[0], heard[1])


def test_initial_weights_are_those_of_the_published_code():
    net = create("DiMSUM", size=8, **TINY)
    assert torch.equal(net(*inputs(net)), torch.zeros(2, 3, 8, 8))
    block = net.blocks[0]
    assert block.adaLN_modulation[1].weight.abs().sum() == 0
    assert block.freq_mamba.adaLN_modulation[1].weight.abs().sum() > 0
    mixer = block.spatial_mamba.mixer
    assert mixer.A_log[3].exp().tolist() == pytest.approx(list(range(1, 17)))
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 0.001 <= steps.min() < 0.005 < 0.02 < steps.max() <= 0.1001


def test_all_ways_to_scan_agree():
    torch.manual_seed(0)
    net = perturbed(create("DiMSUM", size=8, **TINY, scan="loop")).eval()
    other = create("DiMSUM", size=8, **TINY, scan="chunked").eval()
    other.load_state_dict(net.state_dict())
    given = inputs(net)
    with torch.no_grad():
        assert relative(other(*given), net(*given)) < 1e-5
    with pytest.raises(InputError, match="scan mamba-ssm needs CUDA, and the network is on cpu; use scan auto"):
        create("DiMSUM", size=8, **TINY, scan="mamba-ssm")(*given)


def test_muon_and_weight_decay_keep_off_the_parameters_of_the_recurrence():
    net = create("DiMSUM", size=8, **TINY)
    decay, others, muon = net.parameter_groups()
    mixer = net.blocks[1].freq_mamba.mixer
    groups = [{id(p) for p in group.parameters} for group in (decay, others, muon)]
    assert all(id(value) in groups[1] for value in (mixer.A_log, mixer.D, mixer.dt_proj.bias, mixer.conv1d.bias))
    assert id(mixer.dt_proj.weight) in groups[0]
    assert all(id(layer.weight) in groups[2] for layer in (mixer.in_proj, mixer.x_proj, mixer.out_proj))


def test_dead_weights_are_zeros_for_a_network_without_them():
    net = create("DiMSUM", size=8, **TINY)
    theirs = DiMSUM.to_published(net.state_dict())
    assert torch.equal(theirs["blocks.1.freq_mamba.mixer.cond_proj.weight"], torch.zeros(32, 32))
    assert theirs["blocks.1.freq_mamba.dwt.w_lh"].flatten().tolist() == pytest.approx([0.5, 0.5, -0.5, -0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 12}, r"size 12x12 is not divisible by 8 \(patch 2 and two levels of wavelets\); choose another size"),
        ({"width": 36}, "width 36 with 4 heads; give an even number of heads, and a multiple of 8"),
        ({"heads": 3}, "width 32 with 3 heads; give an even number of heads"),
        ({"depth": 1}, "depth 1 has no place for the attention after block 2; give a lower N"),
        ({"scan": "fast"}, 'unknown scan "fast"'),
    ],
)
def test_sizes_that_do_not_fit_together_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        create("DiMSUM", **{"size": 8} | TINY | options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("blocks.0.spatial_mamba.mixer.cond_proj.weight", "DiMSUM without cond_mamba is not supported; give a model"),
        ("blocks.1.freq_mamba.dwt.w_lh", r"DiMSUM with other wavelets \(blocks.1.freq_mamba.dwt.w_lh\) is not"),
    ],
)
def test_other_variants_are_rejected_in_a_line(published, changed, message):
    _, state = published
    value = state.pop(changed)
    if "dwt" in changed:
        state[changed] = 2 * value
    with pytest.raises(InputError, match=message):
        DiMSUM.from_published(state)
