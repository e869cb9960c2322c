import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from profiles import (
    ADOBE,
    P3,
    PROPHOTO,
    SRGB,
    SRGB_CURVE,
    cmyk_profile,
    encoded,
    exact_srgb,
    gray_profile,
    rgb_profile,
)
from rich.console import Console

from ditlab.data import open_dataset, open_source
from ditlab.data.color import profile_state, to_srgb
from ditlab.data.preprocess import to_rgb
from ditlab.data.survey import survey

SPACES = {
    "Adobe RGB": (ADOBE, (2.19921875,)),
    "Display P3": (P3, SRGB_CURVE),
    "ProPhoto": (PROPHOTO, (1.8,)),
    "gamma 2.2": (SRGB, (2.2,)),
}
CMYK = cmyk_profile(lambda c, m, y, k: (0 if k else 100 - 20 * c - 20 * m - 10 * y, 30 * m - 30 * c, 40 * y - 10 * c))


def photo(seed, height=40, width=60):
    """A smooth random image with a little noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height), 3)
    return (np.asarray(coarse) + generator.normal(0, 4, (height, width, 3))).clip(0, 255).round().astype(np.uint8)


def with_profile(pixels, profile):
    image = Image.fromarray(pixels)
    image.info["icc_profile"] = profile
    return image


def test_91_photos_are_within_half_a_gray_level_of_the_exact_conversion():
    worst = 0.0
    for seed in range(91):
        pixels, (primaries, curve) = photo(seed), list(SPACES.values())[seed % 4]
        shown = np.asarray(to_rgb(with_profile(pixels, rgb_profile(primaries, curve)))).astype(float)
        worst = max(worst, np.abs(shown - exact_srgb(pixels, primaries, curve)).mean())
    assert worst < 0.3
    assert np.abs(pixels - exact_srgb(pixels, ADOBE, (2.19921875,))).mean() > 5  # if the profile is ignored


@pytest.mark.parametrize("space", SPACES)
def test_no_color_is_off_by_more_than_a_level(space):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    primaries, curve = SPACES[space]
    image = with_profile(pixels, rgb_profile(primaries, curve))
    assert profile_state(image) == "converted"
    assert np.abs(np.asarray(to_rgb(image)) - exact_srgb(pixels, primaries, curve)).max() < 1.1


def test_images_with_an_srgb_profile_keep_their_bits():
    pixels = photo(0)
    built_in = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (built_in, rgb_profile(SRGB, SRGB_CURVE)):
        image = with_profile(pixels, profile)
        assert profile_state(image) == ""
        assert to_srgb(image) is image
        gray = with_profile(pixels[..., 0], profile)
        assert to_srgb(gray) is gray


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_gray_profiles_change_the_tone_and_stay_gray(gamma):
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(8, 0)
    shown = to_rgb(with_profile(ramp, gray_profile(gamma)))
    assert shown.mode == "L"
    assert np.abs(np.asarray(shown) - encoded((ramp / 255) ** gamma)).max() <= 0.5


def test_a_gray_image_with_a_profile_of_rgb_has_its_tone_curve():
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(8, 0)
    shown = np.asarray(to_rgb(with_profile(ramp, rgb_profile(ADOBE, (1.8,)))))
    assert np.abs(shown - encoded((ramp / 255) ** 1.8)).max() <= 1


@pytest.mark.parametrize(
    ("ink", "lab"), [((0, 0, 0, 0), (100, 0, 0)), ((0, 0, 0, 255), (0, 0, 0)), ((255, 0, 0, 0), (80, -30, -10))]
)
def test_cmyk_goes_through_its_profile(ink, lab):
    image = Image.new("CMYK", (8, 8), ink)
    image.info["icc_profile"] = CMYK
    lightness, a, b = (lab[0] + 16) / 116, lab[1] / 500, lab[2] / 200
    linear = [part**3 if part > 6 / 29 else 3 * (6 / 29) ** 2 * (part - 4 / 29) for part in (lightness + a, lightness)]
    third = lightness - b
    linear.append(third**3 if third > 6 / 29 else 3 * (6 / 29) ** 2 * (third - 4 / 29))
    expected = encoded(np.linalg.inv(SRGB) @ (np.array(linear) * [0.9642, 1, 0.8249]))
    assert np.abs(np.array(to_rgb(image).getpixel((0, 0))) - expected).max() <= 1.5


def test_transparency_is_kept_and_blended_after_the_conversion():
    pixels = photo(1)
    profile = rgb_profile(*SPACES["Adobe RGB"])
    opaque = np.asarray(to_rgb(with_profile(pixels, profile)))
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    alpha[:20] = 0
    shown = np.asarray(to_rgb(with_profile(np.concatenate([pixels, alpha], -1), profile), "#102030"))
    assert (shown[:20] == [16, 32, 48]).all()
    assert np.array_equal(shown[20:], opaque[20:])
    gray = with_profile(np.stack([pixels[..., 0], alpha[..., 0]], -1), gray_profile(1.0))
    assert gray.mode == "LA"
    assert to_rgb(gray, "#102030").getpixel((0, 0)) == (16, 32, 48)
    expected = encoded(np.float64(pixels[30, 0, 0] / 255))
    assert to_rgb(gray).getpixel((0, 30)) == (round(float(expected)),) * 3


def test_palettes_are_converted():
    image = Image.fromarray(photo(2)).quantize(16)
    plain = image.convert("RGB")
    for each in (image, plain):
        each.info["icc_profile"] = rgb_profile(*SPACES["Display P3"])
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(to_rgb(plain)))


def test_broken_profiles_are_read_as_srgb():
    pixels = photo(3)
    for profile in (b"no profile", rgb_profile(*SPACES["Adobe RGB"])[:200], gray_profile(2.2), CMYK):
        image = with_profile(pixels, profile)
        assert profile_state(image) == "broken"
        assert np.array_equal(np.asarray(to_rgb(image)), pixels)


def test_threads_share_transforms():
    profiles = [rgb_profile(*space) for space in SPACES.values()]
    images = [with_profile(photo(seed, 200, 300), profiles[seed % 4]) for seed in range(24)]
    alone = [to_rgb(image).tobytes() for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            assert list(pool.map(lambda image: to_rgb(image).tobytes(), images)) == alone


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_profiles_of_files(tmp_path, suffix):
    primaries, curve = SPACES["Display P3"]
    flat = np.full((16, 16, 3), (40, 200, 90), np.uint8)
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    Image.fromarray(flat).save(tmp_path / f"a.{suffix}", icc_profile=rgb_profile(primaries, curve), **options)
    data = open_dataset(str(tmp_path))
    shown = data.fetch(torch.tensor([0])).x[0, :, 4, 4].numpy()
    assert np.abs(shown - exact_srgb(flat, primaries, curve)[0, 0]).max() <= (2 if suffix == "jpg" else 0.8)
    assert data.reading.notes == ["1 image with a color profile, converted to sRGB"]


def test_the_notes_and_the_survey_count_profiles(tmp_path):
    for name, profile in {"a": rgb_profile(*SPACES["Adobe RGB"]), "b": b"broken", "c": b"broken", "d": None}.items():
        Image.fromarray(photo(4)).save(tmp_path / f"{name}.png", icc_profile=profile)
    data = open_dataset(str(tmp_path))
    assert data.reading.notes == [
        "1 image with a color profile, converted to sRGB",
        "2 images with a broken color profile, read as sRGB",
    ]
    found = survey(open_source(str(tmp_path)), Console(quiet=True))
    assert found.profiles == {"converted": 1, "broken": 2}
    assert found.duplicates == [["b.png", "c.png", "d.png"]]
    screen = Console(record=True, width=100, file=io.StringIO())
    screen.print(*found.tables())
    assert "broken, read as sRGB 2" in screen.export_text()


def test_gamma_chunks_are_ignored(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    pixels, chunks = photo(5), PngInfo()
    chunks.add(b"gAMA", (100_000).to_bytes(4, "big"))
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=chunks)
    assert np.array_equal(np.asarray(to_rgb(Image.open(tmp_path / "a.png"))), pixels)
