"""Contact sheets and GIF animations of images and videos."""

import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.io import replacing

CELL = 48  # smaller images are enlarged by an integer factor to about this side in pixels
GAP = 4
STRIP = 4  # frames of a film strip
TITLE = 32  # characters in a line of a title, such as a prompt
SPACING = 2  # pixels between the lines of a title
T = TypeVar("T")
SOFTWARE, AUTHOR = "Software", "ditlab"  # text chunk of contact sheets, by which they are recognized
FRAME_MILLISECONDS, LAST_MILLISECONDS = 120, 2000


def contact_sheet(rows: Sequence[Sequence[Image.Image]], names: Sequence[str] | None = None) -> Image.Image:
    """Arrange rows of images of equal size in a grid, with the name of each row on the left."""
    width, height = rows[0][0].size
    factor = max(1, round(CELL / min(width, height)))
    width, height = width * factor, height * factor
    letters = max(11, min(20, height // 3))
    font = ImageFont.load_default(size=letters)
    titles = [wrapped(name, (height + GAP) // (letters + SPACING)) for name in names or ()]
    lines = [line for title in titles for line in title.splitlines()]
    margin = round(max(font.getlength(line) for line in lines)) + 3 * GAP if lines else GAP
    columns = max(len(row) for row in rows)
    size = (margin + columns * (width + GAP), GAP + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = GAP + i * (height + GAP)
        if names:
            place = margin - 2 * GAP, top + height // 2
            pen.text(place, titles[i], fill="black", font=font, anchor="rm", spacing=SPACING, align="right")
        for j, image in enumerate(row):
            enlarged = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (margin + j * (width + GAP), top))
    return sheet


def wrapped(title: str, most: int) -> str:
    """A title in lines of up to `TITLE` characters; what does not fit into `most` lines is cut, with "..."."""
    if len(title) <= TITLE:
        return title
    return "\n".join(textwrap.wrap(title, TITLE, max_lines=max(1, most), placeholder=" ..."))


def check_sheet(path: Path) -> None:
    """Check that a contact sheet may be written: there is no such file, or it is an earlier contact sheet of ditlab.

    Raises:
        InputError: another file would be lost.
    """
    if not path.exists():
        return
    try:
        with Image.open(path) as image:
            own = image.info.get(SOFTWARE) == AUTHOR
    except OSError:
        own = False
    if not own:
        raise InputError(f"{path} exists and is no contact sheet of ditlab; give another name")


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet as a PNG file completely or not at all; see `check_sheet`."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text(SOFTWARE, AUTHOR)
    with replacing(path) as draft:
        sheet.save(draft, format="PNG", pnginfo=metadata)


def video_sheet(videos: Tensor, names: Sequence[str] | None = None, count: int = 8) -> Image.Image:
    """Arrange frames of videos in a grid: one row for each video.

    Args:
        videos: the videos (B, C, T, H, W) uint8.
        names: names of the rows.
        count: frames of each video, evenly spaced from the first to the last.
    """
    return contact_sheet([evenly(video, count) for video in frames(videos)], names)


def evenly(video: Sequence[T], count: int = 8) -> list[T]:
    """Some frames of a video, evenly spaced from the first to the last."""
    indices = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)
    return [video[index] for index in indices]


def film_strip(video: NDArray[Any], count: int = STRIP) -> Image.Image:
    """Some frames of a video (T, H, W, C) uint8 side by side, evenly spaced from the first to the last."""
    indices = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)
    return _image(np.concatenate([*video[indices]], axis=1))


def thumbnails(pixels: Tensor) -> list[Image.Image]:
    """Convert uint8 images (B, C, H, W), or videos (B, C, T, H, W) as film strips, to images for a contact sheet."""
    return to_pil(pixels) if pixels.ndim == 4 else [film_strip(video) for video in to_videos(pixels)]


def side_by_side(sheets: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Arrange sheets from left to right, each under its title."""
    font = ImageFont.load_default(size=14)
    top = 22
    height = max(sheet.height for sheet in sheets)
    combined = Image.new("RGB", (sum(sheet.width for sheet in sheets), top + height), "white")
    pen = ImageDraw.Draw(combined)
    left = 0
    for sheet, title in zip(sheets, titles, strict=True):
        combined.paste(sheet, (left, top))
        pen.text((left + sheet.width // 2, top // 2), title, fill="black", font=font, anchor="mm")
        left += sheet.width
    return combined


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Arrange sheets from top to bottom."""
    size = max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)
    combined, top = Image.new("RGB", size, "white"), 0
    for sheet in sheets:
        combined.paste(sheet, (0, top))
        top += sheet.height
    return combined


def save_animation(
    frames: Sequence[Image.Image],
    path: Path | BinaryIO,
    milliseconds: int = FRAME_MILLISECONDS,
    last: int = LAST_MILLISECONDS,
) -> None:
    """Write frames as an endless GIF.

    Args:
        frames: images of equal size.
        path: a path or an open binary file.
        milliseconds: duration of each frame except the last one.
        last: duration of the last frame in milliseconds.
    """
    durations = [milliseconds] * (len(frames) - 1) + [last]
    with replacing(path) if isinstance(path, Path) else nullcontext(path) as target:
        frames[0].save(target, format="GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)


def save_gif(video: Sequence[Image.Image], path: Path | BinaryIO, fps: float = 8.0) -> None:
    """Write a video as an endless GIF at `fps` frames per second, rounded to GIF's unit of 10 ms per frame."""
    duration = max(20, round(100 / fps) * 10)  # browsers slow down shorter frames
    save_animation(video, path, duration, duration)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Convert uint8 images (B, C, H, W) with 1, 3 or 4 channels to PIL images; videos become strips of frames."""
    if pixels.ndim == 5:
        pixels = pixels.movedim(2, 3).flatten(3)  # (B, C, H, T W)
    return [_image(array) for array in pixels.permute(0, 2, 3, 1).numpy()]


def to_videos(pixels: Tensor) -> list[NDArray[Any]]:
    """Convert uint8 videos (B, C, T, H, W) to a list of arrays (T, H, W, C)."""
    return [np.ascontiguousarray(array) for array in pixels.permute(0, 2, 3, 4, 1).numpy()]


def frames(pixels: Tensor) -> list[list[Image.Image]]:
    """Convert uint8 videos (B, C, T, H, W) to lists of frames; images (B, C, H, W) become lists of one frame."""
    if pixels.ndim == 4:
        return [[image] for image in to_pil(pixels)]
    return [frame_images(video) for video in to_videos(pixels)]


def frame_images(video: NDArray[Any]) -> list[Image.Image]:
    """The frames of a video (T, H, W, C) uint8 as PIL images."""
    return [_image(frame) for frame in video]


def _image(array: NDArray[Any]) -> Image.Image:
    """Convert an array (H, W, C) uint8 to a PIL image."""
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))
