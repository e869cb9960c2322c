"""Images and animations as the content of files, for responses."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ditlab.inference.records import png_metadata
from ditlab.report.sheets import save_animation
from ditlab.report.videos import save_video

ANIMATION_SIDE = 256  # smallest side of an animation in pixels, about


def png(image: Image.Image, settings: dict[str, Any] | None = None) -> bytes:
    """Encode an image as PNG, with the settings in its metadata under the key "ditlab"."""
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=png_metadata(settings))
    return content.getvalue()


def animated_png(frames: Iterable[Image.Image], fps: float, settings: dict[str, Any] | None = None) -> bytes:
    """Encode a clip as an animated PNG, which shows its first frame where animations are not known."""
    content = io.BytesIO()
    first, *others = frames
    first.save(
        content, format="PNG", save_all=True, append_images=others, duration=1000 / fps, loop=0,
        pnginfo=png_metadata(settings),
    )  # fmt: skip
    return content.getvalue()


def video_file(video: NDArray[np.uint8], suffix: str, fps: float) -> bytes:
    """Encode a clip (T, H, W, C) as .mp4, .webm, .webp or .gif, through a file, because MP4 is rewritten at its end."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"clip{suffix}"
        save_video(video, file, fps)
        return file.read_bytes()


def gif(frames: Iterable[Image.Image]) -> bytes:
    """Encode frames as an animated GIF; small images are enlarged."""
    images = list(frames)
    factor = max(1, ANIMATION_SIDE // min(images[0].size))
    large = [image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) for image in images]
    content = io.BytesIO()
    save_animation(large, content)
    return content.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    """Encode an array as an .npy file."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def as_base64(content: bytes) -> str:
    """Encode the content of a file as base64, for JSON."""
    return base64.b64encode(content).decode()
