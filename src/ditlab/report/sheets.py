"""Contact sheets and animations: what people look at instead of numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 48  # smaller pictures are enlarged, pixel by pixel, to at least about this side
GAP = 4


def contact_sheet(rows: Sequence[Sequence[Image.Image]], names: Sequence[str] | None = None) -> Image.Image:
    """A grid of equally large pictures, with the name of each row at its left."""
    width, height = rows[0][0].size
    factor = max(1, round(CELL / min(width, height)))
    width, height = width * factor, height * factor
    font = ImageFont.load_default(size=max(11, min(20, height // 3)))
    margin = round(max(font.getlength(name) for name in names)) + 3 * GAP if names else GAP
    columns = max(len(row) for row in rows)
    size = (margin + columns * (width + GAP), GAP + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = GAP + i * (height + GAP)
        if names:
            draw.text((margin - 2 * GAP, top + height // 2), names[i], fill="black", font=font, anchor="rm")
        for j, picture in enumerate(row):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (margin + j * (width + GAP), top))
    return sheet


def side_by_side(sheets: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Equally high sheets beside each other, each under its title."""
    font = ImageFont.load_default(size=14)
    top = 22
    whole = Image.new("RGB", (sum(sheet.width for sheet in sheets), top + sheets[0].height), "white")
    draw = ImageDraw.Draw(whole)
    left = 0
    for sheet, title in zip(sheets, titles, strict=True):
        whole.paste(sheet, (left, top))
        draw.text((left + sheet.width // 2, top // 2), title, fill="black", font=font, anchor="mm")
        left += sheet.width
    return whole


def save_animation(frames: Sequence[Image.Image], path: Path | BinaryIO, milliseconds: int = 120) -> None:
    """Write frames as an endless GIF; the last one stays for two seconds."""
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    frames[0].save(path, format="GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """uint8 images (B, C, H, W) with 1, 3 or 4 channels -> PIL images; videos (B, C, T, H, W) -> strips of frames."""
    if pixels.ndim == 5:
        pixels = pixels.movedim(2, 3).flatten(3)  # (B, C, H, T W)
    arrays = pixels.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(a[..., 0] if a.shape[-1] == 1 else a)) for a in arrays]
