import pytest
import torch
from helpers import inputs, perturbed, relative
from safetensors.torch import save_file

import ditlab
from ditlab.backbones import create
from ditlab.backbones.lightningdit import LightningDiT
from ditlab.checkpoints import convert
from ditlab.checkpoints.published import family_of, to_official
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.diffusion.guidance import cfg
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import Linear
from ditlab.evaluation import measure
from ditlab.inference.pipeline import Pipeline

SHAPE = {"size": 8, "channels": 8, "classes": 3, "learn_variance": False}


@pytest.fixture
def published(golden):
    vectors = golden("lightningdit")
    return vectors, {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}


@pytest.fixture
def pipe(published, tmp_path):
    save_file(published[1], tmp_path / "theirs.safetensors")
    return ditlab.load(tmp_path / "theirs.safetensors")


def test_cost_agrees_with_the_paper():
    cost = measure(lambda: create("LightningDiT-XL/1", size=16, channels=32, learn_variance=False))
    assert cost.gmacs == pytest.approx(118.6, abs=0.05)
    assert cost.parameters == pytest.approx(675.3e6 - 256 * 1152, rel=1e-4)  # the positions are fixed


def test_published_numbers_through_every_layout(published, pipe, tmp_path):
    vectors, state = published
    assert family_of(state) == "LightningDiT"
    assert pipe.net.config["heads"] == 3
    assert pipe.objective.target == "velocity"
    assert pipe.objective.process == Linear(clock_rate=-1.0, clock_start=1.0)
    assert "note" not in pipe.config
    x, t, y = vectors["x"], vectors["t"], vectors["y"]
    convert(pipe, tmp_path / "official", "official")
    convert(pipe, tmp_path / "own", "ditlab")
    back = torch.load(tmp_path / "official")
    assert back.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    for each in (pipe, ditlab.load(tmp_path / "official"), ditlab.load(tmp_path / "own")):
        with torch.no_grad():
            assert relative(-each.net(x, t, y), vectors["out"]) < 1e-5
            assert relative(-each.net(x, t, torch.full_like(y, 10)), vectors["out_null"]) < 1e-5


def test_guidance_of_the_published_script(published, pipe):
    vectors, _ = published
    assert pipe.config["sample"] == {"guidance": 6.7, "guidance_channels": 3, "guidance_interval": [0.0, 0.875]}
    x, t, y = vectors["x"], vectors["t"], vectors["y"]
    for i in range(len(x)):
        time = 1 - t[i].double()
        conditions = Condition(label=y[i : i + 1]), Condition(label=torch.tensor([10]))
        guided = cfg(pipe.objective.denoiser(pipe.net), *conditions, scale=6.7, channels=3)
        prediction = guided(x[i : i + 1], time, time)
        assert relative(prediction.x0 - prediction.eps, vectors["out_cfg_first3_scale6.7"][i : i + 1]) < 1e-5


def test_initial_output_is_zero():
    net = create("LightningDiT", **SHAPE, width=32, depth=2, heads=2, patch=1)
    out = net(*inputs(net))
    assert torch.equal(out, torch.zeros(2, 8, 8, 8))


def test_the_rotary_positions_start_with_the_row():
    torch.manual_seed(0)
    net = perturbed(create("LightningDiT", **SHAPE, width=32, depth=1, heads=2, patch=1)).eval()
    rows = net.blocks[0].attn.rotation[:, :, :8].unflatten(1, (8, 8))
    assert torch.equal(rows, rows[:, :, :1].expand_as(rows))
    assert torch.equal(net.feat_rope.freqs_cos, net.blocks[0].attn.rotation[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("blocks.0.adaLN_modulation.1.weight", r"LightningDiT without shifts \(wo_shift\) is not supported; give a"),
        ("blocks.0.norm1.weight", "LightningDiT without RMS norm is not supported; give a model with the released"),
        ("blocks.0.mlp.w12.weight", "LightningDiT without SwiGLU is not supported"),
    ],
)
def test_other_variants_are_rejected_in_a_line(published, tmp_path, changed, message):
    _, state = published
    value = state.pop(changed)
    if "adaLN" in changed:
        state[changed] = value[: 4 * 48].clone()
    save_file(state, tmp_path / "variant.safetensors")
    with pytest.raises(InputError, match=message):
        ditlab.load(tmp_path / "variant.safetensors")


def test_another_objective_has_no_published_layout(pipe):
    with pytest.raises(InputError, match=r"for velocity on linear.*another objective"):
        to_official(Pipeline(pipe.net, Objective()))


def test_queries_and_keys_may_be_normalized():
    net = create("LightningDiT", **SHAPE, width=32, depth=1, heads=2, patch=1, qk_norm=True)
    assert LightningDiT.read_sizes(LightningDiT.to_published(net.state_dict()))["qk_norm"]
