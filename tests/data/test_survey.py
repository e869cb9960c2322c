import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.data.base import spread
from ditlab.data.sources import open_source
from ditlab.data.survey import sample_sheet, survey


def test_a_survey_counts_what_is_there(tmp_path):
    noise = np.random.default_rng(0)
    for name, count in {"cat": 3, "犬 dog": 2}.items():
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = noise.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    Image.open(tmp_path / "cat" / "1.png").save(tmp_path / "cat" / "copy.bmp")
    Image.new("L", (40, 10), 5).save(tmp_path / "cat" / "gray.png")
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    source = open_source(str(tmp_path))
    found = survey(source, Console(quiet=True))
    assert found.images == 8
    assert found.classes == {"cat": 5, "犬 dog": 2}
    assert found.sizes == {"21x30": 3, "20x30": 2, "22x30": 1, "10x40": 1}
    assert found.short_side == (10, 21, 22)
    assert found.modes == {"RGB": 6, "L": 1}
    assert found.duplicates == [["cat/1.png", "cat/copy.bmp"]]
    assert list(found.unreadable) == ["cat/broken.jpg"]
    screen = Console(record=True, width=100, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    screen.print(*found.tables())
    said = screen.export_text()
    for text in ("8 images", "犬 dog", "21x30", "10 / 21 / 22", "cat/broken.jpg", "cat/1.png, cat/copy.bmp"):
        assert text in said
    sample_sheet(source, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size[0] > 5 * 64
    assert sheet.size[1] > 2 * 64


def shown(found, width):
    screen = Console(record=True, width=width, file=io.StringIO())
    screen.print(*found.tables())
    return screen.export_text()


def test_long_lists_say_how_many_more_there_are(tmp_path):
    for i in range(20):
        (tmp_path / f"bad{i:02}.png").write_bytes(b"")
        for name in ("a", "b"):
            Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{name}{i:02}.png")
    said = shown(survey(open_source(str(tmp_path)), Console(quiet=True)), width=80)
    assert said.count("bad") == 16
    assert said.count("and 4 more") == 2  # unreadable files, and duplicates


def test_odd_names_are_shown_as_they_are(tmp_path):
    names = ["[bold] cat", "a[red]x", "long " * 40]
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20), (len(name), 0, 0)).save(tmp_path / name / "p[1].png")
    (tmp_path / "a[red]x" / "b[blue].png").write_bytes(b"")
    source = open_source(str(tmp_path))
    said = shown(survey(source, Console(quiet=True)), width=60)
    for text in ("[bold] cat ", "a[red]x ", "long long", "a[red]x/b[blue].png"):
        assert text in said
    assert said.count("long") <= 60 // len("long ")  # one line, cut
    sample_sheet(source, tmp_path / "new" / "sheet.any")
    sheet = Image.open(tmp_path / "new" / "sheet.any")
    assert sheet.format == "PNG"
    assert sheet.width < 500


def test_nothing_to_show_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    found = survey(source, Console(quiet=True))
    assert (found.images, found.short_side) == (1, (0, 0, 0))
    assert found.unreadable == {"a.png": "cannot identify image file"}
    with pytest.raises(InputError, match="the only image cannot be read"):
        sample_sheet(source, tmp_path / "sheet.png")


def test_calls_are_queued_a_chunk_at_a_time():
    asked = []

    def square(i):
        asked.append(i)
        return i * i

    with ThreadPoolExecutor(2) as pool:
        results = spread(pool, square, 10, chunk=4)
        assert next(results) == 0
        assert max(asked) < 4
        assert [0, *results] == [i * i for i in range(10)]


def test_images_of_16_bits_are_compared_exactly(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((8, 8), 1000 + i // 2, np.uint16)).save(tmp_path / f"{i}.png")
    found = survey(open_source(str(tmp_path)), Console(quiet=True))
    assert found.duplicates == [["0.png", "1.png"], ["2.png", "3.png"], ["4.png", "5.png"]]
    assert found.modes == {"I;16": 6}


def test_images_that_will_be_enlarged_are_counted(tmp_path):
    for i, size in enumerate(((20, 30), (30, 20), (24, 24))):  # width, height
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    assert survey(open_source(str(tmp_path)), Console(quiet=True), (24, 20)).enlarged == 1
