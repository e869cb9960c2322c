import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import DATASETS, find_spec, open_dataset, parse_source
from ditlab.data.base import Dataset, InMemory
from ditlab.data.builtin import find_builtin
from ditlab.data.parse import Builtin, Cache, ImageFiles, SampleNpz
from ditlab.data.sources import open_source
from ditlab.data.survey import survey


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with one of everything, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "description.json").write_text("{}")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (12, 8)).save(tmp_path / "images" / "a.png")
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected", "resizable"),
    [
        ("digits", Builtin, False),
        ("digits-held-out", Builtin, False),
        ("glyphs-32", Builtin, False),
        ("cache", Cache, False),
        ("samples.npz", SampleNpz, False),
        ("missing.npz", SampleNpz, False),
        ("images", ImageFiles, True),
        ("shards.tar", ImageFiles, True),
        ("shards/*.tar", ImageFiles, True),
        ("hf:mnist", ImageFiles, True),
        ("hf:mnist:test", ImageFiles, True),
    ],
)
def test_every_text_names_one_source(place, text, expected, resizable):
    spec = parse_source(text)
    assert type(spec) is expected
    assert spec.resizable is resizable


def test_texts_that_name_no_data(place):
    for text in ("runs/demo", "model.pt", "facebook/DiT-XL-2-256", "digitz"):
        assert find_spec(text) is None
    with pytest.raises(InputError, match=r'no data "glyps-32"; give an existing folder of images, or did you mean'):
        parse_source("glyps-32")
    with pytest.raises(InputError, match="choose from: digits, digits-on-canvas, glyphs-SIZE"):
        parse_source("nothing-like-it")


def test_a_folder_goes_before_a_built_in_data_set(place):
    (place / "images").rename(place / "digits")
    assert isinstance(parse_source("digits"), ImageFiles)


def test_held_out_images_and_default_features(place):
    assert parse_source("digits").held_out() == Builtin("digits-held-out")
    assert parse_source("digits-held-out").held_out() is None
    assert parse_source("images").held_out() is None
    assert [parse_source(text).default_features() for text in ("digits", "digits-held-out", "images")] == [
        "digits", "digits", "inception",
    ]  # fmt: skip
    np.savez("reference.npz", ditlab=np.array('{"features": "dinov2"}'))
    assert parse_source("reference.npz").default_features() == "dinov2"
    assert parse_source("samples.npz").default_features() == "inception"


def test_identities_are_those_of_the_content(place):
    before = parse_source("images").identity()
    assert parse_source("images").identity() == before
    Image.new("RGB", (12, 8), (1, 2, 3)).save("images/b.png")
    assert parse_source("images").identity() != before
    content = parse_source("samples.npz").identity()
    (place / "samples.npz").rename("copy.npz")
    assert parse_source("copy.npz").identity() == content
    assert parse_source("digits").identity() != parse_source("digits-held-out").identity()


@pytest.fixture
def noise():
    """A data set from outside: one function and one line, with its own features and held-out images."""

    def make(name):
        side = int(name.split("-")[1])
        held_out = "" if name.endswith("held-out") else f"{name}-held-out"
        images = torch.randint(256, (20, 3, side, side)).byte()
        return InMemory(images, torch.arange(20) % 2, ["a", "b"], features="dinov2", held_out_name=held_out)

    DATASETS.register("noise-SIDE", make)
    yield
    del DATASETS["noise-SIDE"]


def test_a_data_set_from_outside_is_one_line(noise):
    spec = parse_source("noise-16")
    assert (spec.default_features(), spec.held_out().text, spec.open().size) == (
        "dinov2",
        "noise-16-held-out",
        (16, 16),
    )
    assert open_dataset("noise-16").fetch(torch.arange(2)).labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="data noise-16 has images of 16x16, not 32x32; omit the size"):
        open_dataset("noise-16", Preparation(size="32"))
    assert find_builtin("noisy") is None


def test_a_survey_checks_the_size_as_training_does(noise, place):
    with pytest.raises(InputError, match="data noise-16 has images of 16x16, not 32x32; omit the size"):
        parse_source("noise-16").images(Preparation(size="32"))
    with pytest.raises(InputError, match=r"^samples\.npz has images of 8x8, not 4x4; omit the size$"):
        parse_source("samples.npz").images(Preparation(size="4"))
    assert len(parse_source("samples.npz").images(Preparation(size="8"))) == 3


def test_a_survey_of_a_built_in_data_set(noise):
    result = survey(parse_source("noise-16").images(), Console(quiet=True))
    assert (result.images, result.classes, result.sizes) == (20, {"a": 10, "b": 10}, {"16x16": 20})
    assert survey(parse_source("digits-held-out").images(), Console(quiet=True)).modes == {"L": 360}


def test_a_cache_has_no_images_to_survey(place):
    with pytest.raises(InputError, match="cache is a latent cache and holds no images"):
        parse_source("cache").images()


def test_missing_shards_are_named(place):
    for text in ("shards.tar", "shards/*.tar"):
        with pytest.raises(InputError, match=r'no tar file "shards.*"; give an existing file, folder or pattern'):
            open_dataset(text)


def test_a_condition_of_another_type_passes_through_a_data_set():
    from ditlab.core.types import Condition

    class Captioned(InMemory):
        def condition(self, indices):
            return Condition(tokens=self.tokens[indices])

    data = Captioned(torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4, dtype=torch.long), [])
    data.tokens = torch.randn(4, 5, 6)
    assert isinstance(data, Dataset)
    assert torch.equal(data.fetch(torch.tensor([3, 0])).condition.tokens, data.tokens[[3, 0]])


def test_a_single_file_and_nothing_name_no_data(place):
    (place / "a.png").write_bytes(b"x")
    single = r'this is a single file; give its folder \(\.\), or a pattern such as "\./\*\.jpg"$'
    for read in (parse_source, open_source):
        with pytest.raises(InputError, match=single):
            read("a.png")
        with pytest.raises(InputError, match=r'no data (at )?""'):  # which `Path` takes for the present folder
            read("")
