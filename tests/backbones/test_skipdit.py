import json

import pytest
import torch
from helpers import relative, tiny_pipeline
from rich.console import Console

import ditlab
from ditlab.backbones import create, names
from ditlab.backbones.layers import unpatchify
from ditlab.config import parse_recipe
from ditlab.diffusion.objective import Objective
from ditlab.evaluation import measure
from ditlab.interop.official import family_of
from ditlab.pipeline import Pipeline, load_folder
from ditlab.training import train
from ditlab.training.transfer import summary, transfer

TINY = {"size": 8, "channels": 3, "classes": 3, "width": 32, "depth": 4, "heads": 2, "patch": 2}


def perturbed(net, scale=0.1):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return net


def inputs(net, count=2):
    x = torch.randn(count, net.channels, *net.size)
    return x, 1000 * torch.rand(count), torch.arange(count) % (net.classes + 1)


def test_cost_agrees_with_the_paper():
    skip, plain = (measure(lambda name=name: create(name)) for name in ("Skip-DiT-XL/2", "DiT-XL/2"))
    assert skip.parameters == pytest.approx(712.4e6, rel=5e-3)
    assert skip.gmacs - plain.gmacs == pytest.approx(9.5, abs=0.05)
    assert skip.gmacs == pytest.approx(128.2, rel=5e-3)
    assert skip.tokens == plain.tokens == 256


def test_names_are_those_of_dit():
    assert {name for name in names() if name.startswith("Skip-")} == {
        f"Skip-{name}" for name in names() if name.startswith("DiT-")
    }


def test_initial_output_is_zero_and_skips_keep_the_initialisation_of_torch():
    net = create("Skip-DiT-S/2", depth=2)
    out = net(*inputs(net))
    assert out.shape == (2, 8, 32, 32)
    assert torch.equal(out, torch.zeros_like(out))
    linear = net.skip_linears[0].linear
    bound = 1 / 768**0.5  # uniform within it
    assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert linear.weight.abs().amax() <= bound
    assert linear.bias.abs().sum() > 0
    assert (net.skip_norms[0].weight == 1).all()
    assert net.skip_norms[0].eps == 1e-6


@pytest.mark.parametrize("options", [{}, {"condition": "in-context"}, {"qk_norm": True}, {"depth": 5}])
def test_time_label_and_every_weight_matter(options):
    net = perturbed(create("Skip-DiT", **TINY | options))
    x, t, y = inputs(net, 4)
    out = net(x, t, y)
    assert (net(x, t + 50, y) - out).abs().amax() > 1e-3
    assert (net(x, t, y.flip(0)) - out).abs().amax() > 1e-3
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.parametrize(
    ("depth", "joins"),
    [(4, {2: 1, 3: 0}), (5, {3: 1, 4: 0})],  # block that joins -> block whose output it joins
)
def test_each_block_joins_its_mirror_image(depth, joins):
    net = perturbed(create("Skip-DiT", **TINY | {"depth": depth}))
    x, t, y = inputs(net)
    c = net.t_embedder(t) + net.y_embedder(y)
    z, outputs = net.x_embedder(x) + net.pos_embed, []
    for i, block in enumerate(net.blocks):
        if i in joins:
            j = list(joins).index(i)
            z = net.skip_linears[j].linear(net.skip_norms[j](torch.cat([z, outputs[joins[i]]], -1)))
        z = block(z, c)
        outputs.append(z)
    assert len(net.skip_linears) == len(joins)
    expected = unpatchify(net.final_layer(z, c), 4, 4, 2)
    assert torch.allclose(net(x, t, y), expected, atol=1e-5)


def test_keys_are_published_and_those_of_a_dit_with_the_skips():
    net, plain = create("Skip-DiT", **TINY), create("DiT", **TINY)
    assert family_of(net.state_dict()) == "Skip-DiT"
    assert family_of(plain.state_dict()) == "DiT"
    new = {f"skip_norms.{j}.{part}" for j in (0, 1) for part in ("weight", "bias")}
    new |= {f"skip_linears.{j}.linear.{part}" for j in (0, 1) for part in ("weight", "bias")}
    assert net.state_dict().keys() - plain.state_dict().keys() == new
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert (set(missing), unexpected) == (new, [])


def test_fine_tuning_starts_from_a_plain_dit():
    source = tiny_pipeline()  # a DiT
    net = create(**source.net.config | {"name": "Skip-DiT-S/2", "size": source.net.size})
    changes = transfer(net, source.classes, source)
    assert summary(changes) == {"kept": len(source.net.state_dict()), "new": 4}
    assert all(change.name.startswith("skip_") for change in changes if change.fate == "new")
    for key, value in source.net.state_dict().items():
        assert torch.equal(net.state_dict()[key], value)


def test_config_creates_the_same_network_again():
    net = create("Skip-DiT-B/4", size=(8, 16), depth=2, condition="adaln", qk_norm=True)
    again = create(**net.config | {"size": tuple(net.config["size"])})
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert again.config == net.config


def test_saved_and_loaded_it_draws_the_same(tmp_path):
    pipe = Pipeline(perturbed(create("Skip-DiT", **TINY, learn_variance=False), 0.05).eval(), Objective())
    pipe.save(tmp_path / "model")
    loaded = load_folder(tmp_path / "model")
    a, b = (each([0, 2], seeds=[0, 1], num_inference_steps=2, output_type="latent").images for each in (pipe, loaded))
    assert torch.equal(a, b)


def test_autocast_agrees_with_float32():
    net = perturbed(create("Skip-DiT", **TINY), 0.02)
    given = inputs(net)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = net(*given)
    assert relative(low.float(), net(*given)) < 0.05


def test_trains_like_any_other(tmp_path):
    recipe = parse_recipe(
        {
            "model": {"name": "Skip-DiT-S/4", "width": 32, "heads": 2, "depth": 2},
            "optim": {"lr": 2e-3, "warmup": 64},
            "train": {"images": 256, "batch": 32, "precision": "float32", "ema": 0.9, "device": "cpu"}
            | {"log_every": 32, "preview_every": 1024, "save_every": 256},
            "sample": {"sampler": "euler", "steps": 2},
        }
    )
    train(recipe, tmp_path / "run", console=Console(quiet=True))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert len(ditlab.load(tmp_path / "run")(["3", "7"], seeds=[0, 1]).images) == 2
