import json
from dataclasses import replace

import pytest
import torch
from helpers import tiny_pipeline

from ditlab.config.sampling import ALIASES, NAMES, PRESETS, Sample, SamplingOptions
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.diffusion.samplers import SAMPLERS
from ditlab.diffusion.samplers.euler import euler
from ditlab.inference.plan import resolve


@pytest.fixture
def pipe():
    return tiny_pipeline()


def latents(pipe, **options):
    return pipe([0, 1], **{"seeds": [3, 4], "output_type": "latent"} | options).images


def test_every_setting_has_one_name_and_accepted_aliases(pipe):
    expected = latents(pipe, steps=4, sampler="euler", guidance=2.0, guidance_interval=(0.1, 0.8), schedule="cosine")
    diffusers = latents(
        pipe, num_inference_steps=4, sampler="euler", guidance_scale=2.0, interval=(0.1, 0.8), grid="cosine"
    )
    assert torch.equal(diffusers, expected)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    options = {"steps": 2, "output_type": "latent"}
    plain = pipe([0, 1], seeds=[3, 4], **options).images
    assert torch.equal(pipe(class_labels=[0, 1], generator=generators, **options).images, plain)
    assert torch.equal(pipe([0, 1], generator=generators[0], **options).images, plain)  # then the next number
    several = pipe([0, 1], seeds=3, num_images_per_prompt=2, **options).images
    assert torch.equal(several, pipe([0, 0, 1, 1], seeds=[3, 4, 5, 6], **options).images)
    assert set(ALIASES.values()) <= set(NAMES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": 3}, 'unknown setting "step"; did you mean "steps"'),
        ({"guidence": 3}, 'did you mean "guidance"'),
        ({"seed": 3}, 'unknown setting "seed"; did you mean "seeds"'),
        ({"cfg_scale": 3}, 'unknown setting "cfg_scale"; give "guidance"'),
        ({"return_dict": False}, 'unknown setting "return_dict"; leave it out: the result has the attribute images'),
        ({"steps": 3, "num_inference_steps": 3}, "steps and num_inference_steps are the same setting"),
        ({"labels": 0, "class_labels": 0}, "labels and class_labels are the same setting"),
        ({"seeds": 0, "generator": torch.Generator()}, "seeds and generator are the same setting"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0"),
        ({"steps": 2.5}, "steps 2.5; give a whole number"),
        ({"steps": "many"}, "steps 'many'; give a whole number"),
        ({"guidance": "high"}, "guidance 'high'; give a number"),
        ({"guidance_interval": 0.5}, "guidance_interval 0.5; give two times"),
        ({"guidance_interval": (0.5, 0.1)}, "guidance interval 0.5 to 0.1 is empty"),
        ({"schedule": [1.0, 0.5, 0.5, 0.0]}, "must fall from at most 1 to 0"),
        ({"schedule": torch.tensor([1.0, 0.5])}, "must fall from at most 1 to 0"),
        ({"schedule": [1.0, 0.5, 0.0], "steps": 3}, "3 steps with a schedule of 2"),
        ({"size": (15, 16)}, "size 15x16; sides must be multiples of 2: give 16x16, the nearest one"),
        ({"mask": 1}, "need an image to start from"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_work(pipe, monkeypatch, options, words):
    monkeypatch.setattr(type(pipe.net), "forward", lambda *args: pytest.fail("the network ran"))
    with pytest.raises(InputError, match=words):
        pipe(**options)


def test_a_sampler_function_and_times_are_settings_too(pipe):
    times = torch.tensor([1.0, 0.6, 0.2, 0.0])
    assert torch.equal(latents(pipe, sampler=euler, steps=5), latents(pipe, sampler="euler", steps=5))
    plan = pipe.resolve(sampler=euler, schedule=times)
    assert (plan.options.sampler, plan.options.steps, plan.options.schedule) == ("euler", 3, "custom")
    assert plan.settings()["schedule"] == pytest.approx(times.tolist())
    assert torch.equal(latents(pipe, sampler="euler", schedule=times), latents(pipe, sampler=euler, schedule=[*times]))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_evaluations_are_those_that_the_network_sees(sampler, guided, learned):
    objective = Objective(DDPM(), "eps", learn_variance=True) if learned else Objective()
    pipe = tiny_pipeline(objective=objective, learn_variance=learned)
    options = {"sampler": sampler, "steps": 6, "guidance": 2.0 if guided else 1.0, "guidance_interval": (0.2, 0.7)}
    rows = []
    handle = pipe.net.blocks[0].register_forward_pre_hook(lambda net, arguments: rows.append(len(arguments[0])))
    pipe(0, seeds=0, **options)
    handle.remove()
    plan = pipe.resolve(**options)
    assert plan.evaluations == sum(rows)
    if not guided:
        assert plan.evaluations == {"heun": 11, "ab4": 7}.get(sampler, 6)


def test_evaluations_of_image_to_image_and_in_painting(pipe):
    from PIL import Image

    image, mask = Image.new("L", (8, 8), 90), Image.new("L", (8, 8), 255)
    half = pipe.original(image, strength=0.5)
    assert pipe.resolve(steps=8, sampler="euler", original=half).evaluations == 4
    twice = pipe.original(image, mask=mask, resample=2)
    plan = pipe.resolve(steps=8, sampler="euler", original=twice)
    assert (plan.steps, plan.evaluations) == (16, 16)


def test_explicit_settings_precede_presets_and_presets_precede_defaults():
    own = Sample(steps=9, guidance=3.0)
    objective = Objective()

    def settings(words, defaults=own):
        options = resolve(words, objective, defaults=defaults).options
        return options.steps, options.sampler, options.guidance

    assert settings({}) == (9, "heun", 3.0)
    assert settings({"preset": "draft"}) == (5, "ab4", 3.0)
    assert settings({"preset": "draft", "steps": 7}) == (7, "ab4", 3.0)
    assert settings({"preset": "dit-published"}) == (250, "ddpm", 1.5)
    assert settings({}, replace(own, preset="draft")) == (9, "ab4", 3.0)  # a recipe's own steps precede its preset
    assert settings({}, Sample(preset="draft")) == (5, "ab4", 1.0)
    assert settings({"guidance": 2.0}, Sample(preset="dit-published")) == (250, "ddpm", 2.0)


def test_an_unconditional_model_has_no_guidance():
    plan = resolve({}, Objective(), defaults=Sample(guidance=3.0), conditional=False)
    assert (plan.guidance, plan.evaluations) == (1.0, 39)
    with pytest.raises(InputError, match="guidance 2 on an unconditional model"):
        resolve({"guidance": 2.0}, Objective(), conditional=False)


def test_the_help_of_presets_names_all_of_them():
    text = __import__("inspect").getsource(SamplingOptions)
    assert all(name in text for name in PRESETS)


def test_saved_settings_of_the_previous_version_are_read():
    saved = {"sampler": "dpmpp", "steps": 5, "grid": "cosine", "guidance": 1.2, "interval": [0.1, 0.9]}
    assert Sample.read(saved) == Sample(
        sampler="dpmpp", steps=5, schedule="cosine", guidance=1.2, guidance_interval=(0.1, 0.9)
    )
    with pytest.raises(InputError, match="interval and guidance_interval are the same setting"):
        Sample.read(saved | {"guidance_interval": [0, 1]})
    assert json.dumps(Sample().given())
