"""The nodes for ComfyUI keep its contract: mappings, input types, and images (B, H, W, 3) from 0 to 1."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline

NODES = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "comfyui_nodes.py"))
TYPES = {"STRING", "INT", "FLOAT", "DITLAB_MODEL"}


def test_every_node_declares_what_comfyui_reads():
    classes = NODES["NODE_CLASS_MAPPINGS"]
    assert NODES["NODE_DISPLAY_NAME_MAPPINGS"].keys() == classes.keys()
    for node in classes.values():
        assert callable(getattr(node, node.FUNCTION))
        assert isinstance(node.RETURN_TYPES, tuple)
        assert node.CATEGORY == "ditlab"
        assert {kind[0] for group in node.INPUT_TYPES().values() for kind in group.values()} <= TYPES


def defaults(node):
    groups = node.INPUT_TYPES().values()
    return {name: kind[1]["default"] for group in groups for name, kind in group.items() if len(kind) > 1}


@pytest.mark.parametrize(("channels", "classes"), [(1, 3), (3, 0)])
def test_images(tmp_path, channels, classes):
    folder = tiny_pipeline(classes=classes, channels=channels).save(tmp_path / "model")
    (model,) = NODES["DitlabLoad"]().load(str(folder))
    node = NODES["DitlabGenerate"]
    labels = "class 2\n\nclass 0\n" if classes else ""
    given = defaults(node) | {"labels": labels, "seed": 5, "count": 2, "steps": 2}
    (images,) = node().generate(model, **given)
    assert images.shape == (4 if classes else 2, 8, 8, 3)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    expected = model(["class 2", "class 0"] if classes else None, seeds=6, steps=2, output_type="np").images
    assert np.allclose(images[1::2, ..., :channels], expected, atol=1 / 255 + 1e-6)
