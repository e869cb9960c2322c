"""Digits on canvases of several sizes."""

import torch

from ditlab.data import open_dataset
from ditlab.data.builtin.digits_on_canvas import CANVASES, PLACES, DigitsOnCanvas


def test_every_image_is_one_digit_on_a_dark_canvas() -> None:
    data = open_dataset("digits-on-canvas")
    assert isinstance(data, DigitsOnCanvas)
    assert data.buckets is not None
    assert data.buckets.sizes == CANVASES
    assert len(data) == PLACES * 1437
    assert data.buckets.counts == [len(data) // 3] * 3
    indices = next(data.buckets.order(8, 0, 0))
    images = data.fetch(indices)
    for i, image, label in zip(indices.tolist(), images.x, images.labels, strict=True):
        digit, (row, column) = i % 1437, data.place(i)
        assert torch.equal(image[:, row : row + 8, column : column + 8], data.digits.images[digit])
        assert image.sum() == data.digits.images[digit].sum()
        assert label == data.digits.labels[digit]
    places = [data.place(int(i)) for i in data.buckets.members[1][:300]]
    assert {row for row, _ in places} == {column for _, column in places} == set(range(9))


def test_held_out_digits_and_other_canvases() -> None:
    held_out = open_dataset("digits-on-canvas").held_out_name
    assert len(open_dataset(held_out)) == PLACES * 360
    wide = DigitsOnCanvas(held_out=True, canvases=((8, 30),))
    assert wide.fetch(torch.arange(4)).x.shape == (4, 1, 8, 30)
