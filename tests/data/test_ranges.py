import numpy as np
import pytest
import torch
from helpers import Items
from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.values import EIGHT_BITS, PixelValues
from ditlab.data import InMemory, SampleFile, from_torch, images, open_dataset, ranges
from ditlab.data.images import Images, write_folder
from ditlab.data.preprocess import Preprocess
from ditlab.data.ranges import find_values, plain

RNG = np.random.default_rng(0)


def everything(data):
    """All numbers of a data set (N, H, W, C), of the type of the files."""
    return data.values.restored(data.fetch(torch.arange(len(data))).x).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("dtype", "low", "high", "expected"),
    [
        ("u2", 3, 4095, (0, 4095)),  # a CT of 12 bits
        ("u2", 0, 10_000, (0, 16383)),  # reflectance
        ("u2", 0, 65535, (0, 65535)),
        ("u2", 0, 0, (0, 1)),
        ("i2", -1024, 3071, (-1024, 3071)),
        ("i2", 0, 3071, (0, 4095)),
        ("i4", 0, 100_000, (0, 131071)),
        ("i1", -5, 5, (-5, 5)),
        ("f4", 0.1, 0.9, (0, 1)),
        ("f4", -0.5, 1, (-1, 1)),
        ("f8", -3.5, 12.25, (-3.5, 12.25)),
        ("f2", 0, 255, (0, 255)),
    ],
)
def test_the_range_follows_from_the_numbers(dtype, low, high, expected):
    arrays = [np.full((8, 9, 2), value, dtype) for value in (low, high)]
    data = Images(Items(*arrays))
    assert (data.values.low, data.values.high) == ((expected[0],), (expected[1],))
    assert data.channels == 2
    x = data.fetch(torch.arange(2)).x
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (2, 2, 8, 9))
    scale = (np.array([low, high]) - expected[0]) / (expected[1] - expected[0]) * 2 - 1
    assert x[:, 0, 0, 0].tolist() == pytest.approx(scale.tolist(), abs=1e-6)
    assert np.abs(everything(data) - np.stack(arrays)).max() <= 1e-6 * max(1, high)
    assert data.reading.notes == [
        f"{data.values.dtype} numbers, of which {expected[0]:g} is black and {expected[1]:g} is white, from all images"
    ]


def test_12_bits_keep_4096_levels(tmp_path):
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    data = open_dataset(str(tmp_path))
    assert data.values == PixelValues("uint16", (0.0,), (4095.0,))
    assert (data.channels, len(data.fetch(torch.arange(2)).x.unique())) == (1, 4096)
    assert np.array_equal(everything(data)[0, ..., 0], pixels)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bit_modes_of_any_byte_order_are_gray(mode):
    image = Image.frombytes(mode, (8, 8), np.arange(64, dtype=">u2" if mode == "I;16B" else "<u2").tobytes())
    read = Preprocess(None, values=PixelValues("uint16", (0.0,), (63.0,)))(image)
    assert np.array_equal(read[..., 0], np.arange(64).reshape(8, 8))


def test_a_given_range_is_not_clipped():
    array = np.array([-2000, -1024, 3071, 4000], np.int16).repeat(16).reshape(8, 8, 1)
    data = Images(Items(array), range="-1024,3071")
    x = data.fetch(torch.tensor([0])).x
    assert x[0, 0, ::2, 0].tolist() == pytest.approx([-1.476679, -1, 1, 1.453724], abs=1e-5)
    assert data.reading.notes == [
        "int16 numbers, of which -1024 is black and 3071 is white; the numbers of all images are from -2000 to 4000, "
        "100 % of this range, and 50 % of them lie outside of it"
    ]
    eight = Images(Items(np.full((8, 8, 1), 50, np.uint8)), range="0,100")
    assert eight.fetch(torch.tensor([0])).x.unique().tolist() == [0.0]
    assert Images(Items(np.full((8, 8, 1), 50, np.uint8)), range="0,255").values == EIGHT_BITS


@pytest.mark.parametrize(
    ("dtype", "values", "range", "used"),
    [
        ("u2", (0, 4095), "0,65535", "from 0 to 4095, 6.25 % of this range"),
        ("u1", (0, 64, 128, 255), "0,1", "from 0 to 255, 100 % of this range, and 75 % of them lie outside of it"),
        ("f4", (5, 6), "0,1", "from 5 to 6, 0 % of this range, and 100 % of them lie outside of it"),
    ],
)
def test_the_used_part_of_a_given_range_is_reported(tmp_path, dtype, values, range, used):
    arrays = [np.full((8, 9, 2), value, dtype) for value in values]
    low, high = range.split(",")
    start = (
        f"{np.dtype(dtype).name} numbers, of which {low} is black and {high} is white; the numbers of all images are "
    )
    assert Images(Items(*arrays), range=range).reading.notes == [start + used]
    np.savez(tmp_path / "x.npz", np.stack(arrays))
    assert open_dataset(str(tmp_path / "x.npz"), Preparation(range=range)).reading.notes == [start + used]


def test_a_given_range_is_compared_with_a_sample_of_a_large_data_set(monkeypatch):
    monkeypatch.setattr(ranges, "CHECKED", 3)
    monkeypatch.setattr(images, "CHECKED", 3)
    data = Images(Items(*[np.full((8, 8, 1), i, np.uint16) for i in (7, 7, 7, 7)]), range="0,14")
    assert data.reading.notes[0].endswith("of a sample of 3 images are from 7 to 7, 0 % of this range")


def test_standardized_channels():
    arrays = RNG.normal([5, -200, 0.01], [2, 50, 0.001], (20, 16, 16, 3)).astype("f4")
    data = Images(Items(*arrays), range="standardize", show=(2,))
    x = data.fetch(torch.arange(20)).x.double()
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert data.values.shown == (2,)
    assert data.values.high == pytest.approx(arrays.max((0, 1, 2)).tolist())
    assert everything(data) == pytest.approx(arrays, rel=1e-5, abs=1e-4)
    assert Images(Items(*arrays), range="standardize", show=(2,)).values == data.values
    with pytest.raises(InputError, match="all numbers of channel 2 are 7, which cannot be standardized"):
        Images(Items(np.stack([arrays[0, ..., 0], np.full((16, 16), 7)], -1)), range="standardize")


def test_a_sample_of_a_large_data_set_is_read(monkeypatch):
    monkeypatch.setattr(ranges, "SAMPLE", 4)
    arrays = [np.full((8, 8, 1), 2**i, np.uint16) for i in range(10)]
    data = Images(Items(*arrays))
    chosen = ranges.sampled(10)
    assert len(chosen) == 4
    assert data.values.high == (float(2 ** (int(chosen.max()) + 1) - 1),)
    assert data.reading.notes[0].endswith("from a sample of 4 images")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"setting": "5"}, 'range is "5"; give LOW,HIGH such as -1024,3071, or standardize'),
        ({"setting": "5,5"}, 'range is "5,5"; give LOW,HIGH'),
        ({"setting": "0,inf"}, 'range is "0,inf"; give LOW,HIGH'),
        ({"show": (1, 2)}, "show is 1, 2; give one or three channels from 1 to 4"),
        ({"show": (5,)}, "show is 5; give one or three channels from 1 to 4"),
        ({"numbers": lambda: [np.full((8, 8, 4), 5.0)]}, r"all numbers are 5; give a range \(data.range\)"),
        ({"numbers": tuple}, "no image can be read to find the range"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(InputError, match=message):
        find_values("float32", 4, **settings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_left_out(value):
    good, bad = np.zeros((8, 8, 1)), np.full((8, 8, 1), value)
    data = Images(Items(good, bad))
    assert data.fetch(torch.arange(2)).x.unique().tolist() == [-1.0]
    assert data.skipped == {"image 1": "values that are not finite"}


def test_types_are_kept():
    assert plain(np.array([True, False])).tolist() == [255, 0]
    assert plain(np.array([1, 2], ">u2")).dtype == np.dtype("uint16")
    assert plain(np.array([1, 2], ">u2")).tolist() == [1, 2]
    assert plain(np.array([1], "u4")).dtype == np.int32


def test_a_mixture_of_8_and_16_bits_is_read_at_8(tmp_path):
    Image.fromarray(np.full((8, 8), 257 * 99, np.uint16)).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "b.png")
    data = open_dataset(str(tmp_path))
    x = data.fetch(torch.arange(2)).x
    assert (x.dtype, x[:, 0, 0, 0].tolist()) == (torch.uint8, [99, 7])
    assert data.reading.notes == ["1 image of more than 8 bits, reduced to 8 because others have 8"]
    with pytest.raises(InputError, match=r"range is 0,9, but the images have different types \(uint16, uint8\)"):
        open_dataset(str(tmp_path), Preparation(range="0,9"))


def test_types_of_more_than_8_bits_are_joined():
    data = Images(Items(np.full((8, 8, 1), 100, np.uint16), np.full((8, 8, 1), -50, np.int16)))
    assert data.values == PixelValues("int32", (-50.0,), (100.0,))
    data = Images(Items(np.full((8, 8, 1), 100, np.uint16), np.full((8, 8, 1), -0.5, "f4")))
    assert data.values == PixelValues("float32", (-0.5,), (100.0,))


@pytest.mark.parametrize(("dtype", "channels"), [("u2", 3), ("f4", 13), ("i2", 2)])
def test_arrays_are_resized_channel_by_channel(dtype, channels):
    array = (RNG.random((40, 60, channels)) * 1000).astype(dtype)
    for fit, size in (("crop", (20, 20)), ("stretch", (10, 14)), ("letterbox", (20, 20)), ("crop", (48, 48))):
        data = Images(Items(array), Preprocess(size, fit=fit, background="black"), range="0,2000")
        read = (data.fetch(torch.tensor([0])).x[0].permute(1, 2, 0).numpy() + 1) * 1000
        alone = [
            Images(Items(array[..., i : i + 1]), Preprocess(size, fit=fit, background="black"), range="0,2000")
            for i in range(channels)
        ]
        expected = [(each.fetch(torch.tensor([0])).x[0, 0].numpy() + 1) * 1000 for each in alone]
        assert np.abs(read - np.stack(expected, -1)).max() < 1e-2
    halves = Images(Items(array), Preprocess((20, 30)), range="0,2000").fetch(torch.tensor([0])).x[0]
    mean = array.reshape(20, 2, 30, 2, channels).mean((1, 3))
    assert np.abs((halves.permute(1, 2, 0).numpy() + 1) * 1000 - mean).max() < 1e-2


def test_interpolation_stays_within_black_and_white():
    array = np.zeros((16, 16, 1), np.uint16)
    array[8:] = 4095
    x = Images(Items(array), Preprocess((24, 24))).fetch(torch.tensor([0])).x
    assert (x.min(), x.max()) == (-1, 1)


def test_bars_have_the_level_of_the_background():
    array = np.full((16, 32, 2), 1000, np.int16)
    for background, level in (("black", -1.0), ("white", 1.0), ("#808080", 128 / 127.5 - 1)):
        data = Images(Items(array), Preprocess((32, 32), "letterbox", background=background), range="-1024,3071")
        assert data.fetch(torch.tensor([0])).x[0, :, 0, 0].tolist() == pytest.approx([level] * 2, abs=1e-6)
    colors = Images(Items(array[..., :1].repeat(3, -1)), Preprocess((32, 32), "letterbox", background="#ff0000"))
    assert colors.fetch(torch.tensor([0])).x[0, :, 0, 0].tolist() == [1, -1, -1]
    bytes_ = Images(Items(np.full((16, 32, 13), 9, np.uint8)), Preprocess((32, 32), "letterbox", background="#808080"))
    assert bytes_.fetch(torch.tensor([0])).x[0, :, 0, 0].tolist() == [128] * 13


def test_flipped_arrays():
    array = np.arange(8 * 9 * 5, dtype=np.uint16).reshape(8, 9, 5)
    data = Images(Items(array), Preprocess(None, flip=True))
    assert np.array_equal(everything(data)[1], array[:, ::-1])


def test_gray_and_rgb_numbers_are_converted():
    colors = np.full((8, 8, 3), (100, 200, 50), np.uint16)
    gray = Images(Items(colors), Preprocess(None, channels=1), range="0,255")
    assert everything(gray).flatten()[0] == round(0.299 * 100 + 0.587 * 200 + 0.114 * 50)
    data = Images(Items(colors, colors[..., :1]))
    assert everything(data)[1, 0, 0].tolist() == [100] * 3


def test_in_memory_images_of_any_type():
    labels = torch.zeros(4, dtype=torch.long)
    black = InMemory(torch.zeros(4, 3, 8, 8), labels, [])
    assert black.fetch(torch.arange(4)).x.unique().tolist() == [-1]
    white = InMemory(torch.ones(4, 1, 8, 8, dtype=torch.bool), labels, [])
    assert white.fetch(torch.arange(4)).x.unique().tolist() == [255]
    many = torch.randint(0, 256, (4, 13, 8, 8), dtype=torch.uint8)
    assert InMemory(many, labels, []).fetch(torch.arange(4)).x is not None
    assert InMemory(many, labels, []).images is many
    deep = torch.from_numpy(np.full((4, 2, 8, 8), 4095, np.uint16))
    assert InMemory(deep, labels, []).values == PixelValues("uint16", (0.0,), (4095.0,))
    values = PixelValues("float32", (-10.0,), (10.0,))
    assert InMemory(torch.full((4, 1, 8, 8), 5.0), labels, [], values=values).images.unique().tolist() == [0.5]
    video = InMemory(torch.rand(4, 3, 2, 8, 8), labels, [])
    assert (video.channels, video.size) == (3, (2, 8, 8))
    with pytest.raises(InputError, match="some images hold numbers that are not finite"):
        InMemory(torch.full((4, 1, 8, 8), torch.nan), labels, [])
    with pytest.raises(InputError, match=r"images of shape \(4, 8, 8\) with 4 labels; give images \(N, C, H, W\)"):
        InMemory(torch.zeros(4, 8, 8), labels, [])


@pytest.mark.parametrize(("dtype", "channels"), [("u1", 13), ("u2", 1), ("i2", 4), ("f4", 3), ("?", 1)])
def test_sample_files_of_any_type_and_channels(tmp_path, dtype, channels):
    images = (RNG.random((5, 8, 9, channels)) * 5000).astype(dtype)
    np.savez(tmp_path / "a.npz", images, np.arange(5))
    data = open_dataset(str(tmp_path / "a.npz"))
    assert (data.channels, data.size, data.labels.tolist()) == (channels, (8, 9), [0, 1, 2, 3, 4])
    expected = images.astype("u1") * 255 if dtype == "?" else images
    assert np.abs(everything(data) - expected.astype("f8")).max() <= (1e-3 if dtype == "f4" else 0)
    chosen = open_dataset(str(tmp_path / "a.npz"), Preparation(range="0,9999", show=(channels,)))
    assert (chosen.values.high, chosen.values.shown) == ((9999.0,), (channels,))


def test_sample_files_that_hold_no_numbers(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, np.full((3, 8, 8, 1), np.nan))
    with pytest.raises(InputError, match="holds numbers that are not finite"):
        SampleFile(file)
    np.savez(file, np.zeros((3, 3, 8, 8)))
    with pytest.raises(InputError, match=r"arr_0 of shape \(3, 3, 8, 8\) and type float64; give images \(N, height"):
        SampleFile(file)


def test_torch_data_sets_of_any_type():
    def wrapped(*images, **settings):
        return from_torch([(image, 0) for image in images], **settings)

    floats = wrapped(torch.zeros(3, 8, 9), torch.ones(3, 8, 9))
    assert floats.values == PixelValues("float32", (0.0,), (1.0,))
    assert floats.fetch(torch.arange(2)).x[:, 0, 0, 0].tolist() == [-1, 1]
    assert wrapped(torch.ones(1, 8, 9).bool()).fetch(torch.tensor([0])).x.unique().tolist() == [255]
    deep = np.full((8, 9, 13), 4095, np.uint16)
    assert (wrapped(deep).channels, wrapped(deep).values.high) == (13, (4095.0,))
    assert wrapped(deep, range="0,9000", show=(13,)).values == PixelValues("uint16", (0.0,), (9000.0,), shown=(13,))
    pil = wrapped(Image.fromarray(deep[..., 0]))
    assert (pil.channels, pil.values.dtype) == (1, "uint16")
    with pytest.raises(InputError, match="image 1 cannot be used: values that are not finite"):
        wrapped(torch.zeros(3, 8, 9), torch.full((3, 8, 9), torch.nan))
    with pytest.raises(InputError, match="image 1 holds uint8 but image 0 holds float32; give one type"):
        wrapped(torch.zeros(3, 8, 9), torch.zeros(3, 8, 9, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"image 1 has the shape \(3, 8, 9\) but image 0 has \(1, 8, 9\)"):
        wrapped(Image.new("L", (9, 8)), Image.new("RGB", (9, 8))).fetch(torch.arange(2))


def test_what_png_cannot_hold_is_exported_as_npy(tmp_path):
    array = np.arange(8 * 9 * 5, dtype=np.uint16).reshape(8, 9, 5)
    write_folder(Images(Items(array)), tmp_path, 1)
    assert np.array_equal(np.load(tmp_path / "000000.npy"), array)


def test_an_export_of_no_image_is_an_error(tmp_path):
    images = Images(Items(np.zeros((8, 8, 1), np.uint8)))
    images.source.items = (tmp_path / "gone.png",)
    with pytest.raises(InputError, match=r"^the only image cannot be read: .*gone\.png \(.*\); check the files$"):
        write_folder(images, tmp_path / "out", 1)
    assert not [*tmp_path.iterdir()]


def test_an_image_of_8_bits_is_scaled_to_the_range_of_a_model():
    values = PixelValues("int16", (-1000.0,), (1000.0,))
    image = Image.fromarray(np.array([0, 51, 255, 255], np.uint8).repeat(16).reshape(8, 8))
    assert Preprocess(None, channels=1, values=values)(image)[::2, 0, 0].tolist() == pytest.approx(
        [-1000, -600, 1000, 1000]
    )
    bands = PixelValues("int16", (0.0, -10.0, 5.0), (1.0, 10.0, 6.0))
    assert Preprocess(None, channels=3, values=bands)(image)[7, 7].tolist() == [1, 10, 6]
