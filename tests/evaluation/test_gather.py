import numpy as np
import pytest
import torch
from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.data import npz as samples
from ditlab.data.base import InMemory
from ditlab.evaluation import frechet_distance, inception_score, statistics
from ditlab.evaluation import gather as module
from ditlab.evaluation.features import Extracted, Features
from ditlab.evaluation.gather import gather

QUIET = Console(quiet=True)


class Projection(Features):
    """Five random numbers of an image, and three probabilities."""

    name, weights, dimension, classes = "projection", "0", 5, ["a", "b", "c"]

    def __init__(self):
        self.calls = 0
        self.matrix = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))

    def __call__(self, images):
        self.calls += len(images)
        values = (images.float().flatten(1) / 255) @ self.matrix
        return Extracted(values[:, :5], values[:, 2:6], values[:, 5:].softmax(1))


@pytest.fixture
def images():
    images = torch.randint(256, (103, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return InMemory(images, torch.arange(103) % 3, ["a", "b", "c"])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(samples, "BLOCK", 10)
    monkeypatch.setattr(module, "BLOCK", 10)
    monkeypatch.setattr(statistics, "SPLIT", 25)
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)


def expected(images):
    return Projection()(images.images)


def test_features_that_do_not_fit_leave_no_files(tmp_path, images):
    features = Projection()
    features.channels = 3
    with pytest.raises(InputError, match="images of 1 channel"):
        gather(images, 100, features, QUIET, keep=10, folder=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_statistics_are_those_of_all_images_at_once(images):
    found = gather(images, 103, Projection(), QUIET, keep=103, batch_size=4)
    whole = expected(images)
    assert found.count == 103
    np.testing.assert_allclose(found.statistics.features.mean, whole.features.numpy().mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        found.statistics.features.covariance, np.cov(whole.features.numpy(), rowvar=False), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(found.statistics.spatial.mean, whole.spatial.numpy().mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.statistics.kept, whole.features.numpy(), rtol=1e-6)
    splits = [inception_score(part) for part in np.split(whole.probabilities.numpy(), [25, 50, 75, 100])]
    np.testing.assert_allclose(found.statistics.scores, splits, rtol=1e-6)
    assert found.statistics.accuracy == (whole.probabilities.argmax(1) == images.labels).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "world"), [(1, 1), (64, 1), (7, 2), (10, 5), (3, 20)])
def test_batches_and_processes_change_nothing(images, tmp_path, batch_size, world):
    alone = gather(images, 103, Projection(), QUIET, keep=103, batch_size=10).statistics
    for rank in range(world):
        found = gather(
            images,
            103,
            Projection(),
            QUIET,
            keep=103,
            batch_size=batch_size,
            folder=tmp_path,
            rank=rank,
            world=world,
        )
        assert (found is None) == (rank < min(world, 11) - 1)  # there are eleven blocks
    for name in ("features", "spatial"):
        mine, theirs = getattr(found.statistics, name), getattr(alone, name)
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-7)
        np.testing.assert_allclose(mine.covariance, theirs.covariance, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.statistics.scores, alone.scores, rtol=1e-6)
    np.testing.assert_allclose(found.statistics.kept, alone.kept, rtol=1e-6, atol=1e-7)
    assert found.statistics.accuracy == alone.accuracy


def test_an_interrupted_run_goes_on_on_other_processes(images, tmp_path):
    alone = gather(images, 103, Projection(), QUIET).statistics

    class Stops(Projection):
        def __call__(self, images):
            if self.calls >= 40:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        gather(images, 103, Stops(), QUIET, batch_size=10, folder=tmp_path)
    features = Projection()
    assert gather(images, 103, features, QUIET, batch_size=10, folder=tmp_path, rank=0, world=2) is None
    found = gather(images, 103, features, QUIET, batch_size=10, folder=tmp_path, rank=1, world=2).statistics
    assert features.calls == 63  # forty were done
    np.testing.assert_allclose(found.features.covariance, alone.features.covariance, rtol=1e-6, atol=1e-9)


def test_sums_of_another_run_are_rejected(images, tmp_path):
    gather(images, 103, Projection(), QUIET, folder=tmp_path)
    with pytest.raises(InputError, match="of another image count"):
        gather(images, 50, Projection(), QUIET, folder=tmp_path)


def test_unreadable_images_are_left_out(images):
    class Broken(type(images)):
        def fetch_readable(self, indices):
            return self.fetch(indices[indices % 10 != 3])

    broken = Broken.__new__(Broken)
    broken.__dict__ = vars(images)
    found = gather(broken, 103, Projection(), QUIET, keep=103)
    readable = torch.arange(103)[torch.arange(103) % 10 != 3]
    whole = expected(images).features.numpy()[readable]
    assert found.count == len(readable)
    assert frechet_distance(found.statistics.kept, whole) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(found.statistics.features.mean, whole.mean(0), rtol=1e-6)


def test_features_that_are_not_finite_are_named(images):
    class Bad(Projection):
        def __call__(self, batch):
            extracted = super().__call__(batch)
            extracted.features[batch.flatten(1).sum(1) == images.images[17].sum()] = torch.nan
            return extracted

    with pytest.raises(InputError, match="image 17 hold NaN"):
        gather(images, 103, Bad(), QUIET, batch_size=4)


def test_images_that_do_not_suit(images):
    features = Projection()
    features.channels = 3
    with pytest.raises(InputError, match="images of 1 channel; the features projection need 3"):
        gather(images, 103, features, QUIET)
    features.channels, features.size = 1, (8, 8)
    with pytest.raises(InputError, match="images of 4x4; the features projection need 8x8; give a size, or"):
        gather(images, 103, features, QUIET)


def test_kept_features_are_spread_evenly(images):
    kept = gather(images, 103, Projection(), QUIET, keep=4, batch_size=7).statistics.kept
    np.testing.assert_allclose(kept, expected(images).features.numpy()[[0, 34, 68, 102]], rtol=1e-6)


def test_torn_and_doubled_sums_are_done_again(images, tmp_path):
    alone = gather(images, 103, Projection(), QUIET).statistics
    assert gather(images, 103, Projection(), QUIET, folder=tmp_path, rank=0, world=2) is None
    (file,) = tmp_path.glob("sums-0-*.npz")
    (tmp_path / "sums-5-0.npz").write_bytes(file.read_bytes())  # the same command was given twice
    (tmp_path / "sums-6-0.npz").write_bytes(file.read_bytes()[:100])  # power was lost
    (tmp_path / "sums-7-0.npz").touch()
    features = Projection()
    found = gather(images, 103, features, QUIET, folder=tmp_path).statistics
    assert features.calls == 50  # the five blocks of the other process
    np.testing.assert_allclose(found.features.covariance, alone.features.covariance, rtol=1e-6, atol=1e-9)
