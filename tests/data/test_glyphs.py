import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ditlab.data import glyphs as module
from ditlab.data import open_dataset
from ditlab.data.glyphs import Glyphs
from ditlab.data.own import write_folder
from ditlab.errors import InputError

HASH = """
import hashlib, torch
from ditlab.data.glyphs import Glyphs
print(hashlib.sha256(Glyphs(32).fetch(torch.arange(90, 110)).images.numpy().tobytes()).hexdigest())
"""


def test_a_picture_is_its_seed_and_number_alone():
    data = Glyphs(32)
    together, apart = data.fetch(torch.tensor([7, 99, 3])).images, data.fetch(torch.tensor([99])).images
    assert torch.equal(together[1], apart[0])
    assert data.look(99) == Glyphs(128).look(99)
    assert not torch.equal(apart, Glyphs(32, seed=1).fetch(torch.tensor([99])).images)
    here = hashlib.sha256(data.fetch(torch.arange(90, 110)).images.numpy().tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there


def test_labels_are_balanced_and_named():
    data = Glyphs(16, count=26 * 40)
    assert torch.bincount(data.labels).tolist() == [40] * 26
    assert data.classes[data.labels[27]] == "B"


def test_a_larger_picture_is_the_same_one_only_finer():
    small, large = (Glyphs(size).fetch(torch.arange(52)).images.float() for size in (32, 128))
    reduced = F.avg_pool2d(large, 4)
    likeness = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(small, reduced, strict=True)]
    assert min(likeness) > 0.9


@pytest.mark.parametrize("size", [16, 32, 96])
def test_letters_lie_wholly_inside(size):
    images = Glyphs(size).fetch(torch.arange(260)).images
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1)
    assert (border == border[..., :1]).all()
    assert (images.flatten(2).float().std(2).amax(1) > 8).all()


def test_held_out_pictures_are_others():
    train, held_out = Glyphs(32), Glyphs(32, held_out=True)
    assert {train.look(i) for i in range(500)}.isdisjoint({held_out.look(i) for i in range(500)})


def test_letters_can_be_told_apart_but_not_by_their_mean():
    data, other = Glyphs(16), Glyphs(16, held_out=True)

    def features(dataset, count):
        images = dataset.fetch(torch.arange(count)).images.float().mean(1).flatten(1)
        return (images - images[:, :1]).abs()  # ink against paper

    train, test = features(data, 2600), features(other, 520)
    means = torch.stack([train[data.labels[:2600] == k].mean(0) for k in range(26)])
    right = (torch.cdist(test, means).argmin(1) == other.labels[:520]).float().mean().item()
    assert 2 / 26 < right < 0.9


def test_names_and_sizes():
    assert open_dataset("glyphs").size == (32, 32)
    assert open_dataset("glyphs-64").size == (64, 64)
    for name, message in {"glyphs-7": "glyphs of size 7; give 16 to 256", "glyphs-x": "give glyphs-SIZE"}.items():
        with pytest.raises(InputError, match=message):
            open_dataset(name)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    module.font_folder.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ditlab\[glyphs\]'"):
        Glyphs(32)
    module.font_folder.cache_clear()


def test_written_folder_holds_the_same_pictures(tmp_path):
    data = Glyphs(24)
    write_folder(data, tmp_path, 30)
    read = open_dataset(str(tmp_path))
    assert (len(read), len(read.classes)) == (30, 26)
    again = np.asarray(Image.open(tmp_path / "B" / "000027.png"))
    assert np.array_equal(again, data.fetch(torch.tensor([27])).images[0].permute(1, 2, 0).numpy())
