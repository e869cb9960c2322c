"""Text as a condition, with the encoder `words`."""

import pytest
import torch

from ditlab.conditioning import ENCODERS, Text, create_conditioner
from ditlab.conditioning.encoders import Words
from ditlab.conditioning.encoders.words import split
from ditlab.core.errors import InputError
from ditlab.core.types import Between

CAPTIONS = ["A red apple.", "a green, small apple", "the king's chair"]


@pytest.fixture
def text():
    return Text.for_data(None, {"captions": CAPTIONS})


def test_words_are_numbered_from_two_in_alphabetical_order(text):
    assert text.encoder.words == ["a", "apple", "chair", "green", "king's", "red", "small", "the"]
    rows = text.encode(["a RED  apple", None, "The king's chair!"])
    assert rows.tokens.tolist() == [[1, 2, 7, 3, 0], [1, 0, 0, 0, 0], [1, 9, 6, 4, 0]]
    assert rows.mask.tolist() == [[True, True, True, True, False], [True, *4 * [False]], [*4 * [True], False]]
    assert text.null(2).tokens.tolist() == 2 * [[1, 0, 0, 0, 0]]
    assert text.network_options() == {
        "classes": 0, "text_length": 5, "text_width": 0, "vocabulary": 10, "pooled_width": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("\u0915\u093f \u0915\u0940", ["\u0915\u093f", "\u0915\u0940"]),  # Hindi: they differ by a vowel sign only
        ("\u0645\u06cc\u200c\u062e", ["\u0645\u06cc\u200c\u062e"]),  # Persian: the joiner is part of the word
        ("red\U0001f34eblue", ["red", "\U0001f34e", "blue"]),
        ("\U0001f469\U0001f3fd\u200d\U0001f680!", ["\U0001f469\U0001f3fd\u200d\U0001f680"]),  # one emoji of four signs
        ("\u201cpi\u00f1ata\u201d, king\u2019s", ["pi\u00f1ata", "king\u2019s"]),
    ],
)
def test_words_of_other_scripts_and_emoji(caption, words):
    assert split(caption) == words


def test_dropping_and_interpolating(text):
    dropped = text.drop(text.encode(["red", "green"]), torch.tensor([True, False]))
    assert dropped.tokens[:, :2].tolist() == [[1, 0], [1, 5]]
    assert dropped.mask.sum(1).tolist() == [1, 2]
    between = text.encode([Between("red", "green", 0.25), "a"])
    assert (between.other.tokens[:, 1].tolist(), between.weight.tolist()) == ([5, 2], [0.25, 0.0])


def test_a_saved_conditioner_is_the_same(text):
    again = create_conditioner(**text.config)
    assert again.config == text.config
    assert torch.equal(again.encode(CAPTIONS).tokens, text.encode(CAPTIONS).tokens)


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        (
            "an aple",
            'unknown words "an" (similar: a), "aple" (similar: apple) in "an aple"; this model was trained on 8 words',
        ),
        ("q w e r t y", 'unknown words "q", "w", "e", "r" in "q w e r t y"; this model was trained on 8 words'),
        (" ", "a prompt is empty; give a text, or None for no prompt"),
        (3, 'prompt 3 is no text; give a text, such as "a red apple"'),
        ("...", 'the prompt "..." has no words; give words'),
        ("a red \U0001f34e", 'unknown word "\U0001f34e" in "a red \U0001f34e"; this model was trained on 8 words'),
        ("a\ud800", "the prompt 'a\\ud800' is no Unicode text; encode it as UTF-8"),
    ],
)
def test_prompts_that_cannot_be_encoded(text, prompt, line):
    with pytest.raises(InputError) as caught:
        text.encode([prompt])
    assert str(caught.value) == line


def test_what_a_long_prompt_loses_is_said(text):
    line = (
        'the prompt ".*" \\(10,000 words\\) is longer than the 5 tokens of this model; left out: "red red .*\\.\\.\\."'
    )
    with pytest.warns(UserWarning, match=line):
        rows = text.encode(["red " * 10_000])
    assert rows.tokens.tolist() == [[1, 7, 7, 7, 7]]


def test_a_prompt_that_is_encoded_again_is_not_computed_again(text, monkeypatch):
    text.encode(["a red apple", "red", "red"])
    monkeypatch.setattr(Words, "encode", None)
    assert text.encode(["red", "a red apple"]).tokens[0, :3].tolist() == [1, 7, 0]


def test_titles_and_file_names(text):
    assert (text.title("a red apple"), text.title(None)) == ("a red apple", "no prompt")
    assert (text.stem("a red apple"), text.stem(None)) == ("a_red_apple", "no_prompt")
    stems = [text.stem(prompt) for prompt in ("a_red apple", "A red apple", "a red/apple", "red " * 40, "red " * 41)]
    assert stems[:2] == ["a_red_apple-b1bf10", "A_red_apple-45b32e"]
    assert len(set(stems)) == 5
    assert all("/" not in stem and len(stem) < 100 for stem in stems)


def test_options_of_the_encoder():
    assert Text.for_data(None, {"captions": CAPTIONS, "options": {"length": 3.0}}).encoder.shape.length == 3
    for options, line in (
        ({"length": 1}, "length is 1; give 2 or more, because the start token counts"),
        ({"length": 1.5}, "length is 1.5; give a whole number"),
        ({"length": "x"}, "length is 'x'; give a whole number"),
        ({"lenght": 3}, 'the encoder words has no option "lenght"; did you mean "length"\\?'),
    ):
        with pytest.raises(InputError, match=line):
            Text.for_data(None, {"captions": CAPTIONS, "options": options})
    with pytest.raises(InputError, match=r'unknown encoder "absent"; choose from: words, .*minilm-layers$'):
        Text.for_data(None, {"captions": CAPTIONS, "encoder": "absent"})
    with pytest.raises(InputError, match='unknown encoder "word"; did you mean "words"'):
        Text.for_data(None, {"captions": CAPTIONS, "encoder": "word"})
    with pytest.raises(InputError, match="the captions of the data have no words; give captions with words"):
        ENCODERS["words"].for_captions(["..."], {})
