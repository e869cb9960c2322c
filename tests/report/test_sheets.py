import io

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.report.sheets import contact_sheet, frames, save_gif, to_pil, to_videos, video_sheet


@pytest.fixture
def videos():
    """Two videos (2, 3, 5, 8, 12): frame t of video b has the red value 10 t + b."""
    red = torch.arange(2)[:, None] + 10 * torch.arange(5)  # (B, T)
    values = torch.zeros(2, 3, 5, 8, 12, dtype=torch.uint8)
    values[:, 0] = red[:, :, None, None]
    return values


def test_images_and_videos_become_frames(videos):
    assert [[frame.getpixel((0, 0))[0] for frame in video] for video in frames(videos)] == [
        [0, 10, 20, 30, 40],
        [1, 11, 21, 31, 41],
    ]
    assert frames(videos)[0][0].size == (12, 8)
    images = videos[:, :, 0]
    assert [len(image) for image in frames(images)] == [1, 1]
    assert to_pil(images)[1].getpixel((0, 0)) == (1, 0, 0)
    assert to_pil(images[:, :1])[1].mode == "L"
    strip = to_pil(videos)[0]
    assert (strip.size, strip.getpixel((13, 3))[0]) == ((60, 8), 10)
    (array, _) = to_videos(videos)
    assert (array.shape, array.dtype) == ((5, 8, 12, 3), np.uint8)


def test_a_sheet_of_videos_has_a_row_of_evenly_spaced_frames(videos):
    sheet = video_sheet(videos, ["a", "b"], count=3)
    expected = contact_sheet([[row[0], row[2], row[4]] for row in frames(videos)], ["a", "b"])
    assert sheet.tobytes() == expected.tobytes()


def test_a_gif_has_all_frames_at_its_rate(videos):
    file = io.BytesIO()
    save_gif(frames(videos)[0], file, fps=5)
    with Image.open(file) as gif:
        assert gif.n_frames == 5
        assert gif.info["duration"] == 200
        assert gif.info["loop"] == 0
