"""Schedulers of diffusers as samplers."""

import pytest
import torch
from helpers import tiny_pipeline

from ditlab.core.errors import InputError
from ditlab.core.types import Prediction
from ditlab.diffusion.process import DDPM, Linear
from ditlab.diffusion.samplers.scheduler import SCALES, SchedulerSampler

diffusers = pytest.importorskip("diffusers")
MEAN, DEVIATION = 0.5, 0.7
OPTIONS = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "DEISMultistepScheduler": {"solver_order": 1},
}


def scheduler(name, **options):
    return getattr(diffusers, name)(**OPTIONS.get(name, {}) | options)


def sampled(scheduler, process, steps=40, count=500):
    """Samples of the exact denoiser of a Gaussian."""
    sampler = SchedulerSampler(scheduler)
    times = sampler.times(process, steps)

    def denoise(x, t, s):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        x0 = MEAN + gain * (x - alpha * MEAN)
        return Prediction(x0, (x - alpha * x0) / sigma)

    source = torch.Generator().manual_seed(0)

    def noise(like):
        return torch.randn(like.shape, generator=source)

    start = noise(torch.empty(count, 1)) * float(torch.hypot(process.alpha(times[0]), process.sigma(times[0])))
    *_, last = sampler(denoise, process, start, times, noise)
    return last.x


@pytest.mark.parametrize("process", [Linear(), DDPM()], ids=["linear", "ddpm"])
@pytest.mark.parametrize("name", SCALES)
def test_samples_have_the_distribution_of_the_data(name, process):
    x = sampled(scheduler(name), process)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.05)
    few = 0.1 if "DDPM" in name or "Ancestral" in name else 0.06  # error of 40 steps; 0.02 with 200
    assert float(x.std()) == pytest.approx(DEVIATION, abs=few)


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "flow_prediction"])
def test_the_prediction_that_a_scheduler_expects(kind):
    flow = {"use_flow_sigmas": True} if kind == "flow_prediction" else {}
    given = scheduler("DPMSolverMultistepScheduler", prediction_type=kind, **flow)
    x = sampled(given, Linear())
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(x.std()) == pytest.approx(DEVIATION, abs=0.05)


def test_images_are_those_of_the_same_method():
    pipe = tiny_pipeline()
    given = pipe([0, 1], seeds=[3, 4], steps=5, sampler=scheduler("FlowMatchEulerDiscreteScheduler"), output_type="pt")
    record = given.settings[0]["settings"]
    assert record["sampler"] == "FlowMatchEulerDiscreteScheduler"
    own = pipe([0, 1], seeds=[3, 4], sampler="euler", schedule=record["schedule"], output_type="pt")
    assert torch.allclose(given.images, own.images, atol=1 / 255 + 1e-6)
    assert len(record["schedule"]) == 6
    assert record["schedule"][0] == 1


def test_noise_depends_on_the_seed_only():
    pipe = tiny_pipeline()
    ancestral = scheduler("EulerAncestralDiscreteScheduler")
    options = {"sampler": ancestral, "steps": 4, "output_type": "pt"}
    several = pipe(1, seeds=[3, 4, 5], **options).images
    assert torch.allclose(pipe(1, seeds=4, **options).images[0], several[1], atol=1 / 255 + 1e-6)
    assert not torch.equal(several[0], several[1])


@pytest.mark.parametrize(
    ("name", "options", "words", "message"),
    [
        ("HeunDiscreteScheduler", {}, {}, "scheduler HeunDiscreteScheduler is not supported; choose from: FlowMatch"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, {}, "expects a learned variance; use the sampler ddpm"),
        ("DDIMScheduler", {}, {"schedule": "cosine"}, "DDIMScheduler has its own timesteps; leave schedule out"),
        ("DDIMScheduler", {}, {"eta": 0.5}, "sampler DDIMScheduler has no eta; leave it out or use ddim"),
        ("DDIMScheduler", {}, {"steps": 0}, "steps is 0; give 1 or more"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {}, "with 20 steps: `mu` must be passed"),
    ],
)
def test_what_does_not_fit_is_an_error(name, options, words, message):
    with pytest.raises(InputError, match=message):
        tiny_pipeline()(0, sampler=scheduler(name, **options), **words)


def test_a_class_is_no_scheduler():
    kind = type(scheduler("DDIMScheduler"))
    with pytest.raises(
        InputError, match=r"sampler is the class DDIMScheduler; give a scheduler, such as DDIMScheduler"
    ):
        tiny_pipeline()(0, sampler=kind)
