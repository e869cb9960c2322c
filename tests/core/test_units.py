import pytest

from ditlab.core.units import counted, describe_difference, in_words, none_can


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (2000, "image", "2,000 images"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
        (4, "entry", "4 entries"),
        (2, "process", "2 processes"),
    ],
)
def test_counts_in_words(count, noun, words):
    assert counted(count, noun) == words


def test_a_failure_of_all():
    assert none_can(1, "image") == "the only image cannot"
    assert none_can(3, "image") == "none of the 3 images can"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "not set"),
        ("", "not set"),
        ([], "not set"),
        ({}, "not set"),
        (0, "0"),
        (True, "true"),
        (0.25, "0.25"),
        ("crop", "crop"),
        ((0.1, 0.9), "0.1, 0.9"),
        ({"power": 2, "clip": False, "ends": [0, 1]}, "power 2, clip false, ends 0, 1"),
    ],
)
def test_values_in_words(value, words):
    assert in_words(value) == words


def test_a_difference_in_words():
    assert describe_difference("size", None, (8, 8)) == "size is not set there, 8, 8 here"
