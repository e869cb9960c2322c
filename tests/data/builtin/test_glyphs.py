import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ditlab.core.errors import InputError
from ditlab.data import open_dataset, parse_source
from ditlab.data.builtin import glyphs as module
from ditlab.data.builtin.glyphs import Glyphs, open_glyphs
from ditlab.data.images import write_folder

HASH = """
import hashlib, torch
from ditlab.data.builtin.glyphs import Glyphs
print(hashlib.sha256(Glyphs(32).fetch(torch.arange(90, 110)).x.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_an_image_is_its_seed_and_number_alone():
    data = Glyphs(32)
    together, apart = data.fetch(torch.tensor([7, 99, 3])).x, data.fetch(torch.tensor([99])).x
    assert torch.equal(together[1], apart[0])
    assert data.appearance(99) == Glyphs(128).appearance(99)
    assert not torch.equal(apart, Glyphs(32, seed=1).fetch(torch.tensor([99])).x)
    here = hashlib.sha256(data.fetch(torch.arange(90, 110)).x.numpy().tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there


def test_the_images_are_those_that_scores_were_published_for():
    appearance, other = Glyphs(32).appearance(0), Glyphs(64, seed=3, held_out=True).appearance(49_999)
    assert (appearance.letter, appearance.face, appearance.ink, appearance.paper) == (
        0,
        7,
        (252, 225, 215),
        (100, 55, 66),
    )
    assert appearance[2:7] == pytest.approx((0.7229366, -9.2085314, 0.0012292, 0.0165276, 0.8132703), abs=1e-6)
    assert (other.letter, other.face, other.ink, other.paper) == (1, 7, (64, 44, 67), (201, 181, 180))


def test_appearances_are_varied_and_have_contrast():
    data = Glyphs(32)
    appearances = [data.appearance(i) for i in range(1000)]
    assert {appearance.face for appearance in appearances} == set(range(12))
    for name, low, high in (("height", 0.5, 0.85), ("angle", -20, 20), ("stroke", 0, 0.03), ("across", 0, 1)):
        values = np.array([getattr(appearance, name) for appearance in appearances])
        assert np.quantile(values, [0, 0.5, 1]) == pytest.approx([low, (low + high) / 2, high], abs=0.05 * (high - low))
    gap = np.array([appearance.ink for appearance in appearances]) - np.array(
        [appearance.paper for appearance in appearances]
    )
    assert (np.sign(gap) == np.sign(gap[:, :1])).all()  # ink is the darker or the lighter in every color
    assert abs(gap).min() >= 36


def test_labels_are_balanced_and_named():
    data = Glyphs(16, count=26 * 40)
    assert torch.bincount(data.labels).tolist() == [40] * 26
    assert data.classes[data.labels[27]] == "B"


def test_a_larger_image_is_the_same_one_only_finer():
    small, large = (Glyphs(size).fetch(torch.arange(52)).x.float() for size in (32, 128))
    reduced = F.avg_pool2d(large, 4)
    likeness = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(small, reduced, strict=True)]
    assert min(likeness) > 0.9


@pytest.mark.parametrize("size", [16, 32, 96])
def test_letters_lie_wholly_inside(size):
    images = Glyphs(size).fetch(torch.arange(156)).x
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1)
    assert (border == border[..., :1]).all()
    assert (images.flatten(2).float().std(2).amax(1) > 8).all()


def test_held_out_images_are_others():
    train, held_out = Glyphs(32), Glyphs(32, held_out=True)
    assert {train.appearance(i) for i in range(500)}.isdisjoint({held_out.appearance(i) for i in range(500)})


@pytest.mark.slow
def test_letters_can_be_distinguished_but_not_by_their_mean():
    data, other = Glyphs(16), Glyphs(16, held_out=True)

    def features(dataset, count):
        images = dataset.fetch(torch.arange(count)).x.float().mean(1).flatten(1)
        return (images - images[:, :1]).abs()  # ink against paper

    train, test = features(data, 1300), features(other, 520)
    means = torch.stack([train[data.labels[:1300] == k].mean(0) for k in range(26)])
    right = (torch.cdist(test, means).argmin(1) == other.labels[:520]).float().mean().item()
    assert 8 / 26 < right < 0.7  # 0.46; chance is 1 / 26


def test_names_and_sizes():
    assert open_dataset("glyphs-64").size == (64, 64)
    assert parse_source("glyphs-64").held_out().text == open_dataset("glyphs-64").held_out_name == "glyphs-64-held-out"
    assert parse_source("glyphs-64-held-out").held_out() is None
    assert parse_source("glyphs-64").default_features() == "glyphs"
    assert [Glyphs(size).size for size in (16, 256)] == [(16, 16), (256, 256)]
    for size in ("7", "15", "257"):
        with pytest.raises(InputError, match=f"glyphs of size {size}; give 16 to 256"):
            open_dataset(f"glyphs-{size}")
    for name in ("glyphs-x", "glyphs-", "glyphs--32", "glyphs-32-x", "glyphs32"):
        with pytest.raises(InputError, match=f'data "{name}" has no size; give glyphs-SIZE, such as glyphs-32'):
            open_glyphs(name)
    with pytest.raises(InputError, match=r"give glyphs-SIZE, such as glyphs-32$"):
        open_dataset("glyphs")
    with pytest.raises(InputError, match=r"give glyphs-SIZE, such as glyphs-32-held-out$"):
        open_dataset("glyphs-held-out")
    for key in ("count", "seed"):
        with pytest.raises(InputError, match=f"glyphs with {key} -1; give 0 or more"):
            Glyphs(32, **{key: -1})


def test_an_empty_request_generates_nothing(tmp_path):
    batch = Glyphs(64).fetch(torch.arange(0))
    assert (tuple(batch.x.shape), tuple(batch.labels.shape)) == ((0, 3, 64, 64), (0,))
    write_folder(Glyphs(16), tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_threads_generate_the_same_images_in_order():
    data, order = Glyphs(64), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    batch = data.fetch(order)
    data.pool = None
    assert torch.equal(batch.x, data.fetch(order).x)
    assert torch.equal(batch.labels, order % 26)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    module.font_folder.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ditlab\[glyphs\]'"):
        Glyphs(32)
    module.font_folder.cache_clear()


def test_written_folder_holds_the_same_images(tmp_path):
    data = Glyphs(24)
    write_folder(data, tmp_path, 30)
    read = open_dataset(str(tmp_path))
    assert (len(read), len(read.classes)) == (30, 26)
    again = np.asarray(Image.open(tmp_path / "B" / "000027.png"))
    assert np.array_equal(again, data.fetch(torch.tensor([27])).x[0].permute(1, 2, 0).numpy())
