"""Decoded images are kept in memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.data import kept, open_dataset
from ditlab.data.builtin.glyphs import Glyphs
from ditlab.data.sources.folder import Folder


@pytest.fixture
def images(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_an_image_is_decoded_once(images, monkeypatch):
    decoded = []
    original = Folder.decoded
    monkeypatch.setattr(Folder, "decoded", lambda self, i, **options: decoded.append(i) or original(self, i, **options))
    dataset = open_dataset(str(images))
    first = dataset.fetch(torch.tensor([3, 1, 3])).x
    again = dataset.fetch(torch.tensor([3, 1])).x
    assert sorted(set(decoded)) == [1, 3]
    assert first[:, 0, 0, 0].tolist() == [120, 40, 120]
    assert torch.equal(again, first[:2])
    assert len(decoded) <= 3  # two threads may decode the same image at the same time


def test_images_that_do_not_fit_are_read_again(images, monkeypatch):
    monkeypatch.setattr(kept, "free_memory", lambda device: 4 * 4 * 192 - 1)  # a quarter of it is too little by a byte
    dataset = open_dataset(str(images))
    dataset.fetch(torch.arange(4))
    assert dataset.kept.parts[0].arrays is None
    monkeypatch.setattr(kept, "free_memory", lambda device: 4 * 4 * 192)
    dataset = open_dataset(str(images))
    dataset.fetch(torch.arange(4))
    assert dataset.kept.parts[0].arrays.nbytes == 4 * 192


def test_processes_share_the_memory(images, monkeypatch):
    monkeypatch.setattr(kept, "free_memory", lambda device: 4 * 4 * 192)
    monkeypatch.setattr(kept, "process_place", lambda: (0, 2))
    dataset = open_dataset(str(images))
    dataset.fetch(torch.arange(4))
    assert dataset.kept.parts[0].arrays is None


def test_a_batch_does_not_change_what_is_kept(images):
    dataset = open_dataset(str(images))
    dataset.fetch(torch.tensor([1])).x.zero_()
    assert dataset.fetch(torch.tensor([1])).x.unique().tolist() == [40]
    glyphs = Glyphs(16, 2)
    before = glyphs.fetch(torch.tensor([0])).x.clone()
    glyphs.fetch(torch.tensor([0])).x.zero_()
    assert torch.equal(glyphs.fetch(torch.tensor([0])).x, before)
