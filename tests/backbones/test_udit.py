import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import inputs, perturbed, relative

from ditlab.backbones import create, names
from ditlab.backbones.lora import add_lora, merged
from ditlab.backbones.positions import pair_rotations, rotated_pairs
from ditlab.backbones.udit import LADDER, LARGEST_SCALE, Blocks, GridAttention, Style, UDiT
from ditlab.backbones.udit_grid import interleave, shuffle, split, unshuffle
from ditlab.backbones.udit_reparam import Branches, Chain
from ditlab.checkpoints.native import load_folder
from ditlab.checkpoints.published import family_of, to_official
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.evaluation import measure
from ditlab.inference.pipeline import Pipeline

TINY = {"size": 8, "channels": 3, "classes": 3, "width": 16, "heads": 2, "depths": [1, 1, 1]}
BARE = Style(heads=2, attention="token", downsampler="unshuffle", cosine=False, rope=False, feed_forward="plain")


@pytest.fixture
def published(golden):
    vectors = golden("udit_tiny")
    return vectors, {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}


@pytest.mark.parametrize(
    ("name", "millions", "unfused", "gmacs"),
    [
        ("S", 52.05, 58.90, 6.04),
        pytest.param("B", 204.43, 231.25, 22.22, marks=pytest.mark.slow),
        pytest.param("L", 810.19, 916.34, 85.00, marks=pytest.mark.slow),
    ],
)
def test_cost_agrees_with_the_paper(name, millions, unfused, gmacs):
    cost = measure(lambda: create(f"U-DiT-{name}"))
    assert cost.parameters == pytest.approx(millions * 1e6, rel=5e-3)
    assert cost.parameters_unfused == pytest.approx(unfused * 1e6, rel=5e-3)
    assert cost.gmacs == pytest.approx(gmacs, rel=5e-3)
    assert cost.tokens == 256
    assert cost.weight_bytes == 4 * cost.parameters_unfused


def test_names():
    assert {"U-DiT-S", "U-DiT-B", "U-DiT-L"} <= set(names())
    assert create("U-DiT", **TINY).config["name"] == "U-DiT"


def test_published_weights_give_published_numbers(published):
    vectors, state = published
    settings = UDiT.read_sizes(state)
    assert settings["heads"] == 2
    assert settings["depths"] == [1] * 5
    net = create("U-DiT", size=16, **settings)
    net.load_state_dict(UDiT.from_published(state))
    x, t, y = vectors["x"], vectors["t"], vectors["y"]
    with torch.no_grad():
        for each in (net, net.fused()):
            assert relative(each(x, t, y), vectors["out"]) < 1e-5
            assert relative(each(x, t, torch.full_like(y, each.classes)), vectors["out_null"]) < 1e-5


def test_published_keys_there_and_back(published):
    _, state = published
    assert family_of(state) == "U-DiT"
    assert family_of(UDiT.from_published(state)) == ""
    back = UDiT.to_published(UDiT.from_published(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_blocks_of_deeper_levels_are_numbered_in_pairs():
    state = create("U-DiT", **TINY | {"depths": [2, 1, 3, 1, 1]}).state_dict()
    theirs = UDiT.to_published(state)
    assert torch.equal(theirs["latent.2.attn1.to_qkv.weight"], state["middle.4.attn.qkv.weight"])
    assert "encoder_level_1.1.mlp2.dwconv.2.bias" in theirs
    assert UDiT.read_sizes(theirs)["depths"] == [2, 1, 3, 1, 1]
    assert UDiT.from_published(theirs).keys() == state.keys()


@pytest.mark.parametrize("options", [{"feed_forward": "depthwise"}, {"depths": [1, 1, 1]}])
def test_only_the_full_form_has_a_published_layout(options):
    net = create("U-DiT", **TINY | {"depths": [1] * 5} | options)
    with pytest.raises(InputError, match="only U-DiT in its full form"):
        UDiT.to_published(net.state_dict())


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ({"rope": False}, "has rope = True only, and this model False"),
        ({"cosine": False}, "has cosine = True only"),
        ({"attention": "key-value"}, "has attention = token only, and this model key-value"),
        ({"downsampler": "unshuffle"}, "has downsampler = shortcut only"),
    ],
)
def test_what_the_published_code_would_compute_otherwise_is_not_written_for_it(options, reported):
    net = create("U-DiT", **TINY | {"depths": [1] * 5} | options)
    objective = Objective(process=DDPM(), target="eps", learn_variance=net.learn_variance)
    with pytest.raises(InputError, match=reported):
        to_official(Pipeline(net, objective))


def test_initial_output_is_zero_and_blocks_are_the_identity():
    net = create("U-DiT", **TINY)
    out = net(*inputs(net))
    assert out.shape == (2, 6, 8, 8)
    assert torch.equal(out, torch.zeros_like(out))
    x = torch.randn(2, 8, 8, 16)
    assert torch.equal(net.encoders[0].blocks(x, torch.randn(2, 1, 1, 16)), x)


def test_weights_are_initialized_as_published():
    net = create("U-DiT-S", depths=[1, 1, 1])
    state = net.state_dict()

    def xavier(fan_in, fan_out):
        return (2 / (fan_in + fan_out)) ** 0.5

    for key, deviation in {
        "encoders.0.blocks.0.attn.qkv.weight": xavier(96, 288),
        "encoders.0.blocks.0.mlp.project_in.1.weight": xavier(96, 192),
        "encoders.0.down.weight": xavier(9 * 96, 9 * 48),
        "decoders.0.reduce.weight": xavier(192, 192),
        "output.weight": xavier(9 * 192, 9 * 192),
        "conditions.0.t_embedder.mlp.2.weight": 0.02,
        "conditions.1.y_embedder.embedding_table.weight": 0.02,
    }.items():
        assert state[key].std().item() == pytest.approx(deviation, rel=0.05), key
    assert all(value.abs().sum() == 0 for key, value in state.items() if key.endswith("bias"))
    zero = [key for key in state if key.endswith("adaLN_modulation.1.weight")] + ["final_layer.out_proj.weight"]
    assert len(zero) == 8
    assert all(state[key].abs().sum() == 0 for key in zero)
    assert all((state[key] == math.log(10)).all() for key in state if key.endswith("logit_scale"))


@pytest.mark.parametrize("rung", LADDER)
def test_on_every_rung_time_label_and_every_weight_matter(rung):
    net = perturbed(create("U-DiT", **TINY, **LADDER[rung]))
    x, t, y = inputs(net, 4)
    out = net(x, t, y)
    assert (net(x, t + 50, y) - out).abs().amax() > 1e-3
    assert (net(x, t, y.flip(0)) - out).abs().amax() > 1e-3
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert relative(net.fused()(x, t, y), out) < 1e-4


SIZES_T = {"width": 48, "heads": 2, "depths": [1, 2, 4, 2, 1]}  # of our own: those of U-DiT-T are not published


@pytest.mark.parametrize(
    ("rung", "width", "gmacs", "tokens"),
    [
        ("full attention", 48, 1.40, 1024),
        pytest.param("full attention", 36, 0.92, 1024, marks=pytest.mark.slow),  # slim
        ("key-value down-sampling", 48, 0.91, 1024),
        pytest.param("token down-sampling, unshuffle only", 48, 0.89, 256, marks=pytest.mark.slow),
        ("token down-sampling", 48, 0.91, 256),
        pytest.param("RoPE2D", 48, 0.91, 256, marks=pytest.mark.slow),
        ("re-parametrisation", 48, 0.95, 256),
    ],
)
def test_cost_of_the_ladder(rung, width, gmacs, tokens):
    """Tables 1, 7 and 9."""
    cost = measure(lambda: create("U-DiT", **SIZES_T | {"width": width}, **LADDER[rung]))
    assert cost.gmacs == pytest.approx(gmacs, rel=0.025)
    assert cost.tokens == tokens


def test_weights_that_each_rung_adds():
    def count(rung, fused=False):
        net = create("U-DiT", **TINY, **LADDER[rung])  # two blocks each of width 16, 32, 32
        return sum(parameter.numel() for parameter in (net.fused() if fused else net).parameters())

    conv = 2 * (16 + 32 + 32) * (25 + 1)
    full = count("full attention")
    assert count("key-value down-sampling") == full + 2 * conv
    assert count("token down-sampling, unshuffle only") == full
    assert count("token down-sampling, depth-wise") == count("token down-sampling") == full + conv
    assert count("cosine attention") == count("RoPE2D") == full + conv + 6 * 2
    assert count("depth-wise feed-forward") == count("RoPE2D") + 2 * conv
    assert count("re-parametrisation", fused=True) == count("depth-wise feed-forward")
    linears = 2 * sum(2 * (width * width + width) for width in (16, 32, 32))
    convolutions = 2 * sum(2 * width * (9 + 1 + 1 + 1) for width in (16, 32, 32))
    assert count("re-parametrisation") == count("depth-wise feed-forward") + linears + convolutions


def test_subgrids_are_every_other_row_and_column():
    x = torch.randn(3, 4, 6, 5)
    parts = split(x).unflatten(0, (3, 4))
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(parts[:, k], x[:, i::2, j::2])
    assert torch.equal(interleave(split(x)), x)


def test_unshuffle_is_that_of_pixels():
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(unshuffle(x).movedim(-1, 1), F.pixel_unshuffle(x.movedim(-1, 1), 2))
    assert torch.equal(shuffle(unshuffle(x)), x)


def test_on_a_grid_of_equal_subgrids_all_three_attentions_agree():
    """There each key stands four times, which changes no softmax."""
    x = torch.randn(2, 2, 3, 16).repeat_interleave(2, 1).repeat_interleave(2, 2)
    layers = [GridAttention(16, BARE._replace(attention=kind)) for kind in ("full", "key-value", "token")]
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
    full, key_value, token = (layer(x, None) for layer in layers)
    assert torch.allclose(full, token, atol=1e-6)
    assert torch.allclose(full, key_value, atol=1e-6)


def test_token_attention_keeps_subgrids_apart():
    layer = GridAttention(16, BARE)
    x = torch.randn(1, 4, 4, 16)
    moved = x.clone()
    moved[:, 1, 0] += 1
    change = (layer(moved, None) - layer(x, None)).abs().sum(-1)[0]
    touched = torch.zeros(4, 4, dtype=torch.bool)
    touched[1::2, ::2] = True
    assert torch.equal(change > 0, touched)


def test_rope_depends_on_relative_positions_only():
    table = pair_rotations(5, 6, 8, torch.device("cpu"))
    q, k = torch.randn(1, 1, 1, 1, 8).expand(1, 5, 6, 1, 8), torch.randn(1, 1, 1, 1, 8).expand(1, 5, 6, 1, 8)
    q, k = rotated_pairs(q, table)[0, :, :, 0], rotated_pairs(k, table)[0, :, :, 0]
    products = torch.einsum("abd,xyd->abxy", q, k)
    assert torch.allclose(products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], atol=1e-5)
    assert (products[0, 0, 1, 0] - products[0, 0, 0, 1]).abs() > 1e-3


def test_rope_turns_pairs_by_column_and_row_in_turns():
    table = pair_rotations(4, 4, 8, torch.device("cpu"))[2, 3, 0]  # row 2, column 3
    angles = torch.tensor([3.0, 2.0, 0.03, 0.02])  # frequencies 1 and 1/100
    assert torch.allclose(table, torch.stack([angles.cos(), angles.sin()], -1))


def test_keys_of_fewer_rows_keep_their_places():
    """Key-value attention with RoPE sees the same angles as full attention does at those rows and columns."""
    style = BARE._replace(attention="full", rope=True)
    full, part = GridAttention(16, style), GridAttention(16, style._replace(attention="key-value"))
    part.load_state_dict(full.state_dict())
    table = pair_rotations(4, 4, 8, torch.device("cpu"))
    x = torch.randn(1, 4, 4, 16)
    q, k, v = full.qkv(x).chunk(3, -1)
    q, k, v = (each.unflatten(-1, (2, 8)) for each in (q, k, v))
    q, k = rotated_pairs(q, table).flatten(1, 2), rotated_pairs(k, table)[:, ::2, ::2].flatten(1, 2)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
    expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v[:, ::2, ::2].flatten(1, 2)).flatten(2)
    assert torch.allclose(part(x, table), part.proj(expected).unflatten(1, (4, 4)), atol=1e-6)


def test_cosine_attention_does_not_see_lengths():
    layer = GridAttention(16, BARE._replace(cosine=True))
    x = torch.randn(2, 4, 4, 16)
    before = layer(x, None)
    with torch.no_grad():
        layer.qkv.weight[:16] *= 7
        layer.qkv.bias[:16] *= 7
        layer.qkv.weight[16:32] *= 0.1
        layer.qkv.bias[16:32] *= 0.1
    assert torch.allclose(layer(x, None), before, atol=1e-6)


def test_cosine_attention_is_a_softmax_of_scaled_cosines():
    layer = GridAttention(16, BARE._replace(attention="full", cosine=True))
    with torch.no_grad():
        layer.logit_scale.copy_(torch.tensor([1.0, 9.0])[:, None, None])  # the second above its limit
    x = torch.randn(2, 3, 5, 16)
    q, k, v = layer.qkv(x).flatten(1, 2).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    scale = torch.tensor([math.e, math.exp(LARGEST_SCALE)])[:, None, None]
    assert scale.amax().item() == pytest.approx(100)
    logits = F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1) * scale
    expected = layer.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)).unflatten(1, (3, 5))
    assert torch.allclose(layer(x, None), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.float64, 1e-5)])
def test_fused_computes_the_same_and_leaves_the_original_alone(dtype, error):
    net = perturbed(create("U-DiT", size=16, width=32, heads=2, depths=[1, 2, 1]).to(dtype))
    before, chance = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    fused = net.fused()
    assert torch.equal(torch.get_rng_state(), chance)
    x, t, y = inputs(net)
    with torch.no_grad():
        assert relative(fused(x, t, y), net(x, t, y)) < error
        assert fused.fused() is fused
        again = net.fused()
        assert torch.equal(again(x, t, y), fused(x, t, y))
        perturbed(fused)  # nothing is shared
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.slow
def test_fused_is_an_ordinary_network():
    net = perturbed(create("U-DiT", **TINY)).eval().requires_grad_(False)
    fused = net.fused()
    assert not fused.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert net.config.get("feed_forward") is None
    again = create(**json.loads(json.dumps(fused.config)) | {"size": (8, 8)})
    again.load_state_dict(fused.state_dict())
    assert torch.equal(again(*(given := inputs(net))), fused(*given))
    bare = create("U-DiT", **TINY, **LADDER["full attention"])
    assert bare.fused() is bare


@pytest.mark.parametrize("pixels", [1, 100], ids=["one after the other", "as their product"])
def test_a_chain_has_the_gradients_of_two_layers(pixels):
    torch.manual_seed(0)
    chain, x = Chain(8, 8, 16).double(), torch.randn(pixels, 8, dtype=torch.float64)
    loss = chain(x).sin().sum()
    mine = torch.autograd.grad(loss, list(chain.parameters()))
    theirs = torch.autograd.grad(chain[1](chain[0](x)).sin().sum(), list(chain.parameters()))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_branches_have_the_gradients_of_their_sum():
    torch.manual_seed(0)
    branches, x = Branches(6, (5, 3, 1)).double(), torch.randn(2, 7, 5, 6, dtype=torch.float64)
    mine = torch.autograd.grad(branches(x).sin().sum(), list(branches.parameters()))
    apart = x + sum(conv(x) for conv in branches)
    theirs = torch.autograd.grad(apart.sin().sum(), list(branches.parameters()))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_half_precision_is_fused_once_rounded():
    net = perturbed(create("U-DiT", **TINY)).to(torch.bfloat16)
    exact = copy.deepcopy(net).double().fused().state_dict()
    fused = net.fused().state_dict()
    assert all(torch.equal(value, exact[key].to(torch.bfloat16)) for key, value in fused.items() if "bias" not in key)
    with torch.no_grad():
        out = net(*inputs(net))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((16, 24), {"depths": [1, 1, 2, 1, 1]}),
        ((2, 6), {"depths": [1, 1, 1], "attention": "full"}),
        ((28, 28), {"depths": [1, 1, 1], "channels": 1, "learn_variance": False}),  # pixels that three levels refuse
        ((16, 32), {"depths": [1, 2, 1, 1, 1, 1, 1], "classes": 0}),
    ],
)
def test_other_grids_and_levels(size, options):
    net = perturbed(create("U-DiT", **TINY | options | {"size": size}), 0.02)
    out = net(*inputs(net))
    assert out.shape == (2, net.out_channels, *size)
    assert len(net.label_tables) == len(options["depths"]) // 2 + 1
    assert all(len(net.get_parameter(name)) == net.classes + 1 for name in net.label_tables)


def test_last_decoder_has_the_width_and_condition_of_the_level_below():
    net = create("U-DiT", **TINY | {"depths": [1] * 7, "size": 16})
    widths = [decoder.blocks[0].attn.proj.in_features for decoder in net.decoders]
    assert widths == [64, 32, 32]
    assert [len(blocks) for blocks in net.modules() if isinstance(blocks, Blocks)] == [2] * 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "tokens"}, 'unknown attention "tokens"; did you mean "token"'),
        ({"downsampler": "dense"}, 'unknown downsampler "dense"'),
        ({"feed_forward": "reparametrized"}, 'did you mean "reparametrised"'),
        ({"depths": [1, 1]}, "2 depths; give an odd number"),
        ({"depths": [1, 0, 1]}, "depths 0"),
        ({"heads": 3}, "width 16 with 3 heads; give a multiple of 12"),
        ({"width": 0}, "width 0"),
        ({"size": (8, 10)}, "size 8x10 is not divisible by 4, which 2 levels with token attention need"),
        ({"depth": 3}, 'no option "depth"; did you mean "depths"'),
        ({"patch": 2}, 'no option "patch"'),
    ],
)
def test_mistakes_name_value_and_remedy(options, words):
    with pytest.raises(InputError, match=words):
        create("U-DiT", **TINY | options)


def test_misspelt_names_and_families_without_sizes():
    with pytest.raises(InputError, match='did you mean "U-DiT-'):
        create("U-DiT-XS")
    with pytest.raises(InputError, match="is a family without a size; give width, heads"):
        create("U-DiT")
    with pytest.raises(InputError, match="size 8x10; sides must be multiples of 4: give 8x8, the nearest one"):
        create("U-DiT", **TINY)(torch.randn(1, 3, 8, 10), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_a_loaded_model_generates_the_same_images(tmp_path):
    pipe = Pipeline(perturbed(create("U-DiT", **TINY, learn_variance=False), 0.05).eval(), Objective())
    pipe.save(tmp_path / "model")
    loaded = load_folder(tmp_path / "model")
    assert loaded.net.config == pipe.net.config
    a, b = (each([0, 2], seeds=[0, 1], num_inference_steps=2, output_type="latent").images for each in (pipe, loaded))
    assert torch.equal(a, b)
    pipe.net = pipe.net.fused()
    assert relative(pipe([0, 2], seeds=[0, 1], num_inference_steps=2, output_type="latent").images, a) < 1e-4


def test_low_rank_updates_are_fused_too():
    pytest.importorskip("peft")
    net = perturbed(create("U-DiT", **TINY))
    add_lora(net, 2, [*net.label_tables, *net.heads_out], seed=0)
    perturbed(net)
    given = inputs(net)
    for same in (net.fused(), merged(net), merged(net).fused()):
        assert relative(same(*given), net(*given)) < 1e-4
