import pytest
import torch
from helpers import relative, tiny_pipeline
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.backbones import create
from ditlab.backbones.cost import counted_flops
from ditlab.backbones.routing import depth_at
from ditlab.checkpoints.published import to_official
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.evaluation import measure
from ditlab.inference.optimize.compilation import compile_blocks
from ditlab.training import train

DEEP = {"width": 32, "depth": 4, "heads": 2, "patch": 2, "size": 8, "channels": 1, "classes": 3}


def noisy(**options):
    torch.manual_seed(0)
    net = create("DiT", learn_variance=False, **DEEP, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def cut(net, depth):
    """The same network with its first blocks alone."""
    parts = net.with_parts({})
    parts.blocks, parts.exits = net.blocks[:depth], ()
    return parts


def test_spans_of_the_clock_have_their_share_of_the_blocks():
    t = torch.tensor([0.0, 249.0, 250.0, 500.0, 999.0, 1000.0])
    assert depth_at(t, (1.0, 0.75, 0.5, 0.01), 4) == [4, 4, 3, 2, 1, 1]


@pytest.mark.parametrize("condition", ["adaln-zero", "in-context", "cross-attention"])
def test_each_image_passes_the_blocks_before_its_exit_and_no_others(condition):
    net = noisy(exits=(1.0, 0.75, 0.5, 0.25), condition=condition)
    x, t, y = torch.randn(5, 1, 8, 8), torch.tensor([900.0, 10.0, 600.0, 300.0, 20.0]), torch.tensor([0, 1, 2, 3, 0])
    with torch.no_grad():
        out = net(x, t, y)
        for i, depth in enumerate([1, 4, 2, 3, 4]):
            one = slice(i, i + 1)
            assert relative(out[one], cut(net, depth)(x[one], t[one], y[one])) < 1e-5
            assert relative(out[one], net(x[one], t[one], y[one])) < 1e-5


def without_blocks(net, depth):
    """The same network, whose blocks after the first `depth` ones do nothing but join the skips."""
    parts = net.with_parts({})
    for block in [block for block in parts.repeated if hasattr(block, "mlp")][depth:]:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight, layer.bias = (torch.nn.Parameter(torch.zeros_like(p)) for p in layer.parameters())
    parts.exits = ()
    return parts


@pytest.mark.parametrize(("family", "depth", "depths"), [("Skip-DiT", 5, (5, 4, 3)), ("U-ViT", 5, (5, 4, 3))])
@torch.no_grad()
def test_networks_with_long_skips_leave_out_late_blocks_but_not_their_skips(family, depth, depths):
    torch.manual_seed(0)
    net = create(family, learn_variance=False, **DEEP | {"depth": depth}, exits=[d / depth for d in depths]).eval()
    for parameter in net.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    x, t, y = torch.randn(4, 1, 8, 8), torch.tensor([10.0, 500.0, 999.0, 20.0]), torch.tensor([0, 1, 2, 3])
    out = net(x, t, y)
    for i, used in enumerate([5, 4, 3, 5]):
        one = slice(i, i + 1)
        assert relative(out[one], without_blocks(net, used)(x[one], t[one], y[one])) < 1e-5
        assert relative(net(x[one], t[one], y[one]), out[one]) < 1e-5
    assert net.dynamic_depth


@torch.no_grad()
def test_images_that_exited_are_not_computed():
    net, rows = noisy(exits=(1.0, 0.75, 0.5, 0.25)), []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda block, given: rows.append(len(given[0])))
    trace = Trace(["blocks.0", "blocks.3"])
    t = torch.tensor([900.0, 10.0, 600.0, 300.0, 20.0])
    net(torch.randn(5, 1, 8, 8), t, torch.zeros(5).long(), trace=trace)
    assert rows == [5, 4, 3, 2]
    assert trace.taps["blocks.3"].shape == trace.taps["blocks.0"].shape == (5, 16, 32)
    assert torch.equal(trace.taps["blocks.3"][0], trace.taps["blocks.0"][0])


def test_late_blocks_learn_from_the_images_that_reach_them():
    net = noisy(exits=(1.0, 0.5))
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    net(x, torch.tensor([800.0, 900.0]), y).square().sum().backward()
    assert net.blocks[3].mlp.fc1.weight.grad is None
    assert net.blocks[1].mlp.fc1.weight.grad.abs().sum() > 0
    net(x, torch.tensor([800.0, 100.0]), y).square().sum().backward()
    assert net.blocks[3].mlp.fc1.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_compiled_network_exits_too():
    net, plain = noisy(exits=(1.0, 0.5)), noisy(exits=(1.0, 0.5))
    x, t, y = torch.randn(6, 1, 8, 8), torch.tensor([1.0, 600.0, 700.0, 10.0, 20.0, 30.0]), torch.zeros(6).long()
    with torch.no_grad():
        compile_blocks(net, lambda: net(x, t, y), dynamic=True)
        for order in (torch.arange(6), torch.tensor([1, 2, 0])):
            assert relative(net(x[order], t[order], y[order]), plain(x[order], t[order], y[order])) < 1e-5


def test_fine_tuning_gives_a_trained_model_exits(tmp_path):
    for i in range(8):
        (tmp_path / "data" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 60 + 20 * i).save(tmp_path / "data" / str(i % 2) / f"{i}.png")
    source = tiny_pipeline(classes=2)
    source.save(tmp_path / "source")
    recipe = parse_recipe(
        {"data": {"source": str(tmp_path / "data")}, "optim": {"lr": 0.0}, "sample": {"steps": 2}}
        | {"model": {"exits": [1.0, 0.5]}}
        | {"train": {"images": 8, "batch": 4, "init_from": str(tmp_path / "source"), "precision": "float32"}}
    )
    train(recipe, tmp_path / "run", console=Console(quiet=True))
    tuned = ditlab.load(tmp_path / "run")
    assert tuned.net.config["exits"] == [1.0, 0.5]
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([2, 2])  # the null label: the classes have other names
    with torch.no_grad():
        for t, other in ((100.0, source.net.eval()), (900.0, cut(tuned.net, 1))):
            assert relative(tuned.net(x, torch.full((2,), t), y), other(x, torch.full((2,), t), y)) < 1e-4
    assert tuned(0, seeds=0).images[0].size == (8, 8)
    assert tuned(0, seeds=0, sampler="ddim", num_inference_steps=6, reuse=2).images[0].size == (8, 8)


def test_impossible_settings_are_rejected():
    with pytest.raises(InputError, match=r"exits 1.0, 1.5: 1.5 is not a share"):
        noisy(exits=(1.0, 1.5))
    for family, depth, first in (("Skip-DiT", 4, 2), ("U-ViT", 5, 3)):
        with pytest.raises(InputError, match=rf"exits 1.0, 0.2: 0.2 of {depth} blocks, but the {first} blocks before"):
            create(family, learn_variance=False, **DEEP | {"depth": depth}, exits=(1.0, 0.2))
    with pytest.raises(InputError, match="has exits = False only"):
        to_official(tiny_pipeline(exits=(1.0, 0.5)))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["DiT", "Skip-DiT", "U-ViT"])
def test_average_cost_is_that_of_uniform_timesteps(family):
    options = DEEP | {"name": family, "learn_variance": False, "depth": 5}
    costs = [measure(lambda exits=exits: create(**options, exits=exits)) for exits in ((), (1.0, 0.6), (0.6,))]
    assert costs[0].average_gmacs == costs[0].gmacs == costs[1].gmacs == costs[2].gmacs
    assert costs[0].parameters == costs[1].parameters == costs[2].parameters
    assert costs[1].average_gmacs == pytest.approx((costs[0].gmacs + costs[2].average_gmacs) / 2)
    net = create(**options, exits=(0.6,)).eval()
    x, _, labels = net.example(1)
    assert counted_flops(net, (x, torch.tensor([999.0]), labels)) == round(2e9 * costs[2].average_gmacs)
    assert costs[2].average_gmacs < costs[0].gmacs
