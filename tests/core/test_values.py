"""Numbers of files, of networks and of displays."""

import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.core.values import EIGHT_BITS, PixelValues, network_scale

TWELVE_BITS = PixelValues("uint16", (0.0,), (4095.0,))
STANDARD = PixelValues("int16", (-100.0, 0.0), (300.0, 10.0), mean=(100.0, 5.0), std=(50.0, 2.0))


def pixels(*channels):
    """One image of a single row."""
    return torch.tensor(channels, dtype=torch.float32)[None, :, None]


def test_the_ends_of_a_range_are_black_and_white():
    x = TWELVE_BITS.normalized(pixels([0, 2047.5, 4095]))
    assert x.flatten().tolist() == [-1, 0, 1]
    assert TWELVE_BITS.displayed(x).flatten().tolist() == [0, 128, 255]
    assert TWELVE_BITS.share(x).flatten().tolist() == [0, 0.5, 1]
    outside = torch.tensor([-1.5, 2.0]).reshape(1, 1, 1, 2)
    assert TWELVE_BITS.restored(outside).flatten().tolist() == [0, 4095]
    assert TWELVE_BITS.share(outside).flatten().tolist() == [0, 1]


def test_standardized_numbers_are_shown_with_their_range_and_never_clipped():
    x = STANDARD.normalized(pixels([-100, 100, 400], [0, 5, 10]))
    assert x[0, 0].flatten().tolist() == [-4, 0, 6]
    assert x[0, 1].flatten().tolist() == [-2.5, 0, 2.5]
    assert STANDARD.restored(x)[0, 0].flatten().tolist() == [-100, 100, 400]
    assert STANDARD.displayed(x).tolist() == [[[[0, 128, 255]]]]
    assert STANDARD.showing((2,), 2).displayed(x).tolist() == [[[[0, 128, 255]]]]
    assert STANDARD.share(x)[0, 0].flatten().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("channels", "shown", "displayed"),
    [(1, (), [0]), (2, (), [0]), (3, (), [0, 1, 2]), (4, (), [0, 1, 2]), (13, (4, 3, 2), [3, 2, 1]), (3, (2,), [1])],
)
def test_shown_channels(channels, shown, displayed):
    images = torch.arange(channels).byte().reshape(1, channels, 1, 1)
    values = EIGHT_BITS.showing(shown, channels) if shown else EIGHT_BITS
    assert values.displayed(images).flatten().tolist() == displayed
    assert values.loses(channels) == (len(displayed) < channels)


@pytest.mark.parametrize("shown", [(), (1, 2), (0,), (1, 2, 14)])
def test_channels_that_cannot_be_shown(shown):
    with pytest.raises(InputError, match="give one or three numbers from 1 to 13"):
        TWELVE_BITS.showing(shown, 13)


def test_ordinary_images_are_not_changed():
    images = torch.arange(256).byte().reshape(1, 1, 16, 16)
    assert EIGHT_BITS.displayed(images) is images
    assert EIGHT_BITS.restored(images) is images
    assert torch.equal(EIGHT_BITS.share(images), images.float() / 255)
    assert torch.equal(network_scale(images), images.float() / 127.5 - 1)


def test_values_in_words():
    assert EIGHT_BITS.summary() == "uint8, 0..255"
    assert (
        PixelValues("float32", (0.0, -1.0), (1.0, 2.5)).summary() == "float32, -1..2.5, with a range for each channel"
    )
    line = "int16, standardized by the mean and deviation of each channel, shown from -100 to 300"
    assert STANDARD.summary() == line
    assert PixelValues.read(STANDARD.describe()) == STANDARD
