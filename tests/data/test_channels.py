import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import open_dataset, open_source
from ditlab.data.survey import sample_sheet, survey

RNG = np.random.default_rng(0)


def save(folder, **images):
    folder.mkdir(exist_ok=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return str(folder)


def noise(*shape, top=256, dtype=np.uint8):
    return RNG.integers(0, top, shape).astype(dtype)


@pytest.mark.parametrize("size", ["", "16"])
def test_gray_images_have_one_channel_with_and_without_a_size(tmp_path, size):
    source = save(tmp_path, a=noise(16, 16), b=noise(16, 16) > 127)
    data = open_dataset(source, Preparation(size=size))
    assert data.channels == 1
    assert data.fetch(torch.arange(2)).x.shape == (2, 1, 16, 16)
    rgb = open_dataset(source, Preparation(size=size, channels=3))
    assert torch.equal(rgb.fetch(torch.arange(2)).x, data.fetch(torch.arange(2)).x.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("size", ["", "16"])
def test_one_color_image_makes_all_rgb(tmp_path, size):
    source = save(tmp_path, a=noise(16, 16), b=noise(16, 16), c=noise(16, 16, 3))
    data = open_dataset(source, Preparation(size=size))
    assert data.channels == 3
    gray, same = (open_dataset(source, Preparation(size=size, **one)) for one in ({"gray": True}, {"channels": 1}))
    assert gray.channels == same.channels == 1
    assert torch.equal(gray.fetch(torch.arange(3)).x, same.fetch(torch.arange(3)).x)


@pytest.mark.parametrize("size", ["", "16"])
def test_transparency_is_blended_or_kept(tmp_path, size):
    pixels = noise(16, 16, 4)
    source = save(tmp_path, a=pixels)
    blended = open_dataset(source, Preparation(size=size))
    assert blended.channels == 3
    kept = open_dataset(source, Preparation(size=size, channels=4))
    assert kept.channels == 4
    read = kept.fetch(torch.tensor([0])).x[0].permute(1, 2, 0).numpy()
    assert np.array_equal(read[..., 3], pixels[..., 3])
    assert size or np.array_equal(read, pixels)
    bars = open_dataset(source, Preparation(size="32x16", fit="letterbox", background="#102030", channels=4))
    assert bars.fetch(torch.tensor([0])).x[0, :, 0, 0].tolist() == [16, 32, 48, 255]


def test_channels_that_the_images_do_not_have(tmp_path):
    source = save(tmp_path, a=noise(16, 16), b=noise(16, 16, 3))
    with pytest.raises(InputError, match=r"a\.png has 1 channel, not 5; give channels \(data\.channels\) that all"):
        open_dataset(source, Preparation(channels=5))
    with pytest.raises(InputError, match="gray with channels = 3; remove one of them"):
        open_dataset(source, Preparation(gray=True, channels=3))
    deep = save(tmp_path / "deep", a=noise(16, 16, top=4096, dtype=np.uint16))
    with pytest.raises(InputError, match=r"a\.png has 1 channel, not 4"):
        open_dataset(deep, Preparation(channels=4))
    assert open_dataset(deep, Preparation(channels=3)).channels == 3


def test_shown_channels_and_small_images(tmp_path):
    source = save(tmp_path, a=noise(4, 4, 3))
    with pytest.raises(InputError, match="the only image cannot be read"):
        open_dataset(source).fetch(torch.tensor([0]))
    data = open_dataset(source, Preparation(min_side=4, show=(2,)))
    assert data.fetch(torch.tensor([0])).x.shape == (1, 3, 4, 4)
    assert data.values.shown == (2,)


def test_what_was_converted_is_recorded_for_caches(tmp_path):
    source = save(tmp_path, a=noise(16, 16))
    assert open_dataset(source).preprocessing == {}
    kept = {"size": [8, 8], "fit": "crop", "flip": False, "background": "white", "channels": 1}
    assert open_dataset(source, Preparation(size="8")).preprocessing == kept
    assert open_dataset(source, Preparation(flip=True)).preprocessing == kept | {"size": [16, 16], "flip": True}
    values = open_dataset(source, Preparation(size="8", range="0,99")).preprocessing["values"]
    assert (values["low"], values["high"]) == ([0.0], [99.0])


def test_a_survey_reads_all_bits(tmp_path):
    ramp = np.mgrid[:32, :32][0] * 2000
    images = {f"n{i}": (ramp + i).astype(np.uint16) for i in range(6)}
    source = open_source(save(tmp_path, **images, copy=images["n3"], photo=noise(16, 16, 3)))
    found = survey(source, Console(quiet=True))
    assert found.duplicates == [["copy.png", "n3.png"]]
    assert found.ranges == {"uint16": (0.0, 62005.0)}
    assert found.channels == {1: 7, 3: 1}
    screen = Console(record=True, width=100, file=io.StringIO())
    screen.print(*found.tables())
    text = screen.export_text()
    assert "0 to 62005" in text
    assert "1: 7, 3: 1" in text
    sample_sheet(source, tmp_path / "sheet.png")
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).std() > 20
