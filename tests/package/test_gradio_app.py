"""The Gradio app of the examples, with a stand-in for Gradio, which is not a dependency."""

import runpy
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from helpers import tiny_pipeline

APP = Path(__file__).parents[2] / "examples" / "gradio_app.py"


@pytest.mark.parametrize("classes", [3, 0])
def test_the_app_generates_what_the_page_asks_for(tmp_path, monkeypatch, classes):
    gradio = MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setattr(sys, "argv", ["app.py", str(tiny_pipeline(classes=classes).save(tmp_path / "model"))])
    app = runpy.run_path(str(APP))
    labels = gradio.Dropdown.call_args.args[0]
    assert labels == [f"class {i}" for i in range(classes)]
    assert app["app"] is gradio.Interface.return_value
    images = app["generate"](labels[-1] if labels else None, 2, 5, 2, 1.5)
    assert [image.size for image in images] == [(8, 8), (8, 8)]
    expected = app["pipe"](labels[-1] if labels else None, seeds=6, steps=2, **({"guidance": 1.5} if classes else {}))
    assert images[1].tobytes() == expected.images[0].tobytes()
