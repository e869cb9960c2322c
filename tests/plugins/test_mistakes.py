"""Parts from outside that return what they must not: one line each, and no traceback."""

import re

import pytest
import torch
from helpers import tiny_pipeline

from ditlab.core.errors import InputError
from ditlab.core.plugins import import_plugin
from ditlab.core.types import Step
from ditlab.data.base import InMemory
from ditlab.diffusion.objective import TARGETS, TIMES, WEIGHTS, Objective
from ditlab.training.checks import check_dataset
from ditlab.training.context import check_losses
from ditlab.training.trackers import TRACKERS, trackers

IMAGES, LABELS = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("registry", "field", "part"),
    [
        (TARGETS, "target", lambda process, t: t),
        (TARGETS, "target", lambda process, t: (t * torch.nan, t)),
        (TARGETS, "target", lambda process, t: (process.alpha(t), process.sigma(t))),  # x_t itself
        (TARGETS, "target", lambda process: (process, process)),
        (TIMES, "time", lambda u, mean, scale: u * torch.nan),
        (TIMES, "time", lambda u, mean, scale: u * 5),
        (TIMES, "time", lambda u, mean, scale: u[:2]),
        (WEIGHTS, "weight", lambda snr: -snr),
        (WEIGHTS, "weight", lambda snr: "many"),
    ],
)
def test_part_of_an_objective_without_usable_values(monkeypatch, registry, field, part):
    monkeypatch.setitem(registry, "mine", part)
    with pytest.raises(InputError, match='"mine"'):
        Objective(**{field: "mine"})


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda x: x[:, :, :-1], r"returned \(2, 1, 7, 8\)"),
        (lambda x: x.repeat(1, 2, 1, 1), r"returned \(2, 2, 8, 8\)"),  # it would be broadcast
        (lambda x: None, "returned a NoneType"),
        (lambda x: (x, x), "returned a tuple"),
    ],
)
def test_network_that_returns_another_shape(output, words):
    objective, x, labels = Objective(), torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    times = torch.tensor([0.2, 0.7], dtype=torch.float64)

    def network(x, timestep, condition, trace=None):
        return output(x)

    with pytest.raises(InputError, match=words):
        objective.loss(network, x, labels, times, torch.randn_like(x))
    with pytest.raises(InputError, match=words):
        objective.denoiser(network).predict(x, times, labels)


def nothing(denoise, process, x, schedule, noise):
    yield from ()


def cropped(denoise, process, x, schedule, noise):
    yield Step(0, 0.0, x[..., :2], x)


def tensors(denoise, process, x, schedule, noise):
    yield x


def no_generator(denoise, process, x, schedule, noise):
    return x


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [nothing, cropped, tensors, no_generator])
def test_sampler_without_steps_of_the_right_shape(sampler):
    pipe = tiny_pipeline()
    line = f'the sampler "{sampler.__name__}" must yield at least one Step, with x of (1, 1, 8, 8)'
    with pytest.raises(InputError, match=re.escape(line)):
        pipe(1, sampler=sampler, steps=2)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (None, "a NoneType"),
        (torch.zeros(4), "a Tensor"),
        ({"mine": torch.tensor(1.0)}, r'"mine" of a training aid is \(\)'),
        ({"mine": torch.zeros(3)}, r"is \(3,\); return a tensor \(4,\)"),
        ({"mine": torch.zeros(4, 1)}, r"is \(4, 1\)"),
        ({"mine": 1.0}, "is a float"),
    ],
)
def test_training_aid_without_a_loss_for_each_image(losses, words):
    with pytest.raises(InputError, match=words):
        check_losses(losses, 4)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (lambda: None, "NoneType"),
        (lambda: [1, 2], "list"),
        (lambda: InMemory(IMAGES[:0], LABELS[:0], ["a", "b"]), "no images"),
        (lambda: InMemory(IMAGES, LABELS + 5, ["a", "b"]), "from 5 to 6; for 2 classes .* from 0 to 1"),
        (lambda: InMemory(IMAGES, LABELS - 1, ["a", "b"]), "from -1 to 0"),
        (lambda: InMemory(IMAGES, LABELS.float(), ["a", "b"]), "float32"),
        (lambda: InMemory(IMAGES, LABELS, []), "for 0 classes .* from 0 to 0"),
        (lambda: InMemory(IMAGES.to(torch.complex64), LABELS, ["a", "b"]), "complex64"),
        (lambda: InMemory(IMAGES, LABELS[:3], ["a", "b"]), "with 3 labels"),
    ],
)
def test_data_set_that_cannot_be_trained_on(dataset, words):
    with pytest.raises(InputError, match=words):
        check_dataset(dataset())


def test_tracker_without_methods(monkeypatch, tmp_path):
    monkeypatch.setitem(TRACKERS, "mine", lambda folder, seen, recipe: object())
    with pytest.raises(InputError, match='"mine" has no numbers, preview, close'):
        trackers(("mine",), tmp_path, 0, {})


def test_folder_of_files_is_no_plug_in(tmp_path, monkeypatch):
    (tmp_path / "parts_of_mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"a folder without __init__\.py"):
        import_plugin("parts_of_mine")
