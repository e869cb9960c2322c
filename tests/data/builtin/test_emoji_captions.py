"""Captioned emoji: objects, colors, held-out pairs, captions and images."""

from collections import Counter

import numpy as np
import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.data.builtin.emoji_captions import BACKGROUNDS, CHOSEN, VIEWS, EmojiCaptions, Scene, captions_of
from ditlab.data.builtin.emoji_objects import HUES, clear_color, glyph, objects_of, turning

FEW = ("🍎", "🍌", "🐼", "👋", "👋🏻", "👋🏿", "💙", "❤️")


@pytest.fixture(scope="module")
def few():
    return EmojiCaptions(32, FEW)


def test_objects_have_colors_or_skin_tones(few):
    apple, banana, panda, wave, heart = few.objects
    assert [variant.word for variant in apple.variants] == ["red", "yellow", "green", "blue", "purple"]
    assert [apple.phrase(v) for v in (0, 3)] == ["red apple", "blue apple"]  # without "red" in its name
    assert banana.variants[0].word == "yellow"
    assert [variant.word for variant in panda.variants] == [""]
    assert [wave.phrase(v) for v in range(3)] == ["waving hand", "waving hand with dark skin",
                                                  "waving hand with light skin"]  # fmt: skip
    assert heart.name == "heart"
    assert heart.variants[0].word == "blue"  # the first heart of the list
    assert len(few.objects) == 5


@pytest.mark.parametrize(("degrees", "color"), [(0, [1, 0, 0]), (120, [0, 1, 0]), (240, [0, 0, 1])])
def test_turning_keeps_gray(degrees, color):
    assert np.allclose(turning(degrees) @ [1, 0, 0], color, atol=1e-6)
    assert np.allclose(turning(degrees) @ [0.4, 0.4, 0.4], 0.4, atol=1e-6)


def test_hues():
    hue, brightness = clear_color(glyph("🍎", 40))
    assert hue == pytest.approx(0, abs=12)
    assert brightness == pytest.approx(0.5, abs=0.15)
    assert clear_color(glyph("🐼", 40)) is None  # black and white
    assert clear_color(glyph("🌈", 40)) is None  # several hues


def test_the_images_show_the_scene(few):
    scenes = torch.tensor([[0, 3, 2, 13], [2, 0, 6, 13]])  # a blue apple on yellow, a panda on pink; in the middle
    apple, panda = few.renderer.images(scenes)
    assert apple[:, 0, 0].tolist() == list(BACKGROUNDS["yellow"])
    assert panda[:, 0, 0].tolist() == list(BACKGROUNDS["pink"])
    red, green, blue = apple[:, 20, 10].tolist()  # its flesh
    assert blue > 200 > green > red
    outline = few.renderer.images(torch.tensor([[0, 0, 2, 13], [0, 3, 2, 13]])).amax(1) < 60
    assert outline[0].sum() > 40
    assert (outline[0] & outline[1]).sum() >= 0.9 * outline[0].sum()  # outlines stay black


def test_views_shift_and_scale(few):
    middle, right = few.renderer.images(torch.tensor([[2, 0, 7, 13], [2, 0, 7, 14]]))
    assert VIEWS[13][:3] == (0.8125, 0.0, 0.0)
    assert VIEWS[14][2] == 1 / 32
    assert torch.equal(middle[:, :, :-1], right[:, :, 1:])


def test_captions(few):
    apple, panda, placed = Scene(0, 0, 1, 0), Scene(2, 0, 0, 0), Scene(0, 3, 2, 27)
    assert captions_of(few.objects, apple) == (
        "red apple on an orange background", "apple on an orange background", "a red apple on an orange background",
        "apple on orange", "an apple",
    )  # fmt: skip
    assert captions_of(few.objects, panda)[-1] == "a panda"
    assert captions_of(few.objects, placed)[0] == "blue apple on the left on a yellow background"
    i = 17
    assert few.captions(i) == captions_of(few.objects, few.scene(i))


def test_held_out_pairs_cover_every_word_evenly():
    training = EmojiCaptions(16, tuple(CHOSEN.split()[:120]))
    held_out = EmojiCaptions(16, tuple(CHOSEN.split()[:120]), held_out=True)
    pairs = {(i, v, b) for i, v, b, _ in training.scenes.tolist()}
    missed = {(i, v, b) for i, v, b, _ in held_out.scenes.tolist()}
    assert not pairs & missed
    backgrounds = Counter(b for i in range(120) for b in range(8) if (i, 0, b) in missed)
    assert set(backgrounds.values()) == {15}  # each object misses one background, each background as many objects
    words = [
        shown.variants[v].word
        for i, shown in enumerate(training.objects)
        for v in range(1, len(shown.variants))
        if not any((i, v, b) in pairs for b in range(8))
    ]
    assert set(words) == set(HUES)
    assert {i for i, *_ in pairs} == set(range(120))


@pytest.mark.slow
def test_the_500_emoji():
    data = open_dataset("emoji-captions-32")
    assert (len(data.objects), len(data), len(open_dataset(data.held_out_name))) == (500, 52178, 11326)
    assert data.classes[:3] == ["watch", "hourglass done", "keyboard"]
    assert len(set(data.classes)) == 500
    counts = data.scenes[:, 0].bincount()
    assert (counts.min(), counts.max()) == (84, 112)  # all objects are about equally frequent
    first = data.fetch(torch.tensor([5])).x
    assert torch.equal(first, EmojiCaptions(32).fetch(torch.tensor([5])).x)


def test_all_emoji():
    objects = objects_of(FEW)
    assert objects is objects_of(FEW)
    data = EmojiCaptions(16, FEW, everything=True)
    assert (data.scenes[:, 3] >= 27).any()  # named places
    assert data.held_out_name == "emoji-captions-all-16-held-out"
    assert not (EmojiCaptions(16, FEW).scenes[:, 3] >= 27).any()


@pytest.mark.parametrize(("name", "message"), [
    ("emoji-captions-8", "emoji of size 8; give 16 to 256"),
    ("emoji-captions-big",
     'data "emoji-captions-big" has no size; give emoji-captions-SIZE, such as emoji-captions-32'),
])  # fmt: skip
def test_names(name, message):
    with pytest.raises(InputError) as error:
        open_dataset(name)
    assert str(error.value) == message
