import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition
from ditlab.data import InMemory, ahead, open_dataset, training_order
from ditlab.data.builtin.digits import digits, held_out_digits


def save_image(path, value=0, size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_digits_are_the_whole_set_split_once():
    train, held_out = digits(), held_out_digits()
    assert (len(train), len(held_out)) == (1437, 360)
    assert train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255
    flat = torch.cat([train.images, held_out.images]).flatten(1).double()
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().data).mul(255 / 16).round()
    assert torch.equal(flat.sum(0), original.sum(0))
    shares = torch.bincount(held_out.labels) / torch.bincount(torch.cat([train.labels, held_out.labels]))
    assert shares.tolist() == pytest.approx([360 / 1797] * 10, abs=0.005)
    assert torch.equal(digits().images, train.images)


def test_order_is_a_permutation_each_epoch_and_a_pure_function():
    order = training_order(10, 4, seed=3, seen=0)
    flat = torch.cat([next(order) for _ in range(10)])
    for epoch in flat.reshape(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert flat[:10].tolist() != flat[10:20].tolist()
    for seen in (4, 8, 12, 20, 28):
        assert next(training_order(10, 4, seed=3, seen=seen)).tolist() == flat[seen : seen + 4].tolist()
    assert next(training_order(10, 4, seed=4, seen=0)).tolist() != flat[:4].tolist()


def test_a_batch_may_be_larger_than_the_data():
    assert torch.bincount(next(training_order(3, 7, seed=0, seen=0))).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_folder_of_classes(tmp_path):
    save_image(tmp_path / "otter" / "1.png", (10, 20, 30))
    save_image(tmp_path / "great white" / "é 1.png", (1, 2, 3))
    save_image(tmp_path / "great white" / "2.bmp", (4, 5, 6))
    (tmp_path / "great white" / "notes.txt").write_text("not an image")
    data = open_dataset(str(tmp_path))
    assert data.classes == ["great white", "otter"]
    assert (data.channels, data.size, len(data)) == (3, (8, 12), 3)
    batch = data.fetch(torch.tensor([2, 0]))
    assert batch.labels.tolist() == [1, 0]
    assert batch.x.dtype is torch.uint8
    assert batch.x[0, :, 0, 0].tolist() == [10, 20, 30]
    assert batch.x[1, :, 7, 11].tolist() == [4, 5, 6]


def test_gray_and_flat_folder(tmp_path):
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).save(tmp_path / "a.png")
    data = open_dataset(str(tmp_path))
    assert data.classes == []
    assert data.fetch(torch.tensor([0])).x.flatten().tolist() == list(range(96))


def test_classes_and_files_are_in_natural_order(tmp_path):
    for name in ("10", "9", "1"):
        for number in (2, 10):
            save_image(tmp_path / name / f"p{number}.png", (int(name), number, 0))
    data = open_dataset(str(tmp_path))
    assert data.classes == ["1", "9", "10"]
    assert data.fetch(torch.arange(6)).x[:, :2, 0, 0].tolist() == [
        [1, 2],
        [1, 10],
        [9, 2],
        [9, 10],
        [10, 2],
        [10, 10],
    ]


def test_rotated_and_transparent_images_are_read_as_displayed(tmp_path):
    upright = Image.new("RGB", (8, 12), (9, 8, 7))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    upright.save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (12, 8), (10, 20, 30, 0)).save(tmp_path / "b.png")
    data = open_dataset(str(tmp_path))
    assert data.size == (8, 12)
    assert data.fetch(torch.tensor([1])).x.unique().tolist() == [255]


def test_stray_files_are_rejected_and_hidden_ones_ignored(tmp_path):
    save_image(tmp_path / "c" / "a.png")
    (tmp_path / "c" / "._a.png").write_bytes(b"resource fork")
    assert len(open_dataset(str(tmp_path))) == 1
    save_image(tmp_path / "stray.png")
    with pytest.raises(InputError, match=r"stray\.png lies beside the class folders"):
        open_dataset(str(tmp_path))


def test_images_of_other_sizes_are_named(tmp_path):
    save_image(tmp_path / "c" / "a.png")
    save_image(tmp_path / "c" / "b.png", size=(10, 8))
    with pytest.raises(InputError, match=r"b\.png has 8x10 pixels .*a\.png has 8x12; give a size"):
        open_dataset(str(tmp_path))


def test_broken_empty_and_missing_folders(tmp_path):
    with pytest.raises(InputError, match="no images in"):
        open_dataset(str(tmp_path))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"the only image cannot be read: c/a\.png"):
        open_dataset(str(tmp_path))
    with pytest.raises(InputError, match='did you mean "digits"'):
        open_dataset("digit")


def test_reading_ahead_keeps_order_and_passes_errors_on():
    asked = []

    def fetch(indices):
        asked.append(indices.tolist())
        if 6 in indices:
            raise InputError("broken")
        return Batch(indices[:, None, None, None], Condition(label=indices))

    batches = ahead(iter(torch.arange(10).split(2)), fetch)
    assert next(batches).labels.tolist() == [0, 1]
    assert next(batches).labels.tolist() == [2, 3]
    assert next(batches).labels.tolist() == [4, 5]
    with pytest.raises(InputError, match="broken"):
        next(batches)
    assert asked[:4] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    few = ahead(iter(torch.arange(3).split(2)), fetch)
    assert [batch.labels.tolist() for batch in few] == [[0, 1], [2]]
    assert list(ahead(iter([]), fetch)) == []


def test_reading_ahead_is_two_batches_deep_and_ends_with_its_reader():
    asked = []

    def fetch(indices):
        asked.append(indices.item())
        return Batch(indices, Condition(label=indices))

    before = set(threading.enumerate())  # a set, because threads of earlier tests may end meanwhile
    batches = ahead(iter(torch.arange(100).split(1)), fetch)
    next(batches)
    deadline = time.monotonic() + 10
    while len(asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert asked == [0, 1, 2]
    batches.close()
    assert not set(threading.enumerate()) - before
    assert asked == [0, 1, 2]


def test_each_data_set_has_its_own_reading():
    first, second = (InMemory(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), []) for _ in range(2))
    first.reading.notes.append("a note")
    assert (first.reading.notes, second.reading.notes) == (["a note"], [])


def test_no_images_in_memory_are_one_line():
    with pytest.raises(InputError, match=r"^there are no images; give at least one$"):
        InMemory(torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), [])
