import numpy as np
from PIL import Image
from rich.console import Console

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
    Image.new("L", (40, 10), 5).save(tmp_path / "cat" / "grey.png")
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    source = open_source(str(tmp_path))
    found = survey(source, Console(quiet=True))
    assert found.pictures == 8
    assert found.classes == {"cat": 5, "犬 dog": 2}
    assert found.sizes == {"21x30": 3, "20x30": 2, "22x30": 1, "10x40": 1}
    assert found.short_side == (10, 21, 22)
    assert found.modes == {"RGB": 6, "L": 1}
    assert found.duplicates == [["cat/1.png", "cat/copy.bmp"]]
    assert list(found.unreadable) == ["cat/broken.jpg"]
    screen = Console(record=True, width=100, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    screen.print(*found.tables())
    said = screen.export_text()
    for text in ("8 pictures", "犬 dog", "21x30", "10 / 21 / 22", "cat/broken.jpg", "cat/1.png, cat/copy.bmp"):
        assert text in said
    sample_sheet(source, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size[0] > 5 * 64
    assert sheet.size[1] > 2 * 64
