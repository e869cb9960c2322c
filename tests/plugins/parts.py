"""One part of every other kind, from outside the package."""

from dataclasses import replace

import torch

import ditlab
from ditlab.conditioning import Conditioner, Encoder
from ditlab.core.types import Condition, Step, TextShape
from ditlab.data.base import InMemory
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import Process, per_image
from ditlab.evaluation.statistics import Metric
from ditlab.training.aids import Aid
from ditlab.training.objectives import TrainingObjective


def half(denoise, process, x, schedule, noise):
    """Euler that stops where half of the schedule is done, and takes the prediction of the data."""
    for i, t in enumerate(schedule[:-1]):
        prediction = denoise(x, t, schedule[i + 1])
        if i >= len(schedule) // 2:
            yield Step(i, 0.0, prediction.x0, prediction.x0)
            return
        s = schedule[i + 1]
        x = per_image(process.alpha(s), x) * prediction.x0 + per_image(process.sigma(s), x) * prediction.eps
        yield Step(i, float(s), x, prediction.x0)


def noisier(process: Process, t):
    """x0 - 2 eps: a target like any other row (a, b)."""
    return torch.ones_like(t), torch.full_like(t, -2.0)


def stripes(name):
    """64 images of 8x8 with stripes: across (class 0) or along (class 1)."""
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(64, 1, 8, generator=generator) * 6.28
    wave = ((torch.arange(8) * 1.6 + phase).sin() * 127 + 128).byte()  # (64, 1, 8)
    across, along = wave[::2, :, :, None].expand(-1, -1, 8, 8), wave[1::2, :, None, :].expand(-1, -1, 8, 8)
    labels = torch.arange(64) % 2
    images = torch.stack([across, along], dim=1).flatten(0, 1).contiguous()
    return InMemory(images, labels, ["across", "along"])


class Signs(Conditioner):
    """Class labels from -1 and 1: the index is 0 or 1, and 2 is no condition."""

    what = "sign"

    def __init__(self) -> None:
        self.config = {"kind": "signs"}

    def values(self, given):
        for value in given:
            if value not in (-1, 1, None):
                raise ditlab.InputError(f"{value} is no sign; give -1 or 1")
        return Condition(label=torch.tensor([2 if value is None else (value + 1) // 2 for value in given]))

    def null(self, count):
        return Condition(label=torch.full((count,), 2))

    def all_values(self):
        return [-1, 1]

    def network_options(self):
        return {"classes": 2}


LINES = []


class Listener:
    """A tracker that keeps what it is given."""

    def numbers(self, images, values):
        LINES.append((images, dict(values)))

    def preview(self, images, image):
        LINES.append((images, image.size))

    def close(self):
        LINES.append("closed")


ditlab.register_sampler("half", half)
ditlab.register_target("noisier", noisier)
ditlab.register_time("early", lambda u, mean, scale: u**2)
ditlab.register_weight("squared", lambda snr: snr.clamp(max=3.0) ** 2)
ditlab.register_dataset("stripes", stripes)
ditlab.register_conditioner("signs", Signs)


class Smooth(Aid):
    """A training aid: the output should change little from pixel to pixel."""

    def losses(self, run, forward, trace):
        return {"smooth": 0.01 * forward.output.diff(dim=-1).abs().flatten(1).mean(1)}


class Timid(Objective):
    """A parametrization: the network is read as usual, and half of its estimate of the data is used."""

    def denoiser(self, net):
        usual = super().denoiser(net)

        def denoise(x, t, s, condition):
            prediction = usual(x, t, s, condition)
            return replace(prediction, x0=prediction.x0 / 2)

        return denoise


class Absolute(TrainingObjective):
    """An objective of its own: the absolute error of the target."""

    parametrization = Timid

    def losses(self, run, batch, randomness):
        x0, generator = run.latents(batch, randomness), randomness.of_batch()
        condition = run.condition(batch, randomness, generator)
        t = randomness.times = randomness.part(run.pipe.objective.draw_times(randomness.batch, generator))
        forward = run.pipe.objective.regress(run.network, x0, condition, t, randomness.noise(16)(x0))
        return {"absolute": (forward.output - forward.wanted).abs().flatten(1).mean(1)}


class Vowels(Encoder):
    """A text encoder: the numbers of the vowels of a text, 1 to 5, after a 6."""

    def __init__(self) -> None:
        self.config, self.shape = {"kind": "vowels"}, TextShape(9, vocabulary=7)

    def encode(self, texts):
        tokens = torch.zeros(len(texts), 9, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            numbers = [6, *(1 + "aeiou".index(letter) for letter in text if letter in "aeiou")][:9]
            row[: len(numbers)] = torch.tensor(numbers)
        return Condition(tokens=tokens, mask=tokens > 0)

    def cut(self, text):
        return ""


def brightness(generated, reference):
    """A metric: the difference of the means of the first feature."""
    return {"brightness": float(abs(generated.features.mean[0] - reference.features.mean[0]))}


ditlab.register_aid("smooth", Smooth)
ditlab.register_encoder("vowels", Vowels)
ditlab.register_parametrization("timid", Timid)
ditlab.register_objective("absolute", Absolute)
ditlab.register_metric("brightness", Metric(frozenset(), brightness, results={"brightness": "lower"}))
ditlab.register_tracker("listener", lambda folder, seen, recipe: Listener())
