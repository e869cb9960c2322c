import json
import math
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.checkpoints import load_autoencoder
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.data.base import InMemory
from ditlab.data.latents.encode import encode
from ditlab.evaluation.features import Extracted, Features
from ditlab.evaluation.metrics import frechet_distance
from ditlab.evaluation.reconstruction import psnr
from ditlab.training import train
from ditlab.training.autoencoder import reconstruct, split, train_autoencoder
from ditlab.training.autoencoder_step import edge_error

SETTINGS = {
    "stride": 2,
    "latent_channels": 3,
    "width": 16,
    "depth": 1,
    "batch": 16,
    "lr": 3e-3,
    "log_every": 320,
    "precision": "float32",
    "device": "cpu",
}


def pictures(count=200):
    """Smooth pictures that a few numbers describe: a ramp with a direction, a mean and a colour."""
    chance = torch.Generator().manual_seed(0)
    slopes = torch.rand(count, 3, 2, 1, generator=chance) * 2 - 1
    ramp = torch.linspace(-1, 1, 8)
    planes = slopes[:, :, 0, :, None] * ramp[:, None] + slopes[:, :, 1, :, None] * ramp
    return InMemory((planes * 60 + 128).byte(), torch.arange(count) % 2, ["even", "odd"])


def run(out, images=1920, data=None, features=None, **settings):
    settings = AutoencoderTraining(images=images, **SETTINGS | settings)
    return train_autoencoder(data or pictures(), settings, out, Console(quiet=True), features=features)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("autoencoder") / "run"
    return run(out), out


@pytest.mark.slow
def test_it_learns_to_reconstruct_what_it_has_not_seen(trained):
    result, out = trained
    assert result.held_out == 10
    assert result.psnr == pytest.approx(50.9, abs=3)
    assert result.ssim > 0.995
    recorded = json.loads((out / "result.json").read_text())
    assert recorded["psnr"] == result.psnr
    flat = torch.full((1, 3, 8, 8), 128).byte()
    assert psnr(pictures().images[:50], flat.expand(50, -1, -1, -1)).mean() < result.psnr - 3
    assert Image.open(out / "reconstructions.png").size[0] > 8 * 12
    read = load_autoencoder(out)
    images = pictures().images[:50]
    assert psnr(images, reconstruct(read, images)).mean() == pytest.approx(result.psnr, abs=2)


def test_latents_have_zero_mean_and_unit_variance_in_each_channel(trained):
    autoencoder = load_autoencoder(trained[1])
    moments = autoencoder.encode(pictures().images)
    chance = torch.Generator().manual_seed(0)
    x0 = autoencoder.latents(moments, lambda like: torch.randn(like.shape, generator=chance))
    assert x0.mean((0, 2, 3)).abs().max() < 0.05
    assert x0.var((0, 2, 3)).tolist() == pytest.approx([1.0] * 3, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("saved", [False, True], ids=["killed", "signal"])
def test_resuming_equals_the_uninterrupted_run(trained, tmp_path, monkeypatch, saved):
    from ditlab.training import autoencoder as module

    class StopError(Exception):
        pass

    real, signals = module.step, []

    def interrupted(state, *arguments):
        if state.seen == 480:
            if not saved:
                raise StopError
            signals.append(signal.SIGTERM)
        return real(state, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "step", interrupted)
        patched.setattr(module, "interruption", lambda: nullcontext(signals))
        with pytest.raises(SystemExit if saved else StopError):
            run(tmp_path / "run")
    run(tmp_path / "run")
    a, b = (load_autoencoder(path).state_dict() for path in (trained[1], tmp_path / "run"))
    assert all(torch.equal(value, b[key]) for key, value in a.items())
    lines = [json.loads(line)["images"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(320, 1921, 320))


@pytest.fixture
def clock(monkeypatch):
    """A clock that a training step moves by a second. It lists the images seen and the learning rate of each step."""
    from ditlab.training import autoencoder as module

    real, clock = module.step, SimpleNamespace(now=100.0, rates=[], stop=None)

    def step(state, images, settings, rate):
        if state.seen == clock.stop:
            raise InterruptedError
        clock.now += 1
        clock.rates.append((state.seen, rate))
        return real(state, images, settings, rate)

    monkeypatch.setattr(module, "step", step)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.slow
def test_a_limit_of_time_ends_the_run_and_takes_the_learning_rate_to_zero(clock, tmp_path):
    result = run(tmp_path / "run", images=10**9, minutes=0.5, log_every=240)
    assert result.seconds == 30
    # The rate rises over a twentieth of the run, here to the second step, and then falls by a cosine over 28.5 seconds.
    expected = [0.0, 3e-3 * 2 / 3, *(3e-3 * (1 + math.cos(math.pi * (i - 1.5) / 28.5)) / 2 for i in range(2, 30))]
    assert [rate for _, rate in clock.rates] == pytest.approx(expected, abs=1e-8)
    assert [seen for seen, _ in clock.rates] == list(range(0, 480, 16))

    clock.rates.clear()
    clock.stop = 320  # after the checkpoint of 240 images
    with pytest.raises(InterruptedError):
        run(tmp_path / "paused", images=10**9, minutes=0.5, log_every=240)
    clock.stop, clock.now = None, clock.now + 1000
    assert run(tmp_path / "paused", images=10**9, minutes=0.5, log_every=240).seconds == 30
    a, b = (load_autoencoder(tmp_path / name).state_dict() for name in ("run", "paused"))
    assert all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.slow
def test_the_images_end_a_run_before_a_longer_time(clock, tmp_path):
    run(tmp_path / "run", images=640, minutes=1.0)  # 40 steps, of which each takes a second of the 60
    assert len(clock.rates) == 40
    positions = [max(seen, int(640 * i / 60)) for i, (seen, _) in enumerate(clock.rates)]
    assert positions == [seen for seen, _ in clock.rates]  # the images are further than the time: as without a limit
    expected = [3e-3 * (1 + math.cos(math.pi * (seen - 32) / 608)) / 2 for seen in positions[2:]]
    assert [rate for _, rate in clock.rates][2:] == pytest.approx(expected)
    more = run(tmp_path / "run", images=640, minutes=2.0)  # finished, because the images end it
    assert (more.seconds, len(clock.rates)) == (40, 40)


def test_edge_error_of_a_step():
    a, b = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    b[..., 4:] = 1.0  # one of 7, 3 and 1 differences along each row, at full, half and quarter size
    assert edge_error(a, b).item() == pytest.approx((1 / 7 + 1 / 3 + 1) / 3)
    assert edge_error(a + 5, a).item() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "stride is 0; give 1 to 256"),
        ({"latent_channels": 13}, "13 latent channels.*at most 12 latent channels"),
        ({"stride": 3}, "8x8 with an autoencoder of stride 3"),
        ({"stride": 16}, "8x8 with an autoencoder of stride 16"),
        ({"held_out": 0.001}, "200 images, of which a share of 0.001 is held out; give more images"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_another_run_is_not_overwritten(trained, tmp_path):
    with pytest.raises(InputError, match=r"holds another run \(width is 16 there, 24 here\)"):
        run(trained[1], width=24)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="exists and holds no autoencoder run"):
        run(tmp_path)


def latent_recipe(source, **data):
    return parse_recipe(
        {"data": {"source": str(source)} | data, "model": {"width": 32, "depth": 1, "heads": 2, "patch": 2}}
        | {"train": {"images": 64, "batch": 16, "precision": "float32"}, "sample": {"sampler": "euler", "steps": 2}}
    )


@pytest.mark.slow
def test_training_on_a_cache_and_sampling(trained, tmp_path):
    autoencoder = load_autoencoder(trained[1])
    encode(pictures(), "ramps", autoencoder, tmp_path / "cache", Console(quiet=True), dtype="fp32")
    pipe = train(latent_recipe(tmp_path / "cache"), tmp_path / "run", console=Console(quiet=True))
    assert (pipe.net.channels, pipe.net.size, pipe.classes) == (3, (4, 4), ["even", "odd"])
    drawn = ditlab.load(tmp_path / "run")(["odd"], seeds=[0, 1], output_type="pt").images
    assert drawn.shape == (2, 3, 8, 8)
    other = load_autoencoder(trained[1], scale=2.0)
    ditlab.checkpoints.save_autoencoder(other, tmp_path / "other")
    with pytest.raises(InputError, match=r"was made with autoencoder .*, not with .*, which this run uses; encode"):
        train(latent_recipe(tmp_path / "cache", autoencoder=str(tmp_path / "other")), tmp_path / "run2")
    (tmp_path / "cache" / "autoencoder" / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    with pytest.raises(InputError, match="which is saved beside it; encode the images again"):
        train(latent_recipe(tmp_path / "cache"), tmp_path / "run2")


def test_the_measured_precision_is_kept_when_a_run_resumes(tmp_path, monkeypatch):
    from ditlab.training import autoencoder_step

    def measured(step, device, width):
        step(torch.bfloat16)
        return torch.bfloat16

    monkeypatch.setattr(autoencoder_step, "faster_dtype", measured)
    run(tmp_path / "run", images=32, precision="auto")
    assert torch.load(tmp_path / "run" / "training.pt")["precision"] == "bfloat16"
    monkeypatch.setattr(autoencoder_step, "faster_dtype", None)  # it is not measured again
    run(tmp_path / "run", images=32, precision="auto")


def test_frechet_distances_are_those_of_the_features_that_are_given(trained, tmp_path):
    class Corners(Features):
        name, weights, dimension = "corners", "", 3

        def __call__(self, images):
            return Extracted(images[..., 0, 0].float())

    result = run(trained[1], features=Corners())
    training, held_out = split(200, AutoencoderTraining(**SETTINGS))
    images, autoencoder = pictures().images, load_autoencoder(trained[1])
    corners = {"real": images[held_out, :, 0, 0].float(), "other": images[training, :, 0, 0].float()}
    made = reconstruct(autoencoder, images[held_out])[..., 0, 0].float()
    assert result.fd.features == "corners"
    assert result.fd.real == pytest.approx(frechet_distance(corners["real"], corners["other"]))
    assert result.fd.reconstructed == pytest.approx(frechet_distance(made, corners["other"]), rel=1e-4)
    assert json.loads((trained[1] / "result.json").read_text())["fd"]["real"] == result.fd.real
    with pytest.raises(
        InputError, match="1 held-out image has no Frechet distance; give more images, or a larger held"
    ):
        run(tmp_path / "few", data=pictures(20), features=Corners())
