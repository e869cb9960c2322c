import os
from pathlib import Path

import pytest
import torch
from fake_store import store as store  # a fixture
from safetensors.torch import load_file

from ditlab.evaluation.features import glyphs

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # the suite runs one process for each core


@pytest.fixture
def golden():
    return lambda name: load_file(Path(__file__).parent / "golden" / f"{name}.safetensors")


@pytest.fixture
def quick_glyph_reader(tmp_path, monkeypatch):
    """The classifier of letters, trained on far fewer, in a cache of its own, whose folder is returned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(glyphs, "TRAINED_ON", 3900)
    monkeypatch.setattr(glyphs, "EPOCHS", 2)
    glyphs.glyph_classifier.cache_clear()
    yield tmp_path / "ditlab"
    glyphs.glyph_classifier.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def quick_disk():
    """Leave files in the memory of the operating system: tests stop processes, and never the machine."""
    flush, os.fsync = os.fsync, os.fstat
    yield
    os.fsync = flush


@pytest.fixture(autouse=True)
def seeded():
    torch.default_generator.manual_seed(0)  # torch.manual_seed writes down where it is called: a hundredfold slower
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
