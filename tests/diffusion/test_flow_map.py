"""Flow maps and built-in guidance: how their output is read, and what their plans refuse."""

import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.cli.sampling import settings_line
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Prediction
from ditlab.diffusion.flow_map import FlowMap, Guided
from ditlab.diffusion.parametrizations import describe_objective, read_objective
from ditlab.diffusion.process import DDPM, Cosine, Linear
from ditlab.diffusion.samplers import SAMPLERS, image_noise
from ditlab.evaluation.generated import protocol_settings
from ditlab.inference.export import export
from ditlab.inference.folder import sample_folder
from ditlab.inference.records import read_record
from ditlab.inference.tune import tune
from ditlab.server.requests import resolved

QUIET = Console(quiet=True)


def flow_map(steps=(1, 2), guidance=(1.0, 2.0), **options):
    objective = FlowMap(steps=steps, guidance=guidance, **options)
    pipe = tiny_pipeline(objective=objective, inputs=objective.inputs)
    pipe.config["sample"] = {"sampler": "map", "steps": steps[-1], "guidance": guidance[-1]}
    return pipe


def latents(pipe, **options):
    return pipe([0, 1], seeds=[3, 4], output_type="latent", **options).images


@pytest.mark.parametrize(
    ("process", "target"),
    [(Linear(), "velocity"), (Linear(), "x0"), (Cosine(), "v"), (Cosine(), "velocity"), (DDPM(), "x0"), (DDPM(), "v")],
)
def test_a_step_follows_the_straight_line_of_the_prediction(process, target):
    """With the true x0 and eps the step is exact, whatever process and target."""
    objective = FlowMap(process, target, steps=(2,))
    x0, eps = torch.randn(2, 3, 1, 4, 4).unbind(0)
    times = process.uniform(2)
    x = process.add_noise(x0, eps, times[0])

    def net(x, timesteps, condition):
        assert timesteps.shape == (3, 2)
        t = times[int((timesteps[0, 0] - process.clock(times)).abs().argmin())]
        seen.append(float(timesteps[0, 0]))
        return objective.output(Prediction(x0, eps), t)

    seen = []
    denoiser = objective.denoiser(net)
    label = Condition(label=torch.zeros(3, dtype=torch.long))
    *_, last = SAMPLERS["map"](lambda x, t, s: denoiser(x, t, s, label), process, x, times, torch.randn_like)
    assert seen[0] == pytest.approx(float(process.clock(times[0])))
    assert (last.x - x0).abs().max() < 2e-3


def test_the_network_receives_time_interval_and_guidance():
    objective = FlowMap(guidance=(1.0, 4.0)).at_guidance(2.0)
    t, s = torch.tensor([1.0, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.25], dtype=torch.float64)
    x = torch.zeros(2, 1, 4, 4)
    assert objective.timesteps(t, s, x).tolist() == [[1000.0, 0.5, 0.5], [500.0, 0.25, 0.5]]
    assert objective.timesteps_at(t, s, torch.tensor([1.0, 4.0]), x)[:, 2].tolist() == [1.0, 0.25]
    assert FlowMap(guidance=(2.0, 2.0)).timesteps(t, s, x).tolist() == [[1000.0, 0.5], [500.0, 0.25]]
    assert Guided(guidance=(2.0, 2.0)).timesteps(t, s, x).tolist() == [1000.0, 500.0]
    for made in (objective, Guided(guidance=(1.0, 4.0))):
        assert read_objective(describe_objective(made)) == made


def test_it_samples_as_its_equation_says_and_is_saved(tmp_path):
    pipe = flow_map()
    x, label = image_noise([3, 4])(torch.empty(2, 1, 8, 8)), torch.tensor([0, 1])
    with torch.no_grad():
        for t, s in ((1.0, 0.5), (0.5, 0.0)):
            inputs = torch.tensor([[1000 * t, t - s, 1 / 1.6]]).expand(2, 3)
            x = x - (t - s) * pipe.net(x, inputs, label)
    assert (latents(pipe, steps=2, guidance=1.6) - x).abs().max() < 1e-5
    assert (latents(pipe.prepared("float32"), steps=2, guidance=1.6) - x).abs().max() < 1e-4
    assert (latents(pipe, steps=2, guidance=1.1) - x).abs().max() > 1e-4
    plan = pipe.resolve(steps=2)
    assert (plan.evaluations, plan.options.guidance, plan.options.sampler) == (2, 2.0, "map")
    pipe.save(tmp_path / "model")
    assert torch.equal(latents(ditlab.load(tmp_path / "model"), steps=1), latents(pipe, steps=1))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 3}, "steps is 3, but this model is a flow map for 1 or 2 steps; the nearest is 2"),
        ({"sampler": "ab4"}, 'sampler is ab4, but this model is a flow map; give the sampler "map", and no preset'),
        ({"preset": "draft"}, 'sampler is ab4, but this model is a flow map; give the sampler "map", and no preset'),
        ({"guidance": 3}, "guidance is 3, but this model takes guidance 1 to 2; give 2"),
        (
            {"guidance_interval": (0.1, 0.5)},
            "guidance_interval is (0.1, 0.5), but this model has its guidance built in; leave guidance_interval out",
        ),
        (
            {"steps": 2, "schedule": "cosine"},
            "this model is a flow map, which has the times of the uniform schedule from noise to data only; leave the "
            "schedule out",
        ),
        (
            {"reuse": 2},
            "reuse skips work in steps that differ little, and this model has few, because it is a flow map; leave "
            "it out",
        ),
        (
            {"reuse_error": 0.1},
            "reuse_error skips work in steps that differ little, and this model has few, because it is a flow map; "
            "leave it out",
        ),
    ],
)
def test_settings_that_a_flow_map_does_not_have(options, line):
    with pytest.raises(InputError) as error:
        flow_map().resolve(**options)
    assert str(error.value) == line


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_it_starts_from_noise_only(steps):
    """Also where strength and steps leave a single step, which would be taken from a time that was never trained."""
    pipe, image = flow_map(), Image.new("L", (8, 8), 90)
    line = (
        "this model cannot start from an image or from given frames, because it is a flow map, whose few steps lead "
        "from noise to data; generate from noise, or use the model that it was distilled from"
    )
    for start in ({"image": image}, {"image": image, "mask": Image.new("L", (8, 8), 255)}):
        with pytest.raises(InputError) as error:
            pipe(0, seeds=0, steps=steps, **start)
        assert str(error.value) == line


def guided(**sample):
    """A model with guidance built in, whose default settings are `sample`."""
    objective = Guided(guidance=(1.0, 3.0))
    pipe = tiny_pipeline(objective=objective, inputs=objective.inputs)
    pipe.config["sample"] = {"sampler": "euler", "steps": 2, "guidance": 2.0} | sample
    return pipe


@pytest.mark.parametrize("made", [guided, flow_map])
def test_every_record_has_the_scale_that_is_built_in(made, tmp_path):
    pipe = made()
    for scale in (1.0, 1.5, 2.0):
        plan = pipe.resolve(guidance=scale)
        assert (plan.guidance, plan.evaluations) == (scale, 2)
        assert protocol_settings(plan)["guidance_scale"] == scale
        assert f"guidance {scale:g}, float32" in settings_line(plan, pipe, "")
        assert resolved(pipe, {"guidance": scale})["guidance"] == scale
        written = sample_folder(
            pipe, ["index:1"], [0], tmp_path / str(scale), QUIET, batch_size=1, trajectory=False,
            options={"guidance": scale},
        )  # fmt: skip
        for file in (written.files[0], tmp_path / str(scale) / "samples.json"):
            repeat = read_record(file)
            assert repeat.settings["guidance"] == scale
            assert pipe.resolve(**repeat.words({}, pipe.objective)).guidance == scale


@pytest.mark.parametrize(
    ("name", "value"), [("guidance_interval", (0.1, 0.5)), ("guidance_channels", 1), ("guidance_rescale", 0.5)]
)
def test_settings_of_a_second_evaluation_are_rejected_as_defaults_too(name, value):
    """They would be recorded, and have no effect."""
    with pytest.raises(InputError) as error:
        guided(**{name: value}).resolve()
    assert str(error.value) == f"{name} is {value}, but this model has its guidance built in; leave {name} out"


def test_the_line_of_settings_has_the_precision_of_the_products():
    pipe = tiny_pipeline()
    pipe.net.quantized = "int8"
    assert settings_line(pipe.resolve(), pipe, "").endswith(", guidance 1, int8")


def test_one_step_and_one_scale_are_named_in_the_singular():
    pipe = flow_map(steps=(1,), guidance=(1.5, 1.5))
    for options, line in (
        ({"steps": 3}, "steps is 3, but this model is a flow map for 1 step; the nearest is 1"),
        ({"guidance": 1}, "guidance is 1, but this model has guidance 1.5 built in; give 1.5"),
    ):
        with pytest.raises(InputError) as error:
            pipe.resolve(**options)
        assert str(error.value) == line
    line = "this model has its guidance built in, so that guide has no effect; leave it out"
    with pytest.raises(InputError) as error:
        pipe.resolve(guide=tiny_pipeline())
    assert str(error.value) == line
    line = "the guide has its guidance built in; give a weaker model of the same task without it"
    with pytest.raises(InputError) as error:
        tiny_pipeline().resolve(guide=pipe, guidance=2.0)
    assert str(error.value) == line
    line = "this model is a flow map, whose times are fixed; there is nothing to tune"
    with pytest.raises(InputError) as error:
        tune(pipe, [2], "map", 1, None)
    assert str(error.value) == line


def test_objectives_that_cannot_be_flow_maps():
    for options, line in (
        (
            {"target": "eps"},
            'the target "eps" does not determine the data at t = 1, where a flow map begins; v and x0 do',
        ),
        (
            {"process": DDPM(), "target": "v", "learn_variance": True},
            "a flow map has no reverse variance; set diffusion.learn_variance to false",
        ),
        ({"steps": ()}, "a flow map of no steps; give 1 or more"),
        ({"guidance": (2.0, 1.0)}, "built-in guidance from 2 to 1; give numbers above 0, the lower one first"),
    ):
        with pytest.raises(InputError) as error:
            FlowMap(**options)
        assert str(error.value) == line


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_it_is_exported_with_its_further_inputs(kind, tmp_path):
    pytest.importorskip("onnxruntime" if kind == "onnx" else "torch")
    assert export(flow_map(), tmp_path / "graph", kind)["network"] < 1e-5
