"""DyDiT: the published numbers, and slices of weights that compute the same as masks."""

import copy

import pytest
import torch
from helpers import relative

from ditlab.backbones import create
from ditlab.backbones.dydit_block import RECENT, decided
from ditlab.checkpoints.published import from_official
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.diffusion.objective import Objective
from ditlab.evaluation import measure
from ditlab.inference.compute import sampled_compute
from ditlab.inference.optimize.compilation import compile_blocks
from ditlab.inference.optimize.packing import packed
from ditlab.inference.pipeline import Pipeline
from ditlab.server.batching import Call, Engine

TINY = {
    "size": 8,
    "channels": 1,
    "classes": 3,
    "learn_variance": False,
    "width": 32,
    "depth": 3,
    "heads": 4,
    "patch": 2,
}
MIXED = torch.tensor([900.0, 10.0, 900.0, 300.0, 10.0])


def routed(**options):
    """A network whose routers keep about half, by timestep and token."""
    torch.manual_seed(0)
    net = create("DyDiT", **TINY | options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for block in net.dynamic:
            for layer in block.routers:
                layer.weight.normal_()
                layer.bias.zero_()
    return net


def given(count=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 4


@torch.no_grad()
def masked(net, x, t, y, trace=None):
    """The output of the network with masks, which training uses."""
    return copy.deepcopy(net).train()(x, t, y, trace=trace)


@torch.no_grad()
def test_published_outputs_decisions_and_compute(golden):
    vectors = golden("dydit")
    state = {key.removeprefix("state."): value for key, value in vectors.items() if key.startswith("state.")}
    net = from_official(state, "here", heads=4).net
    inputs = vectors["x"], vectors["t"].float(), vectors["y"]
    for network in (net, copy.deepcopy(net).train()):
        trace = Trace(["compute", "complete", "tokens"])
        assert relative(network(*inputs, trace=trace), vectors["out"]) < 1e-6
        assert relative(trace.taps["complete"], vectors["out_complete"]) < 1e-6
        torch.testing.assert_close(trace.taps["compute"], vectors["mac_ratio_per_sample"])
        torch.testing.assert_close(trace.taps["tokens"], vectors["token_mask"].mean((1, 2)))
    loss = 2 * (trace.taps["compute"].mean() - 0.5).square()
    torch.testing.assert_close(loss, vectors["loss_target_half"])
    attention, mlp, _ = net.dynamic[0].costs
    macs = torch.tensor([attention, mlp], dtype=torch.float64) * net.dynamic_macs
    assert macs.round().long().tolist() == vectors["block_macs"].tolist()
    patterns, _ = net.patterns(net.t_embedder(inputs[1][1:2]), inputs[1][1:2])
    expected = torch.cat([vectors["attn_mask"][1, :, 1:], vectors["mlp_mask"][1, :, 1:]], dim=1).bool()
    assert torch.tensor(patterns[0]).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True, "rms_norm": True, "swiglu": True, "rope": True}, {"swiglu": True, "width": 48}]
)
@torch.no_grad()
def test_slices_compute_the_same_as_masks(options):
    net = routed(**options)
    x, y = given()
    shares = set()
    for t in (MIXED, torch.full((5,), 900.0), torch.full((5,), 20.0)):
        seen, expected = Trace(["compute", "blocks.1"]), Trace(["compute", "blocks.1"])
        assert relative(net(x, t, y, trace=seen), masked(net, x, t, y, expected)) < 1e-6
        torch.testing.assert_close(seen.taps["compute"], expected.taps["compute"])
        assert relative(seen.taps["blocks.1"], expected.taps["blocks.1"]) < 2e-6
        shares.update(seen.taps["compute"].tolist())
    assert len(shares) > 3
    assert 0.1 < min(shares) < max(shares) < 0.9


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@torch.no_grad()
def test_packed_kernels_compute_the_same(dtype, error):
    net, (x, y) = routed().to(dtype), given()
    for block in net.dynamic[:: 2 if dtype is torch.float32 else 1]:  # rounding to bfloat16 would change decisions
        block.token_selection.mlp_head[2].bias.fill_(1e4)
    ready = packed(net)
    assert ready(x, MIXED, y).dtype is dtype
    assert relative(ready(x, MIXED, y).float(), masked(net, x, MIXED, y).float()) < error


@torch.no_grad()
def test_a_sampler_with_guidance_and_precomputed_modulation():
    pipe = Pipeline(routed(), Objective())
    options = {"sampler": "heun", "steps": 3, "guidance": 2.0, "output_type": "latent"}
    sliced = pipe([0, 1, 2], seeds=[0, 1, 2], **options).images
    plain = copy.deepcopy(pipe)
    plain.net.slices_weights = lambda timestep: False
    assert relative(plain([0, 1, 2], seeds=[0, 1, 2], **options).images, sliced) < 1e-6
    assert relative(pipe.prepared("float32")([1], seeds=[1], **options).images, sliced[1:2]) < 1e-5


def test_the_service_joins_calls_of_different_timesteps():
    engine, (x, y) = Engine(Pipeline(routed(), Objective())), given(6)
    times = torch.tensor([900.0, 900.0, 10.0, 10.0, 300.0, 300.0])  # both halves of guidance have one timestep
    parts = [slice(i, i + 2) for i in (0, 2, 4)]
    calls = [Call(x[part], times[part], Condition(label=y[part])) for part in parts]
    engine._compute(calls)
    engine.close()
    with torch.no_grad():
        alone = [engine.pipe.net(x[part], times[part], y[part]) for part in parts]
    assert all(relative(call.output, output) < 1e-6 for call, output in zip(calls, alone, strict=True))


@torch.no_grad()
def test_slices_follow_changed_weights_and_are_few():
    net, (x, y) = routed(), given()
    before = net(x, MIXED, y)
    for parameter in net.parameters():
        parameter.mul_(1.1)
    assert relative(net(x, MIXED, y), masked(net, x, MIXED, y)) < 1e-6
    assert relative(net(x, MIXED, y), before) > 1e-3
    for t in range(0, 1000, 50):
        net(x, torch.full((5,), float(t)), y)
    assert max(len(block.slices) for block in net.dynamic) <= RECENT
    assert [len(block.slices) for block in copy.deepcopy(net).dynamic] == [0, 0, 0]


def test_an_untrained_network_is_a_dit_and_keeps_everything():
    torch.manual_seed(0)
    dit = create("DiT", **TINY)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    net = create("DyDiT", **TINY)
    net.load_state_dict(dit.state_dict(), strict=False)
    x, y = given()
    trace = Trace(["compute"])
    with torch.no_grad():
        assert relative(net(x, MIXED, y, trace=trace), dit(x, MIXED, y)) < 1e-6
        assert relative(net.eval()(x, MIXED, y), dit(x, MIXED, y)) < 1e-6
    torch.testing.assert_close(trace.taps["compute"], torch.ones(5))


def test_decisions_have_the_gradient_of_a_sigmoid_and_logistic_noise():
    scores = torch.tensor([-0.2, 0.0, 3.0], requires_grad=True)
    kept = decided(scores, None)
    assert kept.tolist() == [0, 0, 1]
    kept.sum().backward()
    soft = torch.sigmoid(scores.detach() / 5)
    torch.testing.assert_close(scores.grad, soft * (1 - soft) / 5)
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    share = decided(torch.full_like(noise, 1.0), noise).mean()
    assert abs(share - torch.sigmoid(torch.tensor(1.0))) < 0.005
    assert decided(torch.zeros(2), torch.tensor([12.0, -12.0])).tolist() == [1, 0]  # no overflow


@pytest.mark.slow
def test_costs_are_those_of_the_budget():
    cost = measure(lambda: create("DyDiT-XL/2", budget=0.5))
    assert cost.parameters == 678_129_732
    assert round(cost.gmacs, 3) == 119.217
    assert round(cost.average_gmacs, 2) == 60.03  # published, with trained routers: 57.88
    dit = measure(lambda: create("DiT-S/8"))
    assert dit.average_gmacs == dit.gmacs


@pytest.mark.parametrize(("routers", "trained"), [("all", 9), ("width", 6), ("tokens", 3), ("random", 0)])
def test_some_routers_are_not_trained(routers, trained):
    torch.manual_seed(0)
    net = create("DyDiT", **TINY, budget=0.5, routers=routers).eval()
    assert sum(layer.weight.requires_grad for block in net.dynamic for layer in block.routers) == trained
    (x, y), trace = given(5), Trace(["compute", "tokens"])
    with torch.no_grad():
        net(x, torch.linspace(0, 1000, 5), y, trace=trace)
        patterns, _ = net.patterns(net.t_embedder(torch.linspace(0, 1000, 200)), torch.linspace(0, 1000, 200))
    assert trace.taps["tokens"].tolist() == pytest.approx([1] * 5)
    if routers == "random":
        assert len(patterns) > 10  # other heads at other timesteps
        assert trace.taps["compute"].mean() == pytest.approx(0.5, abs=0.15)
    else:
        assert all(all(block) for block in patterns[0])
        assert len(patterns) == 1


def test_the_compute_of_a_trained_network_is_measured():
    pipe = Pipeline(routed(), Objective(), config={"sample": {"sampler": "euler", "steps": 4, "guidance": 2.0}})
    compute = sampled_compute(pipe)
    assert 0.2 < compute.share < 0.8
    assert compute.calls == 4
    assert pipe.net._forward_pre_hooks == {}
    for block in pipe.net.dynamic:
        torch.nn.init.constant_(block.token_selection.mlp_head[2].bias, -1e4)
    with pytest.raises(InputError, match=r"^the token routers of DyDiT keep no token in any block, so that no MLP"):
        sampled_compute(pipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, r"^budget 1.5 is not a share; give a number above 0, up to 1$"),
        ({"budget": 0.0}, r"^budget 0 is not a share"),
        ({"budget": -0.1}, r"^budget -0.1 is not a share"),
        ({"budget": float("nan")}, r"^budget nan is not a share"),
        ({"budget": 0.05}, r"^budget 0.05 is less than 0.096, the share that is always computed; give more$"),
        ({"budget": 0.2, "routers": "width"}, r"^budget 0.2 is less than 0.250, the share that is always computed"),
        ({"budget": 0.2, "routers": "tokens"}, r"^budget 0.2 is less than 0.385, the share that is always computed"),
        ({"heads": 1}, r"^DyDiT with 1 head has no heads to choose from; give 2 or more$"),
        ({"condition": "in-context"}, r'^condition "in-context" for DyDiT, whose blocks need "adaln-zero"'),
        ({"exits": (1.0, 0.5)}, r'^DyDiT has no option "exits"'),
    ],
)
def test_impossible_settings_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        create("DyDiT", **TINY | options)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_serve_all_patterns():
    net, (x, y) = routed(), given()
    compiled = copy.deepcopy(net)
    assert compile_blocks(compiled, lambda: compiled(x, torch.full((5,), 500.0), y), dynamic=True) is not None
    for t in (*(torch.full((5,), float(t)) for t in (0, 10, 300, 700, 999)), MIXED):
        assert relative(compiled(x, t, y), net(x, t, y)) < 1e-5
