"""Features that are trained on the images of a user, and the score of samples in them."""

import re
from math import sqrt
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import InMemory, open_dataset
from ditlab.evaluation import frechet_distance, own, precision_recall
from ditlab.evaluation.features import open_features
from ditlab.evaluation.features.base import Extracted, Features
from ditlab.evaluation.features.own import Training, confused_pairs, train_features
from ditlab.evaluation.own import OwnScore, disjoint_subsets, score_own

QUIET = Console(quiet=True)


def solid(count, classes=3, size=(8, 8), channels=3, seed=0):
    """Images of one color for each class, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    level = 255 * labels / max(1, classes - 1)
    noise = torch.randint(-9, 10, (count, channels, *size), generator=generator)
    images = (level[:, None, None, None] + noise).clamp(0, 255).byte()
    return InMemory(images, labels, [f"class {i}" for i in range(classes)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Features of solid colors, and their file."""
    file = tmp_path_factory.mktemp("features") / "own.safetensors"
    return train_features(solid(60), file, QUIET, steps=60, held_out=solid(30, seed=1)), file


class TestFeatures:
    def test_solid_colors_are_told_apart(self, trained):
        features, _ = trained
        training = features.training
        assert (training.accuracy, training.held_out, training.confused) == (1.0, 30, ())
        assert (training.steps, training.images, training.side, training.channels) == (60, 60, 8, 3)
        assert training.lines() == [
            "60 steps on 60 images; 100.0% ± 0.0% of 30 held-out images are classified correctly"
        ]
        assert features.classes == ["class 0", "class 1", "class 2"]
        extracted = features(solid(9, size=(40, 20), seed=2).images)  # of another size
        assert extracted.features.shape == (9, 64)
        assert extracted.probabilities.argmax(1).tolist() == [0, 1, 2] * 3

    def test_there_and_back(self, trained):
        features, file = trained
        read = open_features("own", str(file))
        assert (read.training, read.weights, read.name) == (features.training, features.weights, "own")
        images = solid(5, seed=3).images
        assert torch.equal(read(images).features, features(images).features)

    @pytest.mark.slow
    def test_the_same_steps_give_the_same_network(self, trained, tmp_path):
        features, _ = trained
        again = train_features(solid(60), tmp_path / "b.safetensors", QUIET, steps=60)
        assert again.weights == features.weights
        assert again.training.data == features.training.data
        other = train_features(solid(60), tmp_path / "c.safetensors", QUIET, steps=1, seed=1)
        assert other.weights != train_features(solid(60), tmp_path / "c.safetensors", QUIET, steps=1).weights

    def test_the_time_ends_the_training(self, tmp_path):
        assert train_features(solid(9), tmp_path / "a.safetensors", QUIET, minutes=1e-9).training.steps == 1

    @pytest.mark.parametrize(
        "data",
        [
            solid(10, classes=1),
            solid(1, classes=1),
            solid(11, classes=10),
            solid(1001, classes=1000, channels=1),
            solid(8, size=(8, 32)),
            solid(8, size=(33, 70), channels=1),
            solid(8, size=(1, 1)),
            InMemory(solid(8).images, torch.zeros(8, dtype=torch.long), []),
            InMemory(torch.rand(8, 5, 8, 8) * 7 - 3, torch.arange(8) % 2, ["a", "b"]),
        ],
        ids=["one class", "one image", "a class of one", "1,000 classes", "4:1", "gray", "1x1", "flat", "5 channels"],
    )
    def test_any_images(self, data, tmp_path):
        features = train_features(data, tmp_path / "a.safetensors", QUIET, steps=1)
        extracted = features(data.values.displayed(data.fetch(torch.arange(2) % len(data)).x))
        assert extracted.features.isfinite().all()
        several = len(data.classes) > 1
        assert features.classes == (data.classes if several else None)
        assert (extracted.probabilities is not None) == several
        assert open_features("own", str(tmp_path / "a.safetensors")).weights == features.weights

    @pytest.mark.slow
    def test_rotations_are_learned_without_classes(self, tmp_path):
        ramps = torch.arange(8).mul(30).expand(24, 1, 8, 8).contiguous().byte()  # dark on the left
        ramps = (ramps + torch.arange(24)[:, None, None, None]).byte()
        data = InMemory(ramps, torch.zeros(24, dtype=torch.long), [])
        net = train_features(data, tmp_path / "a.safetensors", QUIET, steps=60).net
        turned = torch.cat([torch.rot90(ramps, k, (2, 3)) for k in range(4)])
        assert net(turned).argmax(1).tolist() == [k for k in range(4) for _ in range(24)]

    @pytest.mark.slow
    def test_images_of_16_bits_in_a_folder(self, tmp_path):
        for name, level in (("dark", 1000), ("bright", 60000)):
            (tmp_path / "photos" / name).mkdir(parents=True)
            for i in range(6):
                pixels = np.full((8, 8), level + i, np.uint16)
                Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
        data = open_dataset(str(tmp_path / "photos"), Preparation())
        assert data.values.dtype == "uint16"
        features = train_features(data, tmp_path / "a.safetensors", QUIET, steps=40, held_out=data)
        assert features.training.accuracy == 1.0

    def test_classes_that_cannot_be_separated(self, tmp_path):
        data = solid(40, classes=2)
        mixed = InMemory(data.images, data.labels * (torch.arange(40) % 4 > 1), ["a", "b"])
        mixed = InMemory(torch.full((40, 1, 8, 8), 128, dtype=torch.uint8), mixed.labels, ["a", "b"])
        training = train_features(mixed, tmp_path / "a.safetensors", QUIET, steps=2, held_out=mixed).training
        share = 0.25  # of all images, 10 have class b
        assert training.accuracy in (share, 1 - share)

    def test_pairs(self):
        labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 10 + [3] * 2)
        predicted = torch.tensor([1] * 7 + [0] * 3 + [1] * 10 + [1] * 9 + [2] + [0] * 2)
        pairs = confused_pairs(predicted, labels, ["a", "b", "c", "d"])
        assert pairs == (("b", "c", pytest.approx(9 / 20)), ("a", "b", pytest.approx(7 / 20)))
        line = Training([], 1, 8, 1, 1, 0, "", confused=pairs).lines()[1]
        assert line == "classes that the classifier cannot separate: b and c (45%); a and b (35%)"

    def test_bad_input(self, tmp_path, trained):
        def rejects(message, function, *arguments, **options):
            with pytest.raises(InputError, match=f"^{re.escape(message)}"):
                function(*arguments, **options)

        file = tmp_path / "a.safetensors"
        rejects("the features own are trained on your images; give the file of ditlab features", open_features, "own")
        rejects(f"no weights at {file}", open_features, "own", str(file))
        rejects(
            f"{tmp_path / 'a.pt'}; give a file that ends in .safetensors",
            train_features,
            solid(4),
            tmp_path / "a.pt",
            QUIET,
        )
        file.write_bytes(b"x")
        rejects(
            f"{file} exists and holds no features of ditlab; give another name", train_features, solid(4), file, QUIET
        )
        rejects(f"{file} is truncated or not a safetensors file", open_features, "own", str(file))
        out = tmp_path / "b.safetensors"
        rejects("minutes is 0; give more than 0", train_features, solid(4), out, QUIET, minutes=0)
        other = InMemory(solid(4).images, torch.zeros(4, dtype=torch.long), ["x"])
        rejects(
            "held-out images have the class x, which no training image has; remove it",
            train_features, solid(4), out, QUIET, held_out=other,
        )  # fmt: skip
        videos = InMemory(torch.zeros(2, 3, 2, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), [])
        rejects("features are trained on images, not on videos", train_features, videos, out, QUIET)
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, out)
        rejects(f"{out} holds no features of ditlab", open_features, "own", str(out))


class Means(Features):
    """The mean of each quarter of an image as features, and a class by the mean."""

    name, weights, dimension, channels = "means", "0", 4, None

    def __init__(self, classes=None):
        self.classes = classes

    def __call__(self, images):
        features = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).mean(1).flatten(1)
        bright = (features.mean(1, keepdim=True) > 128).float()
        return Extracted(features, probabilities=torch.cat([1 - bright, bright], 1))


def noise(count, seed, low=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 1, 4, 4), generator=generator).byte()


class TestScore:
    def test_the_numbers_are_those_of_the_metrics(self):
        features, labels = Means(["dark", "bright"]), torch.arange(20) % 2
        training = InMemory(noise(70, 0), torch.arange(70) % 2, ["dark", "bright"])
        held_out = InMemory(noise(40, 1), torch.arange(40) % 2, ["dark", "bright"])
        samples = noise(20, 2)
        score = score_own(samples, labels, training, held_out, features)

        def of(images):
            return features(images).features.numpy()

        subsets = [of(training.images[indices]) for indices in disjoint_subsets(training.labels, 20)]
        real = of(held_out.images)
        assert score.fd == pytest.approx(frechet_distance(of(samples), real), rel=1e-6)
        assert score.real_fd == pytest.approx(fmean(frechet_distance(subset, real) for subset in subsets), rel=1e-6)
        assert (score.subset_fd, score.ratio) == pytest.approx((score.fd, score.fd / score.real_fd), rel=1e-9)
        assert (score.precision, score.recall) == precision_recall(real, of(samples), 3)
        assert (score.real_precision, score.real_recall) == precision_recall(real, subsets[0], 3)
        recognized = of(samples).mean(1) > 128
        assert score.accuracy == pytest.approx((recognized == labels.numpy()).mean())
        assert score.error("accuracy") == pytest.approx(sqrt(score.accuracy * (1 - score.accuracy) / 20))
        assert score.error("recall") == pytest.approx(sqrt(score.recall * (1 - score.recall) / 40))
        assert (score.samples, score.held_out, score.subsets, score.subset, score.notes) == (20, 40, 3, 20, [])

    def test_training_images_score_like_real_ones(self):
        training, held_out = (InMemory(noise(200, seed), torch.zeros(200, dtype=torch.long), []) for seed in (0, 1))
        score = score_own(training.images, None, training, held_out, Means())
        assert score.ratio == pytest.approx(1)
        assert (score.precision, score.recall) == (score.real_precision, score.real_recall)
        assert (score.accuracy, score.classifier_accuracy) == (None, None)
        bright = score_own(noise(200, 2, 200), None, training, held_out, Means())
        assert bright.ratio > 100
        assert (bright.precision, bright.recall) == (0, 0)

    def test_notes(self, trained):
        features, _ = trained
        score = score_own(solid(60).images, torch.arange(60) % 3, solid(30, seed=1), solid(3, seed=2), features)
        assert score.notes == [
            "only 30 training images for 60 samples; the real-vs-real FD is that of all of them, and the ratio that of "
            "as many samples",
            "60 samples do not determine a covariance of 64 features; the distances are too large",
            "3 held-out images do not determine a covariance of 64 features; the distances are too large",
        ]
        assert (score.accuracy, score.classifier_accuracy, score.error("accuracy")) == (1.0, 1.0, 0.0)
        real, fake = (features(images).features.numpy() for images in (solid(3, seed=2).images, solid(60).images))
        halves = [frechet_distance(fake[part], real) for part in disjoint_subsets(torch.arange(60) % 3, 30)]
        assert score.subset_fd == pytest.approx(fmean(halves), rel=1e-6)
        assert score.ratio == score.subset_fd / score.real_fd
        assert (score.precision, score.recall, score.subsets, score.subset) == (None, None, 1, 30)
        assert "classified correctly 1.000 ± 0.000, of held-out images 1.000 ± 0.000" in score.lines()
        other = score_own(solid(70).images, torch.arange(70) % 3, solid(80), solid(70, seed=1), Means())
        assert other.notes == ["the features means do not separate the classes of the images, so no accuracy is given"]

    def test_lines(self):
        score = OwnScore(3.0, 2.0, 0.5, 0.8, 0.9, 1.0, None, None, 100, 400, 3, 100, ["a note"], 3.0)
        assert score.lines() == [
            "FD 3, real-vs-real FD 2: 1.50x (100 samples, 400 held-out images)",
            "precision 0.500 ± 0.050, of real images 0.900 ± 0.030",
            "recall 0.800 ± 0.020, of real images 1.000 ± 0.000",
            "a note",
        ]

    def test_subsets_are_disjoint_and_have_the_classes_of_the_whole(self):
        labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)[torch.randperm(1000)]
        subsets = disjoint_subsets(labels, 60)
        assert [len(subset) for subset in subsets] == [60] * own.REAL_SUBSETS
        assert len(torch.cat(subsets).unique()) == 600
        for subset in subsets:
            assert (labels[subset].bincount(minlength=3) - torch.tensor([36, 18, 6])).abs().max() <= 1
        assert disjoint_subsets(labels[:10], 11)[0].sort().values.tolist() == list(range(10))
        assert not torch.equal(subsets[0], subsets[0].sort().values)

    @pytest.mark.parametrize(
        ("samples", "labels", "held_out", "message"),
        [
            (torch.zeros(4, 1, 4, 4), None, 4,
             "samples of torch.float32 and shape (4, 1, 4, 4); give uint8 (N, C, H, W)"),
            (noise(4, 0), torch.zeros(3), 4, "3 labels for 4 samples; give one for each"),
            (noise(1, 0), None, 4, "1 sample; give 2 or more"),
            (noise(4, 0), None, 1, "1 held-out image; give 2 or more"),
            (solid(4).images, None, 4, "training images of 4x4, samples of 8x8; give images of one size"),
        ],
    )  # fmt: skip
    def test_bad_input(self, samples, labels, held_out, message):
        known, unseen = (InMemory(noise(n, 1), torch.zeros(n, dtype=torch.long), []) for n in (6, held_out))
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            score_own(samples, labels, known, unseen, Means())
