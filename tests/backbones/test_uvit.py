import pytest
import torch
from helpers import inputs, perturbed, relative

from ditlab.backbones import create, names
from ditlab.backbones.layers import sinusoids
from ditlab.backbones.lora import add_lora, merged
from ditlab.backbones.uvit import UViT
from ditlab.checkpoints.published import family_of
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.evaluation import measure
from ditlab.inference.pipeline import Pipeline
from ditlab.training.init_from import transfer

TINY = {"size": 8, "channels": 3, "classes": 3, "learn_variance": False, "width": 32, "depth": 5, "heads": 2} | {
    "patch": 2
}


@pytest.fixture
def published(golden):
    vectors = golden("uvit_conv")
    return vectors, {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}


@pytest.mark.parametrize(
    ("name", "options", "millions", "gmacs", "tokens"),
    [
        ("U-ViT-S/2", {"size": 32, "channels": 3, "classes": 0}, 44.3, 12.2, 257),  # CIFAR-10, unconditional
        ("U-ViT-M/4", {"size": 64, "channels": 3}, 130.9, 35.2, 258),  # ImageNet at 64 pixels
        ("U-ViT-L/2", {}, 286.8, 76.5, 258),
        ("U-ViT-H/2", {}, 500.8, 133.2, 258),
        ("U-ViT-L/4", {"size": 64}, 286.8, 76.5, 258),
        ("U-ViT-H/4", {"size": 64}, 500.8, 133.2, 258),
    ],
)
def test_cost_agrees_with_the_paper(name, options, millions, gmacs, tokens):
    cost = measure(lambda: create(name, learn_variance=False, **options))
    assert cost.parameters == pytest.approx(millions * 1e6, rel=5e-3)
    assert cost.gmacs == pytest.approx(gmacs, rel=5e-3)
    assert cost.tokens == tokens
    assert name in names()


def test_published_weights_give_published_numbers(published):
    vectors, state = published
    settings = UViT.read_sizes(state)
    assert "classes" not in settings  # ten, or nine and the null label
    assert settings["final_conv"]
    net = create("U-ViT", heads=4, classes=9, **settings)
    assert family_of(state) == "U-ViT"
    net.load_state_dict(UViT.from_published(state))
    assert UViT.to_published(net.state_dict()).keys() == state.keys()
    with torch.no_grad():
        assert relative(net(vectors["x"], vectors["t"], vectors["y"]), vectors["out"]) < 1e-5


@pytest.mark.parametrize("name", ["U-ViT-S/2", "U-ViT-H/4"])
def test_sizes_are_read_back(name):
    with torch.device("meta"):
        net = create(name, size=64)
    settings = UViT.read_sizes(net.state_dict())
    assert settings == {key: value for key, value in net.config.items() if key != "name"} | {"size": (64, 64)}


@pytest.mark.parametrize(("key", "words"), [("time_embed.0.weight", "MLP"), ("mid_block.attn.qkv.bias", "biases")])
def test_variants_that_were_not_released_are_rejected(published, key, words):
    with pytest.raises(InputError, match=words):
        UViT.from_published(published[1] | {key: torch.zeros(1)})


def test_weights_are_initialized_as_published():
    net = create("U-ViT-S/2", depth=3)
    state = net.state_dict()
    for key, value in state.items():
        if (value.ndim == 2 and "label" not in key) or key == "pos_embed":
            assert value.std().item() == pytest.approx(0.02, rel=0.05), key
            assert value.abs().amax() < 0.15
    assert state["label_emb.weight"].std().item() == pytest.approx(1, rel=0.05)
    assert all(value.abs().sum() > 0 for key, value in state.items() if key.endswith("weight"))
    assert net(*inputs(net)).abs().amax() > 0


@pytest.mark.parametrize("options", [{}, {"final_conv": False}, {"learn_variance": True}, {"classes": 0}, {"depth": 3}])
def test_time_label_and_every_weight_matter(options):
    net = perturbed(create("U-ViT", **TINY | options))
    x, t, y = inputs(net, 4)
    out = net(x, t, y)
    assert out.shape == (4, net.out_channels, 8, 8)
    assert (net(x, t + 50, y) - out).abs().amax() > 1e-3
    assert ((net(x, t, y.flip(0)) - out).abs().amax() > 1e-3) == (net.classes > 0)
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_tokens_are_label_time_patches_and_skips_join_mirror_images():
    net = perturbed(create("U-ViT", **TINY))
    x, t, y = inputs(net)
    patches = net.patch_embed(x)
    tokens = torch.cat([net.label_emb.weight[y][:, None], sinusoids(t, 32)[:, None], patches], 1) + net.pos_embed
    first = net.in_blocks[0](tokens)
    second = net.in_blocks[1](first)
    z = net.mid_block(second)
    for block, skip in ((net.out_blocks[0], second), (net.out_blocks[1], first)):
        z = block.skip_linear(torch.cat([z, skip], -1))
        z = z + block.attn(block.norm1(z))
        z = z + block.mlp(block.norm2(z))
    z = net.decoder_pred(net.norm(z))[:, 2:]
    # token (i, j), of values (row, column, channel), is the patch at (i, j)
    picture = z.reshape(2, 4, 4, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 8, 8)
    assert torch.allclose(net(x, t, y), net.final_layer(picture), atol=1e-5)


def test_patches_may_change_places_together_with_their_positions():
    net = perturbed(create("U-ViT", **TINY | {"final_conv": False}))
    x, t, y = inputs(net)
    before = net(x, t, y)
    with torch.no_grad():
        grid = net.pos_embed[:, 2:].unflatten(1, (4, 4)).roll((1, 2), (1, 2)).flatten(1, 2)
        net.pos_embed[:, 2:] = grid
    assert torch.allclose(net(x.roll((2, 4), (2, 3)), t, y), before.roll((2, 4), (2, 3)), atol=1e-5)


def test_without_classes_there_is_no_label_token():
    net = create("U-ViT", **TINY | {"classes": 0})
    assert net.tokens == 17
    assert net.label_emb is None
    assert UViT.read_sizes(net.state_dict())["classes"] == 0
    y = torch.zeros(2, dtype=torch.long)
    assert (y == net.classes).all()


def test_adding_the_variance_half_leaves_the_other_as_it_was():
    source = perturbed(create("U-ViT", **TINY))
    net = create("U-ViT", **TINY | {"learn_variance": True})
    changes = transfer(net, ["a", "b", "c"], Pipeline(source, Objective(), classes=["a", "b", "c"]))
    assert {change.name for change in changes if change.fate == "adapted"} == set(net.heads_out)
    given = inputs(net)
    assert torch.allclose(net(*given)[:, :3], source(*given), atol=1e-5)
    pipe = Pipeline(net, Objective(DDPM(), "eps", learn_variance=True))
    assert pipe([0], num_inference_steps=2, sampler="ddpm", output_type="latent").images.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 4}, "depth 4; give an odd number"),
        ({"depth": 1}, "depth 1; give an odd number of 3 or more"),
        ({"depth": 0}, "depth 0"),
        ({"size": 9}, "size 9x9 is not divisible by patch 2"),
        ({"heads": 3}, "width 32 must be divisible by heads 3"),
        ({"condition": "adaln"}, 'no option "condition"'),
    ],
)
def test_mistakes_name_value_and_remedy(options, words):
    with pytest.raises(InputError, match=words):
        create("U-ViT", **TINY | options)


def test_wrong_input_and_misspelt_name():
    with pytest.raises(InputError, match="input of 3x4x4 for a network made for 3x8x8"):
        create("U-ViT", **TINY)(torch.randn(1, 3, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    with pytest.raises(InputError, match='did you mean "U-ViT-S/2"'):
        create("U-VIT-S2")


def test_low_rank_updates_reach_the_skips():
    pytest.importorskip("peft")
    net = perturbed(create("U-ViT", **TINY))
    given = inputs(net)
    before = net(*given)
    add_lora(net, 2, [*net.label_tables, *net.heads_out], seed=0)
    assert "out_blocks.1.skip_linear.lora_A.default.weight" in net.state_dict()
    assert torch.equal(net(*given), before)
    assert relative(merged(perturbed(net))(*given), net(*given)) < 1e-5
