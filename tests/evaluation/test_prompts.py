"""Readers of images with a known truth, and the score of prompts."""

import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.data.builtin.colored_shapes import THINGS, ColoredShapes, draw
from ditlab.data.builtin.emoji_captions import EmojiCaptions
from ditlab.evaluation.emoji_reader import EmojiReader
from ditlab.evaluation.prompts import Prompts, PromptScore, Rate, distance, reader_of
from ditlab.evaluation.shape_reader import ShapeReader

FEW = ("🍎", "🍌", "🐼", "👋", "👋🏻", "👋🏿", "🚀", "🐢", "🔑", "☂️")


@pytest.fixture(scope="module")
def emoji():
    return EmojiCaptions(32, FEW)


def shares(outcomes):
    return {name: right.double().mean().item() for name, right in outcomes.items()}


def test_real_emoji_are_read_correctly(emoji):
    indices = torch.arange(0, len(emoji), 7)
    right = shares(EmojiReader(emoji).outcomes(emoji.fetch(indices).x, indices))
    assert right == {"object": 1, "background": 1, "variant": 1, "both": 1, "all": 1, "clear": 1, "swapped": 0}


def test_errors_are_told_apart(emoji):
    reader, view = EmojiReader(emoji), 13
    asked = {"blue apple on yellow": [0, 3, 2, view]}
    emoji_scene = torch.tensor([*asked.values()])
    row = next(i for i in range(len(emoji)) if emoji.scenes[i, :3].tolist() == [0, 3, 2])
    shown = {"swapped": [0, 1, 4, view], "other color": [0, 4, 2, view], "other object": [2, 0, 2, view]}
    images = emoji.renderer.images(torch.cat([emoji_scene, torch.tensor([*shown.values()])]))
    right = reader.outcomes(images, torch.tensor([row] * 4))
    assert right["object"].tolist() == [True, True, True, False]
    assert right["variant"].tolist() == [True, False, False, False]
    assert right["background"].tolist() == [True, False, True, True]
    assert right["all"].tolist() == [True, False, False, False]
    assert right["swapped"].tolist() == [False, True, False, False]
    gray = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    assert not reader.outcomes(gray, torch.tensor([row]))["background"].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colored-shapes", "colored-shapes-32", "colored-shapes-16-held-out"])
def test_real_shapes_are_read_correctly(name):
    data, indices = open_dataset(name), torch.arange(300)
    right = shares(ShapeReader(data).outcomes(data.fetch(indices).x, indices))
    assert right == {"colors": 1, "shapes": 1, "all": 1, "swapped": 0, "relation": 0}


def test_binding_and_relation_errors_of_shapes():
    data = ColoredShapes(32)
    first, second, relation = data.scenes[0].tolist()
    (color, shape), (other_color, other_shape) = THINGS[first], THINGS[second]
    crossed = THINGS.index((other_color, shape)), THINGS.index((color, other_shape))
    scenes = [[first, second, relation], [second, first, relation ^ 1], [*crossed, relation],
              [second, first, relation], [first, second, (relation + 2) % 4]]  # fmt: skip
    images = draw(torch.tensor(scenes), torch.zeros(5, 2, 3), 32)
    right = ShapeReader(data).outcomes(images, torch.zeros(5, dtype=torch.long))
    assert right["all"].tolist() == [True, True, False, False, False]
    assert right["swapped"].tolist() == [False, False, True, False, False]
    assert right["relation"].tolist() == [False, False, False, True, True]
    assert right["colors"].all()
    assert right["shapes"].all()


def test_wilson_intervals():
    assert Rate(99, 100).interval == pytest.approx((0.9455, 0.9982), abs=1e-4)
    assert Rate(0, 10).interval == pytest.approx((0, 0.2775), abs=1e-4)
    assert str(Rate(99, 100)) == "99.0% (94.6% to 99.8%)"
    score = PromptScore({"seen": {"object": Rate(99, 100)}})
    assert score.lines() == ["seen, 100 images: object 99.0% (94.6% to 99.8%)"]
    assert score.as_json()["seen"]["object"]["share"] == 0.99


def test_prompts_name_everything(emoji):
    prompts = Prompts.of(emoji, 3, 0)
    assert prompts.texts == [emoji.captions(i)[0] for i in prompts.indices.tolist()]


def test_data_without_a_known_truth():
    with pytest.raises(InputError) as error:
        reader_of(open_dataset("emoji-32"))
    assert str(error.value).startswith("the truth of these images is not known; give emoji-captions-SIZE")


def test_distance_needs_enough_images(emoji):
    class Few:
        dimension = 64

    with pytest.raises(InputError) as error:
        distance(torch.zeros(64, 3, 32, 32, dtype=torch.uint8), emoji, Few())
    assert str(error.value) == "64 samples; give more than 64 for a Frechet distance in 64 features"
