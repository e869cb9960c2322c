import pytest
import torch
from rich.console import Console

from ditlab.data.glyphs import Glyphs
from ditlab.errors import InputError
from ditlab.evaluation import glyphs as module
from ditlab.evaluation.glyphs import score_glyphs, trained_reader


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A classifier of far fewer pictures, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "TRAINED_ON", 3900)
    monkeypatch.setattr(module, "EPOCHS", 2)
    monkeypatch.setattr(module, "HELD_OUT", 520)
    monkeypatch.setattr(module, "FLOOR_DRAWS", 2)
    trained_reader.cache_clear()
    yield tmp_path / "ditlab"
    trained_reader.cache_clear()


@pytest.mark.slow
def test_real_letters_score_like_real_letters(reader):
    data = Glyphs(48, seed=5)
    images, labels = data.fetch(torch.arange(260)).images, data.labels[:260]
    score = score_glyphs(images, labels, Console(quiet=True))
    assert score.accuracy > 0.6
    assert score.classifier_accuracy > 0.6
    assert score.fd == pytest.approx(score.fd_floor, rel=0.35)
    ruined = score_glyphs((images // 2 + 60), labels.roll(1), Console(quiet=True))
    assert ruined.accuracy < 0.2
    assert ruined.fd > 2 * score.fd
    (kept,) = reader.iterdir()
    stamp = kept.stat().st_mtime_ns
    trained_reader.cache_clear()
    assert score_glyphs(images, labels, Console(quiet=True)) == score  # read from the cache
    assert kept.stat().st_mtime_ns == stamp


def test_too_few_are_refused():
    with pytest.raises(InputError, match="64 samples; draw more than 64"):
        score_glyphs(torch.zeros(64, 3, 32, 32).byte(), torch.zeros(64).long())
