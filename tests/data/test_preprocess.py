import io

import numpy as np
import pytest
from PIL import Image

from ditlab.core.errors import InputError
from ditlab.data.preprocess import Preprocess, to_rgb
from ditlab.data.sources import Unreadable


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_halving_is_the_mean_of_four_pixels():
    pixels = noise(64, 64)
    made = Preprocess((32, 32))(Image.fromarray(pixels))
    mean = pixels.reshape(32, 2, 32, 2, 3).astype(float).mean((1, 3))
    assert np.abs(made - mean).max() <= 1  # Pillow rounds after each direction


def test_512_to_256_is_exactly_the_mean():
    pixels = noise(512, 512) // 4 * 4  # means of two and of four are whole numbers: nothing is rounded
    expected = pixels.reshape(256, 2, 256, 2, 3).mean((1, 3))
    assert np.array_equal(Preprocess((256, 256))(Image.fromarray(pixels)), expected)


@pytest.mark.parametrize("shape", [(100, 150), (301, 97), (64, 40), (33, 20)])
def test_square_crop_is_the_rule_of_adm(shape):
    image = Image.fromarray(noise(*shape))
    expected = image
    while min(expected.size) >= 2 * 32:
        expected = expected.resize((expected.width // 2, expected.height // 2), Image.Resampling.BOX)
    scale = 32 / min(expected.size)
    expected = expected.resize([round(side * scale) for side in expected.size], Image.Resampling.BICUBIC)
    left, top = (expected.width - 32) // 2, (expected.height - 32) // 2
    expected = np.asarray(expected)[top : top + 32, left : left + 32]
    assert np.array_equal(Preprocess((32, 32))(image), expected)


def test_rectangles_letterbox_and_stretch():
    image = Image.new("RGB", (60, 30), (200, 0, 0))
    image.paste((0, 0, 200), (30, 0, 60, 30))
    assert Preprocess((16, 24))(image).shape == (16, 24, 3)
    boxed = Preprocess((40, 40), fit="letterbox", background="#00ff00")(image)
    assert (boxed[:10] == [0, 255, 0]).all()
    assert (boxed[30:] == [0, 255, 0]).all()
    assert boxed[20, 2].tolist() == [200, 0, 0]
    assert boxed[20, 37].tolist() == [0, 0, 200]
    squeezed = Preprocess((40, 40), fit="stretch")(image)
    assert squeezed[0, 0].tolist() == [200, 0, 0]
    assert squeezed[39, 39].tolist() == [0, 0, 200]


def test_every_mode_is_read_as_displayed():
    deep = Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    half = Image.new("LA", (8, 8), (0, 128))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    see_through = palette.copy()
    see_through.info["transparency"] = 1
    shown = {
        100: deep,
        (200, 100, 50): clear,
        (100, 50, 25): half,
        (9, 8, 7): palette,
        (200, 100, 51): see_through,
        255: Image.new("1", (8, 8), 1),
        77: Image.new("L", (8, 8), 77),
        (255, 0, 255): Image.new("CMYK", (8, 8), (0, 255, 0, 0)),
        128: Image.new("F", (8, 8), 128 / 255),
        99: Image.new("I", (8, 8), 257 * 99),
    }
    for value, image in shown.items():
        made = to_rgb(image, "#c86433" if image is see_through else "#c86432")
        pixel = np.asarray(made)[4, 4]
        assert np.abs(pixel.astype(int) - np.asarray(value)).max() <= 1, image.mode


@pytest.mark.parametrize(
    ("mode", "value", "message"),
    [
        ("F", 128.0, r"values from 128 to 128, not within 0\.\.1"),
        ("F", float("nan"), r"values from nan to nan, not within 0\.\.1"),
        ("I", 70000, r"values from 70000 to 70000, not within 0\.\.65535"),
        ("I", -1, r"values from -1 to -1, not within 0\.\.65535"),
    ],
)
def test_values_that_would_have_to_be_clipped_are_rejected(mode, value, message):
    with pytest.raises(Unreadable, match=message):
        to_rgb(Image.new(mode, (8, 8), value))


def test_broken_exif_data_is_a_reason_and_no_crash():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", exif=b"Exif\0\0MM#*\0\0\0\x08\0\0")
    with pytest.raises(Unreadable, match="broken EXIF data"):
        to_rgb(Image.open(buffer))


def test_a_transparent_background_is_opaque():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert to_rgb(clear, "#c8000080").getpixel((0, 0)) == to_rgb(clear, "#c80000").getpixel((0, 0)) == (100, 0, 0)


def test_exif_rotation_is_followed():
    image = Image.fromarray(noise(8, 12))
    image.getexif()[0x0112] = 6
    assert np.array_equal(np.asarray(to_rgb(image)), np.rot90(noise(8, 12), -1))


def test_gray_on_request():
    assert Preprocess((8, 8), channels=1)(Image.new("RGB", (20, 20), (50, 50, 50))).tolist() == [[[50]] * 8] * 8


def test_mistakes():
    with pytest.raises(InputError, match='background "whiet" is not a color; give a name such as white, or #rrggbb'):
        Preprocess((8, 8), background="whiet")
    with pytest.raises(InputError, match="size 0x8; give sides of 1 or more"):
        Preprocess((0, 8))
    with pytest.raises(InputError, match='unknown fit "croop"; did you mean "crop"'):
        Preprocess((8, 8), fit="croop")
    with pytest.raises(InputError, match="channels is 0; give 1 for gray, 3 for RGB, or the bands of the files"):
        Preprocess((8, 8), channels=0)
