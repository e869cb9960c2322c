import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset

from ditlab.core.errors import InputError
from ditlab.data import from_torch


class Pairs(torch.utils.data.Dataset):
    """A map-style data set over a list of pairs."""

    def __init__(self, pairs, **attributes):
        self.pairs, self.reads = pairs, 0
        vars(self).update(attributes)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        self.reads += 1
        return self.pairs[i]


def pil(value, mode="RGB", size=(12, 8)):
    return Image.new(mode, size, value)


def test_pil_images_with_class_names():
    pairs = Pairs([(pil((i, 0, 0)), i % 2) for i in range(4)], classes=["cat", "dog"])
    data = from_torch(pairs)
    assert (len(data), data.channels, data.size, data.classes) == (4, 3, (8, 12), ["cat", "dog"])
    batch = data.fetch(torch.tensor([3, 0]))
    assert (batch.x.dtype, tuple(batch.x.shape)) == (torch.uint8, (2, 3, 8, 12))
    assert (batch.x[:, 0, 0, 0].tolist(), batch.labels.tolist()) == ([3, 0], [1, 0])
    assert not batch.encoded


def test_arrays_and_tensors_are_pairs():
    chance = np.random.default_rng(0)
    arrays = chance.integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 1, 0])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    named = {"images": arrays, "labels": labels, "classes": ["a", "b", "c"]}
    for given in ((arrays, labels), [tensors, torch.from_numpy(labels)], named):
        data = from_torch(given)
        assert (len(data), data.channels, data.size) == (5, 3, (8, 12))
        batch = data.fetch(torch.tensor([4, 2]))
        assert torch.equal(batch.x, tensors[[4, 2]])
        assert batch.labels.tolist() == [0, 2]
    assert data.classes == ["a", "b", "c"]
    gray = from_torch((arrays[..., 0] / 255.0, labels))
    assert (gray.channels, gray.values.dtype) == (1, "float32")


def test_arrays_that_do_not_fit_are_named():
    images, labels = np.zeros((4, 8, 8), np.uint8), np.zeros(4, int)
    for given, message in [
        ((images, labels[:3]), "4 images and 3 labels; give one for each"),
        ((images[0], labels), r"images have the shape \(8, 8\); give arrays"),
        ((images, [0, 0, 0, 0]), r"labels are \[0, 0, 0, 0\]; give arrays"),
        ({"x": images, "labels": labels}, 'the dictionary of data has x, labels; give "images", "labels"'),
        ({"images": images}, 'the dictionary of data has images; give "images", "labels"'),
    ]:
        with pytest.raises(InputError, match=f"^{message}"):
            from_torch(given)


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (pil(7, "L"), 1),
        (torch.full((1, 8, 12), 7).byte(), 1),
        (torch.full((3, 8, 12), 7).byte(), 3),
        (torch.full((8, 12), 7).byte(), 1),
        (np.full((8, 12, 3), 7, np.uint8), 3),
        (np.full((8, 12), 7, np.uint8), 1),
    ],
)
def test_types_of_images(image, channels):
    data = from_torch(Pairs([(image, 0)]))
    assert (data.channels, data.size, data.classes) == (channels, (8, 12), ["0"])
    assert data.fetch(torch.tensor([0])).x.unique().tolist() == [7]


def test_labels_are_listed_without_reading_images_where_that_is_possible():
    pairs = Pairs([(pil((i, 0, 0)), i) for i in range(5)], targets=[0, 1, 2, 3, 4])
    assert from_torch(pairs).labels.tolist() == [0, 1, 2, 3, 4]
    assert pairs.reads == 1
    subset = from_torch(Subset(pairs, [4, 2]))
    assert (subset.labels.tolist(), pairs.reads) == ([4, 2], 2)
    assert subset.fetch(torch.tensor([0])).x[0, 0, 0, 0] == 4
    tensors = TensorDataset(torch.zeros(3, 3, 8, 8).byte(), torch.tensor([2, 0, 1]))
    assert from_torch(tensors).labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(torch.zeros(3, 8, 8, dtype=torch.complex64), 0)], "image 0: numbers of type complex64; give integers"),
        ([("a.png", 0)], "image 0 is of type str; give PIL images"),
        ([(torch.zeros(8, 8, 3).byte(), 0)], r"image 0 has the shape \(8, 8, 3\) with channels first"),
        ([(pil(0), "a cat")], "label 0 is 'a cat'; give integers from 0"),
        ([(pil(0), -1)], "label 0 is -1; give integers from 0"),
        ([(pil(0), 0.5)], r"label 0 is 0\.5; give integers"),
        ([pil(0)], "item 0 is of type Image; give pairs of an image and a label"),
        ([], "Pairs holds no images"),
    ],
)
def test_what_cannot_be_used_is_named(pairs, message):
    with pytest.raises(InputError, match=message):
        from_torch(Pairs(pairs))


def test_images_of_other_sizes_are_named():
    data = from_torch(Pairs([(pil(0), 0), (pil(0, size=(10, 8)), 0)]))
    with pytest.raises(InputError, match=r"image 1 has the shape \(3, 8, 10\) but image 0 has \(3, 8, 12\); resize"):
        data.fetch(torch.tensor([0, 1]))


def test_a_stream_is_no_map_style_data_set():
    class Stream(IterableDataset):
        def __iter__(self):
            yield pil(0), 0

    with pytest.raises(InputError, match=r"^data is one array; give \(images, labels\), with the label 0 for all"):
        from_torch(np.zeros((4, 8, 8), dtype=np.uint8))
    with pytest.raises(InputError, match="Stream is not a map-style data set; give one with __len__ and __getitem__"):
        from_torch(Stream())


def test_class_names_must_suffice():
    with pytest.raises(InputError, match="label 2 for 2 classes; give labels from 0 to 1"):
        from_torch(Pairs([(pil(0), 2)], classes=["a", "b"]))
