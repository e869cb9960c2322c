"""Open image files: with Pillow where it keeps all numbers of a file, otherwise as an array.

Pillow has no images with 2, or with more than 4, channels and none with 16 bits per color. Those files are read with
tifffile and imagecodecs (TIFF) or with imagecodecs (PNG), and `.npy` files with numpy.
"""

import io
import logging
import math
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ditlab.core.sizes import most_bytes
from ditlab.data.color import has_more_bits, profile_state

Raster = NDArray[Any]
"""Pixels (H, W, C) of any numeric type, for what Pillow cannot hold: more than 4 channels, negative numbers, floats."""
NPY_START = b"\x93NUMPY"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 0x0112  # tag of EXIF and TIFF
SIDES_SWAPPED_FROM = 5  # orientations from here on exchange height and width
EXIF_IN_PNG = (b"eXIf", b"Raw profile type exif")  # a chunk, and the key of a text; they may follow the pixels
SUBFILE_TYPE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = (
    254,
    256,
    257,
    258,
    262,
    277,
    339,
)  # tags of TIFF
# Pillow prints a line for each TIFF file with many channels, which are read all the same.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
SIGNED = 2  # value of SAMPLE_FORMAT
MOST_PAGES = 1000  # of a TIFF file
REDUCED_OR_MASK = 1 | 4  # bits of SUBFILE_TYPE: a page that is a small copy or a mask of another one


def open_image(file: Path | bytes | BinaryIO, channels: int | None = None) -> Image.Image | Raster:
    """Open an image file.

    Args:
        file: path, content, or open file.
        channels: number of channels of a `.npy` file whose shape does not show which axis they are.

    Returns:
        An image of Pillow that is not decoded yet, or pixels (H, W, C) of any numeric type for files that Pillow would
        reduce: TIFF with other channels than gray, RGB and transparency, RGB of 16 bits, and `.npy`.

    Raises:
        ValueError: the file cannot be read without another package, or the shape of its array is ambiguous.
        OSError: the file cannot be read, or holds no image.
    """
    content = io.BytesIO(file) if isinstance(file, bytes) else file
    if _starts_like_npy(file):
        return read_npy(content, channels)
    try:
        image = Image.open(content)
    except UnidentifiedImageError:
        if not _start(content).startswith(TIFF_STARTS):
            raise
        return read_tiff(content)
    if image.format not in ("TIFF", "PNG"):
        return image
    if (
        drops_channels(image)
        or has_signed_bytes(image)
        or (is_reduced(image) and image.mode == "RGB" and _can_be_read_whole(image))
    ):
        image_format = image.format
        if isinstance(content, Path):
            image.close()
        else:
            content.seek(0)
        return read_tiff(content) if image_format == "TIFF" else _read_png(content)
    if image.format == "TIFF" and isinstance(content, Path) and tag(image, ORIENTATION)[0] >= SIDES_SWAPPED_FROM:
        image.close()  # Pillow maps the rows of an uncompressed file with the sides swapped, and so mixes them up
        return Image.open(io.BytesIO(content.read_bytes()))
    return image


def _starts_like_npy(file: Path | bytes | BinaryIO) -> bool:
    if isinstance(file, Path):
        return file.suffix == ".npy"
    return _start(io.BytesIO(file) if isinstance(file, bytes) else file) == NPY_START


def _start(file: Path | BinaryIO) -> bytes:
    """The first bytes of a file."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(len(NPY_START))
    file.seek(0)
    start = file.read(len(NPY_START))
    file.seek(0)
    return start


def is_reduced(image: Image.Image) -> bool:
    """Whether Pillow reduces the colors of an image, which is not decoded yet, from more bits to 8."""
    if image.format == "TIFF":
        return len(image.getbands()) > 1 and max(tag(image, BITS)) > 8
    if image.format != "PNG" or has_more_bits(image):
        return False
    tile: Any = getattr(image, "tile", None)
    return bool(tile) and ";16" in str(tile[0][3])


def drops_channels(image: Image.Image) -> bool:
    """Whether Pillow drops channels of a TIFF file that are neither colors nor transparency."""
    if image.format != "TIFF" or image.mode == "P":
        return False
    bands = len(image.getbands())
    return tag(image, SAMPLES, bands) != (bands,)


def has_signed_bytes(image: Image.Image) -> bool:
    """Whether a TIFF file holds 8 bits with a sign, which Pillow reads without it, so that -1 becomes 255."""
    return image.format == "TIFF" and tag(image, SAMPLE_FORMAT)[0] == SIGNED and max(tag(image, BITS)) <= 8


def tag(image: Image.Image, number: int, default: int = 1) -> tuple[int, ...]:
    """The values of a tag of a TIFF file; images of other formats have none."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value if isinstance(value, tuple) else (value,)


def _can_be_read_whole(image: Image.Image) -> bool:
    """Whether an image of 16 bits per color can be read with all bits.

    An image with a color profile or with transparency is reduced instead, because only images of 8 bits can be
    converted and blended. Without the packages it is reduced too, and `Images` reports it.
    """
    if profile_state(image) == "converted" or image.has_transparency_data:
        return False
    try:
        if image.format == "TIFF":
            import tifffile  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
        else:
            import imagecodecs  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        return False
    return True


def read_npy(file: Path | BinaryIO, channels: int | None = None) -> Raster:
    """The pixels (H, W, C) of a `.npy` file; those of a path are read when they are needed.

    Its array is (H, W), or has three axes, of which the first or the last is the channels: the one that is shorter than
    both others, otherwise the one of the length `channels`.

    Raises:
        ValueError: another shape.
    """
    check_npy(file)
    array = np.load(file, mmap_mode="r" if isinstance(file, Path) else None, allow_pickle=False)
    return channels_last(array, channels)


def check_npy(file: Path | BinaryIO) -> None:
    """Compare the header of a `.npy` file with its length, before memory is allocated for what the header says.

    Raises:
        ValueError: they differ.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            check_npy(opened)
    else:
        check_array(file, _length(file), "the file")
        file.seek(0)


def _length(file: Path | BinaryIO) -> int:
    """Number of bytes of a file; the position of an open file is then its beginning."""
    if isinstance(file, Path):
        return file.stat().st_size
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    return length


def check_array(opened: IO[bytes], size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array in numpy's format, and compare it with the number of bytes.

    Args:
        opened: the array, at its beginning; its position is then after the header.
        size: its bytes, with those of the header.
        name: what it is called in messages.

    Returns:
        Its shape, whether its order is that of Fortran, and its type.

    Raises:
        ValueError: they do not agree, or this is no array.
    """
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(opened)
    claimed, stored = math.prod(shape) * dtype.itemsize, size - opened.tell()
    if min(shape, default=0) < 0 or (claimed > stored and not dtype.hasobject):
        raise ValueError(f"an array of shape {shape} and type {dtype}, but {name} has {stored:,} bytes for it")
    return shape, fortran, dtype


def channels_last(array: Raster, channels: int | None = None) -> Raster:
    """An array (H, W), (H, W, C) or (C, H, W) as (H, W, C); see `read_npy`.

    Raises:
        ValueError: it has another number of axes, or it is not known which of three is the channels.
    """
    shape = array.shape
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim == 3 and shape[2] < min(shape[:2]):
        return array
    if array.ndim == 3 and shape[0] < min(shape[1:]):
        return np.moveaxis(array, 0, -1)
    if array.ndim != 3:
        raise ValueError(f"an array of shape {shape}; give (H, W), (H, W, C) or (C, H, W)")
    if (shape[0] == channels) != (shape[2] == channels):
        return array if shape[2] == channels else np.moveaxis(array, 0, -1)
    remedy = (
        "save it as a TIFF file"
        if shape[0] == shape[2]
        else f"set channels (data.channels) to {shape[0]} or {shape[2]}"
    )
    raise ValueError(
        f"an array of shape {shape}, whose channels may be the first or the last axis, because neither is shorter than "
        f"both others; {remedy}"
    )


def read_tiff(file: Path | BinaryIO) -> Raster:
    """The pixels (H, W, C) of a TIFF file with any channels of any numeric type, as they are displayed.

    Raises:
        ValueError: a package is missing, or the file has several pages or too many pixels.
    """
    try:
        import tifffile
    except ImportError:
        raise ValueError("a TIFF file of this kind needs tifffile; pip install 'ditlab[data]'") from None
    most = most_bytes(size := _length(file))
    with tifffile.TiffFile(file) as opened:
        pages = [page.aspage() for page in islice(opened.pages, MOST_PAGES + 1)]
        _check_pages(len(pages))
        pages = [page for page in pages if not page.subfiletype & REDUCED_OR_MASK]
        if len(pages) != 1:
            raise ValueError(f"has {len(pages)} pages")
        page = pages[0]
        _check_pixels(page.imagewidth, page.imagelength)
        if page.nbytes > most:
            raise ValueError(f"has {size:,} bytes, which become {page.nbytes:,}; at most {most:,} are read")
        try:
            array = page.asarray()
        except Exception as error:  # of many types, by compression
            if "imagecodecs" in str(error):
                name = tifffile.COMPRESSION(page.compression).name
                raise ValueError(f"{name} compression needs imagecodecs; pip install imagecodecs") from None
            raise
        array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"pixels along the axes {page.axes}")
        array = array if array.ndim == 3 else array[:, :, None]
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            array = black_is_zero(array, page.bitspersample)
        orientation = page.tags.get(ORIENTATION)
        return turned(array, orientation.value if orientation else 1)


def _read_png(file: Path | BinaryIO) -> Raster:
    """The pixels (H, W, 3) uint16 of a PNG file with 16 bits per color, as they are displayed."""
    import imagecodecs

    content = file.read_bytes() if isinstance(file, Path) else file.read()
    with Image.open(io.BytesIO(content)) as image:
        _check_pixels(image.width, image.height)
        orientation = image.getexif().get(ORIENTATION, 1) if has_exif(image) else 1
    return turned(np.asarray(imagecodecs.png_decode(content)), orientation)


def _check_pages(count: int) -> None:
    """Refuse what takes minutes: a page needs six bytes."""
    if count > MOST_PAGES:
        raise ValueError(f"has more than {MOST_PAGES:,} pages")


def _check_pixels(width: int, height: int) -> None:
    """Refuse what Pillow refuses: a small file may decode to gigabytes."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)
    if width * height > limit:
        raise ValueError(f"{width}x{height} pixels; at most {limit:,} are read")


def black_is_zero(array: Raster, bits: int) -> Raster:
    """Invert numbers of which 0 is white.

    Raises:
        ValueError: numbers with a sign, or floats, which have no white.
    """
    if array.dtype.kind != "u":
        raise ValueError(f"numbers of type {array.dtype} of which 0 is white")
    return array.dtype.type((1 << bits) - 1) - array


def turned(array: Raster, orientation: int) -> Raster:
    """Pixels (H, W, C) as they are displayed with an orientation of EXIF."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def has_exif(image: Image.Image) -> bool:
    """Whether an image that is not decoded may have EXIF data; Pillow would decode a PNG file to find that out."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or "exif" in image.info or file is None:
        return True
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return any(mark in content for mark in EXIF_IN_PNG)


def frames(image: Image.Image) -> list[int]:
    """Numbers of the pages of a TIFF file; small copies and masks of other pages do not count."""
    numbers = []
    with suppress(EOFError):
        for number in range(MOST_PAGES + 1):
            image.seek(number)
            _check_pages(number + 1)
            if not tag(image, SUBFILE_TYPE, 0)[0] & REDUCED_OR_MASK:
                numbers.append(number)
    image.seek(0)
    return numbers


def stacked(image: Image.Image, numbers: list[int]) -> Raster:
    """Pages of one channel as the channels of an image (H, W, pages).

    Raises:
        ValueError: pages of different sizes, or of several channels.
    """
    pages = []
    for number in numbers:
        image.seek(number)
        if not is_gray(image):
            raise ValueError(f"page {number + 1} has the mode {image.mode}, not one channel")
        pages.append(gray_numbers(image))
    if any(page.shape != pages[0].shape for page in pages):
        raise ValueError(f"has {len(pages)} pages of different sizes")
    return np.stack(pages, -1)


def is_gray(image: Image.Image) -> bool:
    """Whether an image of Pillow has one channel, of any type."""
    return image.mode in ("1", "L") or has_more_bits(image)


def gray_type(image: Image.Image) -> str:
    """The type of the numbers in the file of an image of one channel."""
    if image.mode in ("1", "L"):
        return "uint8"
    if image.mode == "F":
        return "float32"
    if image.mode != "I" or image.format in ("PNG", "PPM"):  # which hold no more than 16 bits
        return "uint16"
    if image.format != "TIFF":
        return "int32"
    return ("uint" if tag(image, SAMPLE_FORMAT)[0] == 1 else "int") + str(tag(image, BITS)[0])


def gray_numbers(image: Image.Image) -> Raster:
    """The numbers (H, W) of an image of one channel, of the type that the file has.

    Raises:
        ValueError: numbers with a sign, or floats, of which 0 is white.
    """
    dtype = np.dtype(gray_type(image))
    array = np.asarray(image.convert("L") if image.mode == "1" else image)
    array = array.view(np.uint32) if dtype == np.uint32 else array.astype(dtype)
    if dtype != np.uint8 and tag(image, PHOTOMETRIC) == (0,):  # Pillow inverts those of 8 bits itself
        array = black_is_zero(array, tag(image, BITS)[0])
    return array
