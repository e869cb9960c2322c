import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data.builtin.glyphs import Glyphs
from ditlab.evaluation import glyphs as module
from ditlab.evaluation.features.glyphs import glyph_classifier
from ditlab.evaluation.glyphs import score_glyphs


@pytest.fixture
def reader(quick_glyph_reader, monkeypatch):
    """The quick classifier, and fewer letters to compare with."""
    monkeypatch.setattr(module, "HELD_OUT", 520)
    monkeypatch.setattr(module, "REAL_SUBSETS", 2)
    return quick_glyph_reader


@pytest.mark.slow
def test_real_letters_score_like_real_letters(reader):
    data = Glyphs(48, seed=5)
    images, labels = data.fetch(torch.arange(260)).x, data.labels[:260]
    score = score_glyphs(images, labels)
    assert score.accuracy > 0.6
    assert score.classifier_accuracy > 0.6
    assert score.fd == pytest.approx(score.fd_floor, rel=0.35)
    ruined = score_glyphs((images // 2 + 60), labels.roll(1))
    assert ruined.accuracy < 0.2
    assert ruined.fd > 2 * score.fd
    (kept,) = reader.iterdir()
    stamp = kept.stat().st_mtime_ns
    glyph_classifier.cache_clear()
    assert score_glyphs(images, labels) == score  # read from the cache
    assert kept.stat().st_mtime_ns == stamp


def test_too_few_are_rejected():
    with pytest.raises(InputError, match="64 samples; give more than 64"):
        score_glyphs(torch.zeros(64, 3, 32, 32).byte(), torch.zeros(64).long())
