"""Two colored shapes in relation."""

from collections import Counter

import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.data.builtin.colored_shapes import COLORS, GROUND, SHAPES, THINGS, ColoredShapes, draw, is_held_out


def test_images_show_the_scene():
    circle, square = THINGS.index((0, 0)), THINGS.index((2, 1))
    scenes = torch.tensor([[circle, square, relation] for relation in range(4)])
    images = draw(scenes, torch.zeros(4, 2, 3), 32)
    places = [(16, 8, 16, 24), (16, 24, 16, 8), (8, 16, 24, 16), (24, 16, 8, 16)]  # left, right, above, below
    for image, (y, x, other_y, other_x) in zip(images, places, strict=True):
        assert image[:, y, x].tolist() == list(COLORS["red"])
        assert image[:, other_y, other_x].tolist() == list(COLORS["blue"])
        assert image[:, 0, 0].tolist() == list(GROUND)


def test_captions_are_in_both_orders():
    data = ColoredShapes()
    assert data.captions(0) == ("a white circle below a blue diamond", "a blue diamond above a white circle")
    assert data.classes == ["left of", "right of", "above", "below"]


def test_held_out_pairs_cover_every_color_and_shape():
    training, held_out = open_dataset("colored-shapes"), open_dataset("colored-shapes-held-out")
    missed = [thing for thing in THINGS if is_held_out(thing)]
    assert sorted(thing.color for thing in missed) == sorted(thing.shape for thing in missed) == list(range(6))
    seen = {THINGS[i] for i in training.scenes[:, :2].flatten().tolist()}
    assert seen == set(THINGS) - set(missed)
    counts = Counter(thing for row in held_out.scenes[:, :2].tolist() for thing in row if is_held_out(THINGS[thing]))
    assert max(counts.values()) < 1.3 * min(counts.values())
    for i, j in training.scenes[:1000, :2].tolist():
        assert THINGS[i].color != THINGS[j].color
        assert THINGS[i].shape != THINGS[j].shape
    assert len(SHAPES) == len(COLORS) == 6


@pytest.mark.parametrize(("name", "message"), [
    ("colored-shapes-8", "colored shapes of size 8; give 16 to 256"),
    ("colored-shapes-big",
     'data "colored-shapes-big" has no size; give colored-shapes-SIZE, such as colored-shapes-32'),
])  # fmt: skip
def test_names(name, message):
    with pytest.raises(InputError) as error:
        open_dataset(name)
    assert str(error.value) == message
