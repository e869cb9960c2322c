import pytest
import torch
from helpers import relative, tiny_pipeline

from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.diffusion.guidance import autoguidance, cfg
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM


class Counting:
    """A denoiser that counts the images it is asked for."""

    def __init__(self, pipe):
        self.denoiser = pipe.objective.denoiser(pipe.net)
        self.images = 0

    def __call__(self, x, t, s, condition):
        self.images += len(x)
        with torch.no_grad():
            return self.denoiser(x, t, s, condition)


def labels(*indices):
    return Condition(label=torch.tensor(indices))


T = torch.tensor(0.6, dtype=torch.float64)


@pytest.mark.parametrize(("file", "channels"), [("dit_p2", 4), ("dit_p4_rgb_nosigma", 3)])
def test_three_channel_guidance_agrees_with_dit(golden, file, channels):
    vectors = golden(file)
    variance = channels == 4
    size, patch = (8, 2) if variance else (16, 4)
    width, depth, heads, classes = (48, 2, 4, 10) if variance else (32, 1, 2, 5)
    net = create("DiT-S/2", size=size, channels=channels, classes=classes, learn_variance=variance, width=width,
                 depth=depth, heads=heads, patch=patch)  # fmt: skip
    net.load_state_dict({k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")})
    denoiser = Objective(DDPM(), "eps", learn_variance=variance).denoiser(net)
    for i, index in enumerate(vectors["t"].tolist()):  # one time for each image there, one for the batch here
        time = torch.tensor((index + 1) / 1000, dtype=torch.float64)
        with torch.no_grad():
            prediction = cfg(denoiser, Condition(label=vectors["y"][i : i + 1]), labels(classes), 1.5, channels=3)(
                vectors["x"][i : i + 1], time, time
            )
        expected = vectors["out_cfg_first3_scale1.5"][i : i + 1]
        assert relative(prediction.eps, expected[:, :channels]) < 1e-5
        if variance:
            assert relative(prediction.variance_mix * 2 - 1, expected[:, channels:]) < 1e-5


def test_scale_mixes_the_two_predictions():
    pipe = tiny_pipeline()
    counting = Counting(pipe)
    x, y = torch.randn(2, 1, 8, 8), labels(0, 2)
    conditional, unconditional = counting(x, T, T, y), counting(x, T, T, labels(3, 3))
    guided = cfg(counting, y, labels(3, 3), 2.5)(x, T, T)
    for name in ("x0", "eps"):
        c, u = getattr(conditional, name), getattr(unconditional, name)
        assert torch.allclose(getattr(guided, name), u + 2.5 * (c - u), atol=1e-5)
    assert torch.allclose(cfg(counting, y, labels(3, 3), 0.0)(x, T, T).x0, unconditional.x0, atol=1e-5)


def test_outside_the_interval_the_unconditional_half_is_not_computed():
    counting = Counting(tiny_pipeline())
    y = labels(0, 1)
    denoise = cfg(counting, y, labels(3, 3), 3.0, interval=(0.2, 0.7))
    x = torch.randn(2, 1, 8, 8)
    for t, images in ((0.1, 2), (0.2, 4), (0.7, 4), (0.71, 2)):
        counting.images = 0
        time = torch.tensor(t, dtype=torch.float64)
        prediction = denoise(x, time, time)
        assert counting.images == images
        if images == 2:
            assert torch.equal(prediction.x0, counting(x, time, time, y).x0)


def test_scale_one_costs_one_evaluation():
    counting = Counting(tiny_pipeline())
    cfg(counting, labels(1), labels(3), 1.0)(torch.randn(1, 1, 8, 8), T, T)
    assert counting.images == 1


def test_channels_limit_guidance():
    pipe = tiny_pipeline(channels=4)
    counting = Counting(pipe)
    x, y = torch.randn(1, 4, 8, 8), labels(1)
    some, all_, none = (
        cfg(counting, y, labels(3), s, channels=c)(x, T, T).x0 for s, c in ((2.0, 3), (2.0, None), (1.0, None))
    )
    assert torch.equal(some[:, :3], all_[:, :3])
    assert torch.allclose(some[:, 3:], none[:, 3:], atol=1e-6)  # alone or in a batch of two: other rounding


def test_autoguidance_steers_away_from_the_guide():
    strong, weak = Counting(tiny_pipeline()), Counting(tiny_pipeline(depth=1))
    x, y = torch.randn(2, 1, 8, 8), labels(0, 2)
    s, w = strong(x, T, T, y).x0, weak(x, T, T, y).x0
    assert torch.allclose(autoguidance(strong, weak, y, 1.8)(x, T, T).x0, w + 1.8 * (s - w), atol=1e-5)
    weak.images = 0
    autoguidance(strong, weak, y, 1.8, interval=(0.7, 0.9))(x, T, T)
    assert weak.images == 0


def test_empty_interval_is_rejected():
    with pytest.raises(InputError, match=r"0\.7 to 0\.2 is empty"):
        cfg(Counting(tiny_pipeline()), labels(0), labels(3), 2.0, interval=(0.7, 0.2))
