"""The models and runs behind the page in its tests, and what the tests ask of the page."""

import json
import re

import pytest
import torch
from helpers import perturbed
from PIL import Image

from ditlab.backbones import create
from ditlab.conditioning import Text
from ditlab.config.reader import find_recipe
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import make_process
from ditlab.inference.pipeline import Pipeline


def text_pipeline():
    """A model that reads text, with random weights."""
    torch.manual_seed(0)
    conditioner = Text.for_data(None, {"captions": ["a red apple", "a blue apple"]})
    net = create("text_net:TextNet", size=8, channels=3, learn_variance=False, **conditioner.network_options())
    config = {"prompts": ["a red apple", "a blue apple"], "sample": {"sampler": "euler", "steps": 4, "guidance": 2.0}}
    return Pipeline(net, Objective(make_process("linear"), "velocity"), conditioner=conditioner, config=config)


def clip_pipeline():
    """A model of clips of 4 frames of 8x16 pixels, with random weights."""
    torch.manual_seed(0)
    net = create(
        "VideoDiT", size=(4, 8, 16), channels=1, classes=2, width=32, depth=1, heads=2, patch=4, learn_variance=False
    )
    config = {"sample": {"sampler": "euler", "steps": 6, "guidance": 2.0}}
    objective = Objective(make_process("linear"), "velocity")
    return Pipeline(perturbed(net, 0.05), objective, classes=["left", "right"], config=config)


def begin_run(run, images=800):
    """A training run that has no checkpoint yet."""
    (run / "previews").mkdir(parents=True)
    (run / "recipe.toml").write_text(find_recipe("digits").read_text())
    lines = [
        {"images": 100 * i, "loss": 1 / i, "images_per_second": 50.0, "lr": 0.1} for i in range(1, images // 100 + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (40, 20), "red").save(run / "previews" / f"{images:012}.png")


def drawn(page, count):
    page.get_by_role("status").filter(has_text=re.compile("images? in")).wait_for(timeout=20_000)
    assert page.locator("#current img").count() == count


def problems(page):
    """Problems of accessibility of any kind, from axe."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found]
