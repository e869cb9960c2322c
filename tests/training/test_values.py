"""Images of any type and any number of channels, from training to files and scores."""

import json
import logging
import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import Numbers, numbers
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.autoencoders import Patch
from ditlab.checkpoints import load_autoencoder
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError, RunError
from ditlab.core.values import PixelValues
from ditlab.data import Latents
from ditlab.data.latents.encode import encode
from ditlab.data.npz import read_values
from ditlab.evaluation.features import FEATURES
from ditlab.evaluation.features.base import Extracted, Features
from ditlab.evaluation.memorization import memorization
from ditlab.evaluation.protocols import evaluate
from ditlab.evaluation.references import Decoded, make_reference, write_reference
from ditlab.evaluation.seen import converted
from ditlab.inference.npz import write_samples
from ditlab.inference.samples import Samples
from ditlab.training import train
from ditlab.training.autoencoder import reconstruct, train_autoencoder
from ditlab.training.preview import preview

QUIET = Console(quiet=True)
TINY = {
    "model": {"name": "DiT-S/4", "width": 16, "depth": 1, "heads": 2},
    "train": {"images": 16, "batch": 8, "precision": "float32", "compile": "never", "device": "cpu"}
    | {"log_every": 8, "preview_every": 8, "save_every": 8},
    "sample": {"sampler": "euler", "steps": 2},
}
TWELVE_BITS = PixelValues("uint16", (0.0,), (4095.0,))
STANDARD = PixelValues(
    "int16", (-1000.0, 0.0, 0.0), (3000.0, 100.0, 7.0), mean=(400.0, 50.0, 3.0), std=(900.0, 20.0, 1.5)
)
FLOAT = PixelValues("float32", (-1.5,), (2.5,))
KINDS = {
    "2 of uint8": (2, PixelValues()),
    "4 of uint8": (4, PixelValues()),
    "13 of 12 bits": (13, TWELVE_BITS),
    "1 of float32": (1, FLOAT),
    "3 of int16, standardized": (3, STANDARD),
}
QUICK = ("13 of 12 bits", "1 of float32")
every_kind = pytest.mark.parametrize(
    ("channels", "values"),
    [pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, case in KINDS.items()],
)


def data_of(channels, values):
    return numbers(channels, values.dtype, values)


def tiny(images=16):
    return parse_recipe(TINY | {"train": TINY["train"] | {"images": images}})


class Means(Features):
    """The mean of each quarter of the first shown channel."""

    name, weights, dimension = "means", "none", 4

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[1] in (1, 3)
        self.seen.append(images)
        return Extracted(torch.nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 2).flatten(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model that was trained on the images of a kind."""

    @cache
    def model(channels, values):
        return train(tiny(), tmp_path_factory.mktemp("run"), data=data_of(channels, values), console=QUIET)

    return model


@pytest.fixture
def means(monkeypatch):
    """A small feature network under the name "means"."""
    features = Means()
    monkeypatch.setitem(FEATURES, "means", lambda weights, device: features)
    return features


def quantum(values):
    """The least difference of two numbers that counts: 1, and a 24-bit fraction of the range for float32."""
    return 1 if "int" in values.dtype else (values.high[0] - values.low[0]) * 2**-22


def difference(a, b):
    return np.abs(a.astype(np.float64) - b.astype(np.float64)).max()


@every_kind
def test_numbers_return_from_the_scale_of_the_network(channels, values):
    data = data_of(channels, values)
    x = data.fetch(torch.arange(32)).x
    assert x.dtype == (torch.uint8 if values.eight_bits else torch.float32)
    returned = values.restored(x).numpy()
    assert returned.dtype == data.numbers.dtype
    assert difference(returned, data.numbers) < quantum(values)


@pytest.mark.slow
@every_kind
def test_train_resume_sample_save_and_load(channels, values, tmp_path):
    data = data_of(channels, values)
    whole = train(tiny(), tmp_path / "whole", data=data, console=QUIET)
    train(tiny(images=8), tmp_path / "parts", data=data, console=QUIET)
    parts = train(tiny(), tmp_path / "parts", data=data, console=QUIET)
    for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert sorted(file.name for file in (tmp_path / "whole" / "previews").iterdir()) == [
        "000000000008.png", "000000000016.png",
    ]  # fmt: skip
    loaded = ditlab.load(tmp_path / "whole")
    assert loaded.values == values
    assert ("values" in loaded.config) == (not values.eight_bits)
    assert loaded.picture_shape == (channels, (8, 8))
    samples = loaded([0, 1], seeds=[0, 1], output_type="native").images
    assert samples.shape == (2, 8, 8, channels)
    assert samples.dtype == data.numbers.dtype
    assert np.array_equal(samples, whole([0, 1], seeds=[0, 1], output_type="native").images)
    floats = loaded([0, 1], seeds=[0, 1], output_type="np").images
    assert 0 <= floats.min() <= floats.max() <= 1
    low, high = np.array(values.low, np.float64), np.array(values.high, np.float64)
    expected = np.clip((samples.astype(np.float64) - low) / (high - low), 0, 1)
    assert np.abs(floats - expected).max() <= 0.51 * quantum(values) / (high - low).min() + 1e-6
    loaded.save(tmp_path / "copy")
    assert ditlab.load(tmp_path / "copy").values == values


@every_kind
def test_files_hold_the_shown_channels_or_all_numbers(channels, values, tmp_path, trained):
    pipe = trained(channels, values)
    out = pipe([0, 1], seeds=[0, 1])
    samples = pipe([0, 1], seeds=[0, 1], output_type="native").images
    assert [file.name for file in out.save(tmp_path / "x.npy")] == ["x-0.npy", "x-1.npy"]
    read = np.load(tmp_path / "x-1.npy")
    assert read.dtype == samples.dtype
    assert np.array_equal(read, samples[1])
    out.save(tmp_path / "x.png")
    shown = np.asarray(Image.open(tmp_path / "x-1.png")).reshape(8, 8, -1)
    assert shown.shape == (8, 8, 3 if channels >= 3 else 1)
    low, high = (np.broadcast_to(np.float64(end), channels)[: shown.shape[2]] for end in (values.low, values.high))
    expected = np.clip((samples[1][..., : shown.shape[2]].astype(np.float64) - low) / (high - low), 0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.5 + 255 * 0.51 * quantum(values) / (high - low).min()
    with pytest.raises(InputError, match=r"give a name that ends in .png or .npy"):
        out.save(tmp_path / "x.gif")


@every_kind
def test_features_see_the_shown_channels_as_8_bits(channels, values, tmp_path, trained, means):
    data, pipe = data_of(channels, values), trained(channels, values)
    write_reference("numbers", data, means, tmp_path / "real.npz", QUIET, with_images=True)
    seen = torch.cat(means.seen)
    assert torch.equal(seen, values.displayed(data.fetch(torch.arange(32)).x))
    with np.load(tmp_path / "real.npz") as file:
        assert file["arr_0"].shape == (32, 8, 8, seen.shape[1])
        assert np.array_equal(file["arr_0"], seen.permute(0, 2, 3, 1).numpy())
    result = evaluate(
        pipe, reference=str(tmp_path / "real.npz"), features="means", count=8, out=tmp_path / "results", device="cpu"
    )
    shown = "channels 1, 2, 3" if channels >= 3 else "channel 1"
    assert result.notes[0] == f"features see {shown} of {channels}, as 8 bits"
    assert np.isfinite(result.metrics["fd_means"])
    assert (result.folder / "grid.png").exists()
    copies = memorization(pipe_samples(pipe), data, held_out(data), means, tmp_path / "near.png", protocol={})
    assert copies.samples == 8
    assert Image.open(tmp_path / "near.png").size[0] > 100


def pipe_samples(pipe):
    return Samples(pipe, 8, labels="balanced", seed=0, batch_size=8, options={})


def held_out(data):
    return Numbers(data.numbers[::-1, :, ::-1].copy(), data.values)


@every_kind
def test_sample_files_hold_all_numbers(channels, values, tmp_path, trained):
    data, pipe = data_of(channels, values), trained(channels, values)
    write_samples(pipe, tmp_path, QUIET, count=4, labels="balanced", seed=0, batch_size=4, options={})
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].dtype == data.numbers.dtype
        assert np.array_equal(file["arr_0"], pipe([0, 1, 0, 1], seeds=range(4), output_type="native").images)
    assert read_values(tmp_path / "samples.npz") == (None if values.eight_bits else values)


@pytest.mark.slow
@every_kind
def test_an_autoencoder_and_a_latent_cache(channels, values, tmp_path):
    data = data_of(channels, values)
    settings = AutoencoderTraining(
        stride=2, latent_channels=4 * channels, width=4, depth=1, images=16, batch=8, held_out=0.25, precision="float32"
    )
    result = train_autoencoder(data, settings, tmp_path / "autoencoder", QUIET)
    # All components of a patch are kept, so that only the posterior's clamp and a few steps of training lose anything.
    assert result.psnr > 25
    assert Image.open(tmp_path / "autoencoder" / "reconstructions.png").size[0] > 200
    autoencoder = load_autoencoder(tmp_path / "autoencoder")
    encode(data, "numbers", autoencoder, tmp_path / "cache", QUIET, dtype="fp32")
    cache = Latents(tmp_path / "cache")
    assert cache.values == values
    decoded = Decoded(cache, torch.device("cpu"))
    first = torch.arange(4)
    assert torch.allclose(
        decoded.fetch(first).x.float(), reconstruct(autoencoder, data.fetch(first).x, values).float(), atol=1e-5
    )
    pipe = train(tiny(), tmp_path / "run", data=cache, console=QUIET)
    assert ditlab.load(tmp_path / "run").values == values
    samples = pipe([0, 1], seeds=[0, 1], output_type="native").images
    assert (samples.shape, samples.dtype) == ((2, 8, 8, channels), data.numbers.dtype)


def test_an_untrained_linear_autoencoder_with_all_components_loses_less_than_one_quantum():
    data = data_of(13, TWELVE_BITS)
    x = data.fetch(torch.arange(32)).x
    patch = Patch(13, 52, 2, width=4, depth=1).eval()
    patch.start_from(x)
    returned = TWELVE_BITS.restored(reconstruct(patch, x, TWELVE_BITS))
    assert difference(returned.numpy(), data.numbers) < 1


@pytest.mark.slow
def test_resuming_with_other_values_is_asked_about(tmp_path):
    data = data_of(2, TWELVE_BITS)
    train(tiny(images=8), tmp_path, data=data, console=QUIET)
    other = Numbers(data.numbers, replace(TWELVE_BITS, high=(10_000.0,)))
    with pytest.raises(InputError, match=r"values uint16, 0\.\.4095 there, uint16, 0\.\.10000 here.*allow changes"):
        train(tiny(), tmp_path, data=other, console=QUIET)
    shown = Numbers(data.numbers, replace(TWELVE_BITS, shown=(2,)))
    assert train(tiny(), tmp_path, data=shown, console=QUIET).values.shown == (2,)
    assert train(tiny(images=24), tmp_path, data=other, changes=True, console=QUIET).values == other.values
    assert ditlab.load(tmp_path).values == other.values


def test_resuming_with_another_number_of_channels_is_refused(tmp_path):
    train(tiny(images=8), tmp_path, data=data_of(2, TWELVE_BITS), console=QUIET)
    with pytest.raises(
        InputError, match=r"holds another run .the input of the network is 2x8x8 there, 3x8x8 here.; give the same"
    ):
        train(tiny(), tmp_path, data=data_of(3, TWELVE_BITS), changes=True, console=QUIET)


def test_the_model_card_states_channels_type_and_range(tmp_path, trained):
    trained(13, TWELVE_BITS).save(tmp_path / "thirteen")
    line = "- images: 13 channels of uint16, 0..4095; PNG files show channels 1, 2, 3\n"
    assert line in (tmp_path / "thirteen" / "README.md").read_text()


def test_a_failing_preview_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    console = Console(record=True, quiet=False, file=open(os.devnull, "w"), width=200)  # noqa: SIM115

    def broken(*_):
        raise ZeroDivisionError("no columns")

    monkeypatch.setattr("ditlab.training.preview.contact_sheet", broken)
    with caplog.at_level(logging.INFO, "ditlab"):
        pipe = train(tiny(), tmp_path, data=data_of(2, FLOAT), console=console)
    assert pipe.config["images_seen"] == 16
    said = console.export_text()
    assert said.count("no preview at") == 1
    assert "no preview at 8 images (ZeroDivisionError: no columns); training continues" in said
    assert sum("ZeroDivisionError" in (record.exc_text or "") for record in caplog.records) == 2  # with a traceback
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000000000008", "000000000016"]


def test_a_reference_with_other_values_is_refused_and_real_images_are_converted(tmp_path, trained, means):
    data = data_of(2, TWELVE_BITS)
    wide = Numbers(data.numbers, replace(TWELVE_BITS, high=(65535.0,)))
    pipe = trained(2, TWELVE_BITS)
    make_reference("wide", wide, means, QUIET).save(tmp_path / "wide.npz")
    with pytest.raises(InputError, match=r"images of uint16, 0\.\.4095 against a reference of uint16, 0\.\.65535"):
        evaluate(pipe, reference=str(tmp_path / "wide.npz"), features="means", count=8, out=tmp_path, device="cpu")
    first = torch.arange(8)
    same = converted(wide, TWELVE_BITS).fetch(first).x
    assert (same - data.fetch(first).x).abs().max() < 1e-6
    assert converted(data, TWELVE_BITS) is data


def test_features_of_fewer_channels_name_the_setting_that_shows_them(tmp_path, trained, means):
    pipe, means.channels, means.size = trained(13, TWELVE_BITS), 1, (8, 8)
    options = {"features": "means", "count": 8, "out": tmp_path, "device": "cpu"}
    data = data_of(13, TWELVE_BITS)
    data.values = data.values.showing((4,), 13)
    make_reference("numbers", data, means, QUIET).save(tmp_path / "real.npz")
    with pytest.raises(InputError) as error:
        evaluate(pipe, reference=str(tmp_path / "real.npz"), **options)
    assert str(error.value) == (
        "images that show 3 channels of 13; the features means need 1; choose 1 channel with show, or choose other "
        "features"
    )
    result = evaluate(pipe, reference=str(tmp_path / "real.npz"), show=(4,), **options)
    assert result.notes[0] == "features see channel 4 of 13, as 8 bits"
    assert pipe.values.shown == ()
    means.size = (4, 8)
    with pytest.raises(InputError, match="images of 8x8; the features means need 4x8; give a size, or choose other"):
        evaluate(pipe, reference=str(tmp_path / "real.npz"), show=(4,), **options)


def test_shown_channels_are_part_of_the_identity_of_scores(trained):
    pipe = replace(trained(13, TWELVE_BITS), config=dict(trained(13, TWELVE_BITS).config))
    before = pipe.identity()
    pipe.values = pipe.values.showing((4, 3, 2), 13)
    assert pipe.identity()["values"]["shown"] == [4, 3, 2]
    assert before["values"]["shown"] == []
    x = pipe(0, seeds=0, output_type="native").images[0]
    png = np.asarray(pipe(0, seeds=0).images[0])
    assert np.abs(png - x[..., [3, 2, 1]] * (255 / 4095)).max() <= 0.6


@pytest.mark.parametrize(
    ("shown", "line"),
    [((1, 2), "shown channels 1, 2; give one or three numbers from 1 to 13"), ((14,), "shown channels 14; give")],
)
def test_shown_channels_that_do_not_exist(shown, line):
    with pytest.raises(InputError, match=line):
        TWELVE_BITS.showing(shown, 13)


def test_images_to_start_from_are_8_bits(trained):
    line = "this model generates 13 channels of uint16, 0..4095, and images to start from are gray or RGB with 8 bits"
    with pytest.raises(InputError, match=line):
        trained(13, TWELVE_BITS)(0, image=Image.new("RGB", (8, 8)))


def test_folders_of_ordinary_images_hold_no_values(tmp_path):
    train(tiny(images=8), tmp_path / "run", data=data_of(3, PixelValues()), console=QUIET)
    config = json.loads((tmp_path / "run" / "checkpoints" / "000000000008" / "config.json").read_text())
    assert "values" not in config


def test_a_process_that_fails_does_not_keep_the_others_waiting(trained):
    class Place:
        """The first of two processes; the other one collects nothing."""

        rank, world, first = 0, 2, True
        collected = 0

        def collect(self, values):
            self.collected += 1
            return values

    place = Place()
    pipe = trained(2, TWELVE_BITS)
    with pytest.raises(RunError, match="another process could not generate its part"):
        preview([pipe, pipe], place)
    broken = replace(pipe, config=pipe.config | {"sample": {"sampler": "none"}})
    with pytest.raises(InputError, match='unknown sampler "none"'):
        preview([pipe, broken], place)
    assert place.collected == 4
