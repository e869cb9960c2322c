import numpy as np
import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.data.builtin.digits import digits, held_out_digits


@pytest.fixture(scope="module")
def clips():
    return open_dataset("moving-digits-32")


def test_what_it_holds(clips):
    assert (len(clips), clips.size, clips.channels, clips.classes) == (
        10_000,
        (16, 32, 32),
        1,
        [str(i) for i in range(10)],
    )
    batch = clips.fetch(torch.tensor([3, 0]))
    assert (batch.x.shape, batch.x.dtype) == ((2, 1, 16, 32, 32), torch.uint8)
    assert torch.equal(batch.x[1:], clips.fetch(torch.tensor([0])).x)
    assert torch.equal(batch.labels, digits().labels[clips.chosen[[3, 0]]])
    counts = torch.bincount(clips.labels) / len(clips)
    assert 0.08 < counts.min() < counts.max() < 0.12
    held_out = open_dataset(clips.held_out_name)
    assert (len(held_out), held_out.held_out_name) == (2000, "")
    assert torch.equal(held_out.labels, held_out_digits().labels[held_out.chosen])


def test_the_truth_is_that_of_the_pixels(clips):
    indices = torch.arange(40)
    truth, frames = clips.motion(indices), clips.fetch(indices).x[:, 0].double()
    span = torch.arange(32) + 0.5
    total = frames.sum((2, 3))
    centers = torch.stack([(frames.sum(2) * span).sum(2) / total, (frames.sum(3) * span).sum(2) / total], 2)
    offset = centers - truth.places  # of a digit in its square, which is the same in all frames
    away = (offset - offset.mean(1, keepdim=True)).abs()
    assert away.mean() < 0.01
    assert away.max() < 0.3  # at an edge, which cuts off the soft border of the digit
    steps = truth.places.diff(dim=1)
    straight = steps.diff(dim=1).norm(dim=2) < 1e-9
    assert torch.allclose(steps[:, 1:][straight].norm(dim=1), truth.speed[:, None].expand(-1, 14)[straight])
    assert truth.speed.min() > 0.035 * 32 - 1e-9
    assert truth.speed.max() < 0.09 * 32
    assert truth.places.min() >= 8
    assert truth.places.max() <= 24
    turns = (steps[:, 1:].sign() != steps[:, :-1].sign()).sum((1, 2))
    assert ((truth.bounces - turns) >= 0).all()  # two reflections within a step hide each other
    assert (truth.bounces == turns).float().mean() > 0.8


def test_captions_name_digit_and_direction(clips):
    words = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for i in range(20):
        (caption,) = clips.captions(i)
        _, digit, _, *directions = caption.split()
        assert digit == clips.classes[clips.labels[i]]
        direction = np.sum([words[word] for word in directions if word != "and"], axis=0)
        velocity = clips.velocity[i].numpy()
        cosine = direction @ velocity / np.linalg.norm(direction) / np.linalg.norm(velocity)
        assert cosine > np.cos(np.pi / 8) - 1e-9


def test_names():
    assert open_dataset("moving-digits").size == (16, 32, 32)
    long = open_dataset("moving-digits-24-40")
    assert (long.size, long.held_out_name) == ((40, 24, 24), "moving-digits-24-40-held-out")
    assert open_dataset(long.held_out_name).size == (40, 24, 24)
    for name, message in (
        ("moving-digits-big", 'data "moving-digits-big"; give moving-digits-SIZE or moving-digits-SIZE-FRAMES'),
        ("moving-digits-8", "16 frames of 8 pixels; give 1 to 256 frames, and a size of 16 to 256"),
        ("moving-digits-32-1000", "1000 frames of 32 pixels; give 1 to 256 frames"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(name)
