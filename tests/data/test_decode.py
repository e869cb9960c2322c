import builtins
import io

import numpy as np
import pytest
import torch
from helpers import Items
from PIL import Image, UnidentifiedImageError

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data.decode import ORIENTATION, open_image, turned
from ditlab.data.images import Images
from ditlab.data.preprocess import Preprocess, file_numbers
from ditlab.data.scan import array_header, displayed_size, image_header
from ditlab.data.sources import Raster, Unreadable, open_source

tifffile = pytest.importorskip("tifffile")


def numbers(height=20, width=30, channels=1, dtype="u1", seed=0):
    top = {"u1": 255, "u2": 65535, "i2": 32767, "u4": 2**31 - 1, "i4": 2**31 - 1}.get(dtype, 1)
    values = np.random.default_rng(seed).random((height, width, channels)) * top
    return (values - (top / 2 if dtype[0] == "i" else 0)).astype(dtype)


def pixels(file):
    """All pixels of a file, and its header."""
    image = open_image(file)
    if isinstance(image, np.ndarray):
        return image, array_header(image)
    header = image_header(image)
    return (file_numbers(image) if image.mode[0] in "IF" else np.asarray(image).reshape(*header.size, -1)), header


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_tiff_of_any_channels_and_type(tmp_path, capfd, channels, dtype, planar):
    expected = numbers(channels=channels, dtype=dtype)
    stored = {1: expected[..., 0]}.get(channels, expected if planar == "contig" else np.moveaxis(expected, -1, 0))
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig=None if channels == 1 else planar,
    )
    for file in (tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes()):
        read, header = pixels(file)
        assert np.array_equal(read, expected)
        kept = {"u1": "uint8", "u2": "uint16", "i2": "int16", "f4": "float32", "f8": "float32"}.get(dtype, "int32")
        assert (header.channels, header.dtype, header.size) == (channels, kept, (20, 30))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_white_is_zero_is_inverted_at_any_bits(tmp_path, dtype, byteorder, compression):
    if compression == "lzw":
        pytest.importorskip("imagecodecs")
    expected = numbers(dtype=dtype)
    top = np.iinfo(dtype).max
    stored = (top - expected[..., 0]) if dtype != "u4" else (top - expected[..., 0].astype("u4"))
    file = tmp_path / "a.tif"
    options = {"photometric": "miniswhite", "byteorder": byteorder, "compression": compression}
    tifffile.imwrite(file, stored.astype(byteorder + dtype), **options)
    assert np.array_equal(pixels(file)[0], expected)
    tifffile.imwrite(file, expected[..., 0].astype(byteorder + dtype), **options | {"photometric": "minisblack"})
    assert np.array_equal(pixels(file)[0], expected)


def test_one_bit_with_either_white(tmp_path):
    bits = numbers() > 127
    for photometric, expected in (("minisblack", bits), ("miniswhite", ~bits)):
        tifffile.imwrite(tmp_path / "a.tif", bits[..., 0], photometric=photometric)
        assert np.array_equal(Preprocess(None)(open_image(tmp_path / "a.tif")), expected * 255)


def test_white_is_zero_has_no_meaning_for_floats(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbers(dtype="f4")[..., 0], photometric="miniswhite")
    with pytest.raises(Unreadable, match="numbers of type float32 of which 0 is white"):
        file_numbers(open_image(tmp_path / "a.tif"))


def test_extra_samples_are_channels_and_alpha_is_transparency(tmp_path):
    four = numbers(channels=4)
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, four, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(pixels(file)[0], four)
    tifffile.imwrite(file, four, photometric="rgb", extrasamples=["unassalpha"])
    assert open_image(file).mode == "RGBA"
    assert image_header(open_image(file)).channels == 3
    tifffile.imwrite(file, four[..., :2], photometric="minisblack", extrasamples=["unspecified"])
    assert np.array_equal(pixels(file)[0], four[..., :2])
    tifffile.imwrite(file, four[..., :2], photometric="minisblack", extrasamples=["unassalpha"])
    assert open_image(file).mode == "LA"


ORIENTED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize(
    "kind", ["tif", "png", "jpg", "tif 13", "tif 16", "png 16", "tif 16 gray", "tif gray", "png 16 gray"]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(tmp_path, kind, orientation):
    suffix, _, variant = kind.partition(" ")
    stored = numbers(16, 24, {"13": 13, "gray": 1, "16 gray": 1}.get(variant, 3), "u2" if "16" in variant else "u1")
    if suffix == "jpg":
        stored[:] = stored[:, :1] // 2 + np.arange(16, dtype=np.uint8)[:, None, None] * 7  # smooth enough to compare
    file = tmp_path / f"a.{suffix}"
    write(file, stored, orientation)
    data = Images(Items(file), Preprocess(None))
    expected = ORIENTED[orientation](stored)
    assert data.size == expected.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))
    read = data.values.restored(data.fetch(torch.tensor([0])).x)[0].permute(1, 2, 0).numpy()
    assert data.skipped == {}
    assert np.abs(read.astype(int) - expected).max() <= (40 if suffix == "jpg" else 0)
    assert np.array_equal(turned(stored, orientation), expected)
    sized = Images(Items(file), Preprocess(data.size))
    assert torch.equal(sized.fetch(torch.tensor([0])).x, data.fetch(torch.tensor([0])).x)


def write(file, stored, orientation):
    """Write an image file with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if file.suffix == ".tif":
        photometric = "rgb" if stored.shape[2] == 3 else "minisblack"
        tag, planar = [(0x0112, 3, 1, orientation, True)], None if stored.shape[2] == 1 else "contig"
        tifffile.imwrite(
            file,
            stored[..., 0] if stored.shape[2] == 1 else stored,
            photometric=photometric,
            planarconfig=planar,
            extratags=tag,
        )
    elif stored.dtype == np.uint16 and stored.shape[2] == 3:
        codecs = pytest.importorskip("imagecodecs")
        content, chunk = codecs.png_encode(stored), io.BytesIO()
        Image.new("L", (1, 1)).save(chunk, "PNG", exif=exif)
        start = chunk.getvalue().index(b"eXIf") - 4
        length = int.from_bytes(chunk.getvalue()[start : start + 4], "big") + 12
        place = content.index(b"IDAT") - 4
        file.write_bytes(content[:place] + chunk.getvalue()[start : start + length] + content[place:])
    else:
        image = Image.fromarray(stored[..., 0] if stored.shape[2] == 1 else stored)
        image.save(file, exif=exif, **{"quality": 100, "subsampling": 0} if file.suffix == ".jpg" else {})


def test_the_size_in_a_header_is_that_of_the_decoded_image(tmp_path):
    file = tmp_path / "a.tif"
    for orientation in range(1, 9):
        write(file, numbers(16, 24, 3), orientation)
        image = open_image(file)
        size = displayed_size(image)
        image.load()
        assert size == (image.height, image.width)


def test_16_bits_per_color(tmp_path, monkeypatch):
    codecs = pytest.importorskip("imagecodecs")
    colors = numbers(channels=3, dtype="u2")
    (tmp_path / "a.png").write_bytes(codecs.png_encode(colors))
    tifffile.imwrite(tmp_path / "a.tif", colors, photometric="rgb", compression="lzw", predictor=True)
    for name in ("a.png", "a.tif"):
        assert np.array_equal(pixels(tmp_path / name)[0], colors)
        assert np.array_equal(pixels((tmp_path / name).read_bytes())[0], colors)
    (tmp_path / "b.png").write_bytes(codecs.png_encode(numbers(channels=4, dtype="u2")))
    note = (
        "1 image of 16 bits per color, read at 8 bits (because of their color profile or transparency, or because "
        "tifffile or imagecodecs is not installed)"
    )
    assert Images(Items(tmp_path / "b.png")).reading.notes == [note]
    without(monkeypatch, "tifffile", "imagecodecs")
    for name in ("a.png", "a.tif"):
        data = Images(Items(tmp_path / name))
        assert data.reading.notes == [note]
        read = data.fetch(torch.tensor([0])).x[0].permute(1, 2, 0).numpy()
        assert np.abs(read.astype(int) * 257 - colors).max() <= 257


def without(monkeypatch, *packages):
    """Let the import of packages fail."""
    original = builtins.__import__

    def refuse(name, *arguments, **options):
        if name in packages:
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_without_tifffile_the_remedy_is_named(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", numbers(channels=13), photometric="minisblack", planarconfig="contig")
    without(monkeypatch, "tifffile")
    remedy = r"a TIFF file of this kind needs tifffile; pip install 'ditlab\[data\]'"
    with pytest.raises(Unreadable, match=remedy):
        Items(tmp_path / "a.tif").read(0)
    with pytest.raises(InputError, match=rf"the only image cannot be read: a\.tif \({remedy}\)"):
        Images(Items(tmp_path / "a.tif"))


def test_pages_are_channels_on_request(tmp_path):
    stack = numbers(channels=5, dtype="u2")
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, np.moveaxis(stack, -1, 0), photometric="minisblack", metadata=None)
    with pytest.raises(Unreadable, match="has 5 pages; give channels = 5 if they are channels"):
        Items(file).read(0)
    with pytest.raises(InputError, match=r"the only image cannot be read: a\.tif \(has 5 pages; give channels = 5"):
        Images(Items(file))
    data = Images(Items(file), Preprocess(None, channels=5))
    assert (data.channels, data.values.dtype) == (5, "uint16")
    read = data.values.restored(data.fetch(torch.tensor([0])).x)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(read, stack)


def test_small_copies_are_no_pages(tmp_path):
    file = tmp_path / "a.tif"
    with tifffile.TiffWriter(file) as writer:
        writer.write(numbers(channels=3), photometric="rgb")
        writer.write(numbers(10, 15, 3), photometric="rgb", subfiletype=1)
    read = Items(file).read(0)
    assert np.array_equal(np.asarray(read), numbers(channels=3))


@pytest.mark.parametrize(
    ("shape", "read"),
    [((20, 30), (20, 30, 1)), ((20, 30, 13), (20, 30, 13)), ((13, 20, 30), (20, 30, 13)), ((8, 9, 2), (8, 9, 2))],
)
def test_npy_files(tmp_path, shape, read):
    array = np.arange(np.prod(shape), dtype="i2").reshape(shape)
    np.save(tmp_path / "a.npy", array)
    expected = array.reshape(read) if shape[0] != 13 else np.moveaxis(array, 0, -1)
    for file in (tmp_path / "a.npy", (tmp_path / "a.npy").read_bytes()):
        opened = open_image(file)
        assert opened.shape == read
        assert np.array_equal(opened, expected)


@pytest.mark.parametrize("shape", [(20,), (16, 16, 16), (20, 13, 20), (13, 20, 13), (8, 8, 13), (2, 20, 30, 3)])
def test_npy_files_of_which_the_channels_are_unclear(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    message = f"an array of shape {shape}; give (H, W), (H, W, C) or (C, H, W)"
    if len(shape) == 3:
        remedy = "set channels (data.channels) to 8 or 13" if shape == (8, 8, 13) else "save it as a TIFF file"
        message = (
            f"an array of shape {shape}, whose channels may be the first or the last axis, because neither is shorter "
            f"than both others; {remedy}"
        )
    with pytest.raises(Unreadable) as error:
        Items(tmp_path / "a.npy").read(0)
    assert str(error.value) == message


@pytest.mark.parametrize(("shape", "channels"), [((8, 8, 13), 13), ((13, 8, 8), 13), ((8, 8, 13), 8), ((3, 8, 8), 8)])
def test_a_setting_decides_which_axis_of_an_npy_file_is_the_channels(tmp_path, shape, channels):
    array = np.random.default_rng(0).random(shape, np.float32)
    np.save(tmp_path / "a.npy", array)
    opened = open_source(str(tmp_path), Preparation(channels=channels)).read(0)
    assert np.array_equal(opened, array if shape[2] == channels == 13 else np.moveaxis(array, 0, -1))


def test_arrays_that_are_no_numbers(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((20, 30), complex))
    with pytest.raises(InputError, match=r"\(numbers of type complex128; give integers or floats\)"):
        Images(Items(tmp_path / "a.npy"))
    np.save(tmp_path / "b.npy", np.full((20, 30), 2**40))
    with pytest.raises(Unreadable, match="beyond the range of int32"):
        Preprocess(None)(Items(tmp_path / "b.npy").read(0))
    np.save(tmp_path / "c.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(Unreadable, match="Python objects in dtype"):
        Items(tmp_path / "c.npy").read(0)


def test_files_that_are_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UnidentifiedImageError):
        open_image(tmp_path / "a.png")
    with pytest.raises(UnidentifiedImageError):
        open_image(b"")
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "b.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", numbers(channels=5), photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(Unreadable, match="30x20 pixels; at most 400 are read"):
        Items(tmp_path / "a.tif").read(0)


def test_plain_images_are_not_decoded_when_they_are_opened(tmp_path):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert isinstance(image, Image.Image)
    assert image._im is None
    assert Raster is not None


def test_bytes_with_a_sign_keep_it(tmp_path):
    stored = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack")
    data = Images(Items(tmp_path / "a.tif"))
    assert (data.values.dtype, data.values.low, data.values.high) == ("int16", (-128.0,), (127.0,))
    read = data.values.restored(data.fetch(torch.tensor([0])).x)[0, 0]
    assert np.array_equal(read, stored)


def test_numbers_that_no_type_holds_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.full((16, 16), 2**40))
    with pytest.raises(InputError, match=r"\(a\.npy: values from 1099511627776 .* beyond the range of int32\); check"):
        Images(Items(tmp_path / "a.npy"))


@pytest.mark.parametrize("exif", [False, True])
def test_the_size_of_a_png_file_is_known_without_decoding_it(tmp_path, monkeypatch, exif):
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    file = tmp_path / "a.png"
    Image.new("L", (12, 8)).save(file, **({"exif": turned} if exif else {}))
    assert (b"eXIf" in file.read_bytes()) == exif
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with Image.open(file) as image:
        assert displayed_size(image) == ((12, 8) if exif else (8, 12))


def test_exif_data_after_the_pixels_of_a_png_file_count(tmp_path):
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    file = tmp_path / "a.png"
    Image.new("L", (12, 8)).save(file, exif=turned)
    content = file.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    file.write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])
    with Image.open(file) as image:
        assert displayed_size(image) == (12, 8)
