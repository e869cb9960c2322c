"""Stable Diffusion 3's schedule, sampling and training against diffusers' FlowMatchEulerDiscreteScheduler."""

from functools import partial

import pytest
import torch
from helpers import relative, tiny_pipeline

from ditlab.backbones import create, mmdit_layouts
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Prediction
from ditlab.diffusion.guidance import Further, Rescale, SkipLayers, cfg, plain
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import Linear
from ditlab.diffusion.samplers import SAMPLERS, time_grid
from ditlab.diffusion.times import TIMES

LAYERS = {"skip_layers": (0,), "steps": 10, "sampler": "euler"}


@pytest.fixture(scope="module")
def network():
    from pathlib import Path

    from safetensors.torch import load_file

    vectors = load_file(Path(__file__).parents[1] / "golden" / "sd3_qknorm_original.safetensors")
    state = {key[6:]: value for key, value in vectors.items() if key.startswith("state.")}
    net = create("MMDiT", **mmdit_layouts.read_sizes(state)).eval()
    net.load_state_dict(state)
    return net


@pytest.mark.parametrize("steps", [4, 10, 28])
def test_the_schedule_shifts_twice(golden, steps):
    vectors = golden("flow_euler")
    for shift in (1, 3):
        times = time_grid("sd3", Linear(), steps, shift=shift)
        assert torch.allclose(times.float(), vectors[f"sigmas.shift{shift}.{steps}"], atol=2e-7)
        assert torch.allclose(1000 * times[:-1].float(), vectors[f"timesteps.shift{shift}.{steps}"], atol=2e-4)


def test_schedules_with_one_shift(golden):
    assert time_grid("shifted", Linear(), 4).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert time_grid("shifted", Linear(), 2, shift=1).tolist() == pytest.approx([1, 0.5, 0])
    vectors = golden("flow_euler")
    for tokens in (256, 1024, 4096):
        times = time_grid("flux", Linear(), 4, tokens=tokens)
        assert torch.allclose(times.float(), vectors[f"sigmas.flux.{tokens}tokens.4"], atol=2e-7)
    with pytest.raises(InputError, match='shift is 2, but the schedule "cosine" has none; leave it out or use shifted'):
        time_grid("cosine", Linear(), 4, shift=2)


@pytest.mark.parametrize(("kind", "scale"), [("plain", 1.0), ("cfg", 7.0)])
def test_a_trajectory_is_that_of_diffusers(golden, network, kind, scale):
    vectors = golden("flow_euler")
    condition = Condition(tokens=vectors["context"], pooled=vectors["pooled"])
    null = Condition(tokens=vectors["null_context"], pooled=vectors["null_pooled"])
    objective = Objective()
    denoise = cfg(objective.denoiser(network), condition, null, scale)
    times = time_grid("sd3", objective.process, 4)
    steps = SAMPLERS["euler"](denoise, objective.process, vectors["noise"], times, torch.randn_like)
    with torch.no_grad():
        for i, step in enumerate(steps):
            assert relative(step.x, vectors[f"{kind}.x.{i + 1}"]) < 1e-5
    assert i == 3


@torch.no_grad()
def test_a_training_example_is_theirs(golden, network):
    vectors = {key.removeprefix("train."): value for key, value in golden("flow_euler").items()}
    objective, t = Objective(), vectors["t_shift3"].double()
    condition = Condition(tokens=vectors["context"], pooled=vectors["pooled"])
    forward = objective.regress(network, vectors["x0"], condition, t, vectors["eps"])
    for ours, theirs in ((forward.x, "z"), (forward.output, "out"), (forward.wanted, "target")):
        assert relative(ours, vectors[theirs]) < 1e-5
    assert torch.allclose(objective.terms(forward)["regression"], vectors["loss"], rtol=1e-5)
    logit_normal = TIMES["logit-normal"](torch.special.ndtr(vectors["u"].double()), 0.0, 1.0)
    assert torch.allclose(logit_normal.float(), vectors["t_logit_normal"], atol=1e-6)


def test_distributions_of_training_times(golden):
    vectors = golden("flow_euler")
    u = vectors["times.uniform"].double()
    for name, scale, key in (("mode", 1.29, "mode_s1.29"), ("mode", -0.5, "mode_s-0.5"), ("cosmap", 1.0, "cosmap")):
        assert torch.allclose(TIMES[name](u, 0.0, scale).float(), vectors[f"times.{key}"], atol=1e-6)
        assert Objective(time=name, time_scale=scale).draw_times(8, torch.Generator().manual_seed(0)).shape == (8,)
    with pytest.raises(InputError, match='the time distribution "mode" must return times from 0 to 1'):
        Objective(time="mode", time_scale=9.0)


def test_rescaling_keeps_the_deviation_of_the_output_without_guidance():
    """Lin et al. 2024, algorithm 2, on the output of the network."""
    torch.manual_seed(0)
    objective, t = Objective(), torch.tensor(0.6, dtype=torch.float64)
    x, good, bad = torch.randn(3, 2, 1, 4, 4)

    def denoiser(x, t, s, condition):
        return objective.predict(good if len(x) == 2 else torch.cat([good, bad]), x, t)

    label = Condition(label=torch.tensor([0, 1]))
    for share in (1.0, 0.7):
        denoise = cfg(denoiser, label, label, 5.0, further=Further(rescale=Rescale(objective, share)))
        guided = bad + 5 * (good - bad)
        ratio = good.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
        expected = guided * (share * ratio + 1 - share)
        prediction = denoise(x, t, t)
        assert torch.allclose(objective.output(prediction, t), expected, atol=1e-5)
        assert torch.allclose(objective.process.add_noise(prediction.x0, prediction.eps, t), x, atol=1e-5)


def test_skip_layers_lead_away_from_the_model_without_them():
    value = partial(torch.full, (1, 1, 2, 2))
    skip = SkipLayers((0,), 2.5, (0.4, 0.8))

    def without(x, t, s):
        return Prediction(value(1.0), value(1.0))

    def denoiser(x, t, s, condition):
        return Prediction(torch.cat([value(2.0), value(0.0)][: len(x)]), torch.zeros(len(x), 1, 2, 2))

    label = Condition(label=torch.tensor([0]))
    denoise = cfg(denoiser, label, label, 3.0, further=Further(skip, without))
    for t, x0, guided in ((0.5, 6 + 2.5, 3), (0.9, 6, 1)):
        prediction = denoise(value(0.0), torch.tensor(t), torch.tensor(t))
        assert (prediction.x0.mean().item(), prediction.guided) == (pytest.approx(x0), guided)
    alone = cfg(denoiser, label, label, 1.0, further=Further(skip, without))
    assert alone(value(0.0), torch.tensor(0.5), torch.tensor(0.5)).x0.mean() == pytest.approx(4.5)
    assert plain(denoiser, label)(value(0.0), torch.tensor(0.5), torch.tensor(0.5)).guided == 0


class TestSettings:
    """One spelling for the settings, which are refused where they have no effect."""

    def test_the_plan_counts_and_records_them(self):
        pipe = tiny_pipeline()
        plan = pipe.resolve(guidance=2.0, guidance_rescale=0.7, **LAYERS, schedule="sd3", shift=2.0)
        assert plan.skip == SkipLayers((0,), 2.8, (float(plan.times[1]), float(plan.times[1])))
        assert plan.evaluations == 21
        settings = plan.settings()
        expected = {"shift": 2.0, "guidance_rescale": 0.7, "skip_layers": [0], "skip_guidance": 2.8}
        assert settings.items() >= (expected | {"skip_interval": [0.01, 0.2]}).items()
        assert pipe.resolve(**settings).settings() == settings

    def test_they_change_images_and_leave_the_network_alone(self):
        pipe = tiny_pipeline()
        options = {"seeds": 0, "steps": 10, "sampler": "euler", "guidance": 2.0, "output_type": "latent"}
        first = pipe(1, **options).images
        for more in ({"skip_layers": [0], "skip_guidance": 3.0}, {"guidance_rescale": 0.5}):
            assert relative(pipe(1, **options, **more).images, first) > 1e-4
        assert torch.equal(pipe(1, **options).images, first)
        assert relative(pipe(1, **options, skip_layers=[0], skip_guidance=0.0).images, first) < 1e-6

    def test_the_shift_of_a_model_belongs_to_its_schedule(self):
        pipe = tiny_pipeline()
        pipe.config["sample"] = {"schedule": "sd3", "shift": 2.0}
        assert pipe.resolve(steps=4).options.shift == 2.0
        for options in ({"schedule": "shifted"}, {"preset": "draft"}, {"schedule": [1.0, 0.5, 0.0]}):
            assert pipe.resolve(**options).options.shift is None
        assert pipe.resolve(schedule="shifted", shift=4.0).options.shift == 4.0

    def test_blocks_are_left_out(self):
        pipe = tiny_pipeline()
        calls = []
        for i, block in enumerate(pipe.net.blocks):
            block.register_forward_hook(lambda *_, i=i: calls.append(i))
        pipe(1, seeds=0, guidance=1.0, **LAYERS)
        assert calls == [0, 1, 0, 1, 1] + [0, 1] * 8

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"skip_layers": [9]}, r"skip_layers 9: DiT-S/2 has the blocks 0 to 1"),
            ({"skip_layers": "9"}, r"skip_layers '9'; give numbers of blocks, such as \(7, 8, 9\)"),
            ({"skip_guidance": 2.0}, "skip_guidance is 2.0, but there are no skip_layers; give them, or leave it out"),
            ({"skip_layers": [0], "steps": 4}, "skip_interval 0.01 0.2 contains none of 4 steps; give a longer one"),
            ({"skip_layers": [0], "steps": 10, "reuse": 2}, "reuse does not work with skip_layers"),
            ({"guidance_rescale": 0.5}, "guidance_rescale is 0.5, but guidance is 1, which disables it"),
            ({"guidance": 2.0, "guidance_rescale": 1.5}, "guidance_rescale is 1.5; give a number from 0 to 1"),
            ({"shift": 2.0}, 'shift is 2, but the schedule "uniform" has none; leave it out or use shifted or sd3'),
            ({"schedule": "sd3", "shift": 0.0}, "shift is 0.0; give a number from 0.001 to 1000"),
        ],
    )
    def test_mistakes(self, options, words):
        with pytest.raises(InputError, match=words):
            tiny_pipeline().resolve(**options)

    def test_a_family_without_such_blocks(self):
        net = create("U-DiT", size=8, channels=1, classes=3, learn_variance=False, width=16, heads=2, depths=[1, 1, 1])
        pipe = tiny_pipeline()
        pipe.net = net
        with pytest.raises(InputError, match="U-DiT has no blocks that can be left out; leave skip_layers out"):
            pipe.resolve(**LAYERS)
