"""The demo of text to image: three seeds, the curve over training times, and prompts that go beyond the data.

    python benchmarks/text_demo.py OUT                         # everything below; hours on a quiet machine
    python benchmarks/text_demo.py OUT --only seeds            # `ditlab demo --text` with three seeds
    python benchmarks/text_demo.py OUT --only curve            # 2, 5 and 10 minutes, each trained from nothing
    python benchmarks/text_demo.py OUT --only beyond           # images of prompts that go beyond, from the first seed
    python benchmarks/text_demo.py OUT --only settings         # other networks and settings, 5 minutes each

Every result is appended to OUT/results.jsonl when it is there. Finished runs are not repeated.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cyclopts import run
from rich.console import Console

import ditlab
from ditlab.config.reader import find_recipe, parse_recipe, read_toml
from ditlab.config.sections import Recipe
from ditlab.core.device import keep_freed_memory
from ditlab.core.errors import InputError
from ditlab.study.tables import changed
from ditlab.study.text_demo import RECIPE, run_text_demo, save_grid

CONSOLE = Console(stderr=True)
SEEDS, CURVE, TRIAL_MINUTES = (0, 1, 2), (2.0, 5.0, 10.0), 5.0
BEYOND = [
    "a blue apple on a yellow background",
    "an orange frog on a white background",
    "a purple panda on an orange background",
    "a dog and a cat on a green background",
    "two red hearts on a white background",
    "apple",
    "red on red",
    "a yellow background",
    "background yellow a on apple blue a",
]
"""Prompts of words that the model knows, most of them in forms that it has never seen."""
UNKNOWN = ["a turquoise apple on a blue background"]
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "as in the recipe": {},
    "outer grids, no images of words": {"model": {"outer_grids": True, "word_images": 0}},
    "4 blocks inside": {"model": {"depth": 4}},
    "3 blocks inside, 2 outside": {"model": {"depth": 3, "outer_depth": 2}},
    "128 channels outside": {"model": {"outer": [128]}},
    "no attention": {"model": {"core": "convolution"}},
    "Muon": {"optim": {"name": "muon"}},
    "learning rate 2e-3": {"optim": {"lr": 2e-3}},
    "learning rate 6e-3": {"optim": {"lr": 6e-3}},
    "batch 32": {"train": {"batch": 32}},
    "batch 128": {"train": {"batch": 128}},
    "times at 0.8": {"diffusion": {"time_mean": 0.8}},
    "guidance 1.5": {"sample": {"guidance": 1.5}},
}


def main(out: Path, *, only: Literal["seeds", "curve", "beyond", "settings", ""] = "") -> None:
    """Run the parts that are asked for."""
    keep_freed_memory()
    if only in ("", "seeds"):
        for seed in SEEDS:
            score(out, f"seed {seed}", with_changes({"train": {"seed": seed}}))
    if only in ("", "beyond"):
        beyond(out)
    if only in ("", "curve"):
        for minutes in CURVE:
            score(out, f"{minutes:g} minutes", with_changes({"train": {"minutes": minutes}}))
    if only in ("", "settings"):
        for name, changes in SETTINGS.items():
            tables = {**changes, "train": {"minutes": TRIAL_MINUTES, **changes.get("train", {})}}
            score(out, name, with_changes(tables))


def with_changes(tables: dict[str, dict[str, Any]]) -> Recipe:
    """The recipe of the demo with other settings."""
    path = find_recipe(RECIPE)
    return parse_recipe(changed(read_toml(path), tables), source=str(path))


def score(out: Path, name: str, recipe: Recipe) -> None:
    """Train and score a recipe, and append the result, unless that is done."""
    file = out / "results.jsonl"
    done = [json.loads(line)["name"] for line in file.read_text().splitlines()] if file.exists() else []
    if name in done:
        return
    CONSOLE.print(name)
    folder = out / name.replace(" ", "-").replace(",", "")
    recipe = replace(recipe, train=replace(recipe.train, preview_every=1_000_000_000))
    result = run_text_demo(folder, CONSOLE, recipe)
    seen = json.loads((folder / "score.json").read_text())
    rates = {key: {aspect: rate["share"] for aspect, rate in rates.items()} for key, rates in seen["score"].items()}
    line = {"name": name, "images": images_seen(folder), **rates, "fd": result.distance.fd,
            "ratio": result.distance.ratio, "train_seconds": result.train_seconds,
            "score_seconds": result.score_seconds}  # fmt: skip
    with file.open("a") as opened:
        opened.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def images_seen(folder: Path) -> int:
    """Images that a run was trained on."""
    return int(ditlab.load(folder).config["images_seen"])


def beyond(out: Path) -> None:
    """Images of prompts that go beyond the data, and of ten seeds; and what an unknown word gives."""
    pipe = ditlab.load(out / "seed-0")
    save_grid(pipe, BEYOND, out / "beyond.png", CONSOLE)
    save_grid(
        pipe, ["a green frog on a pink background", "a rocket on a yellow background"], out / "seeds.png", CONSOLE
    )
    for prompt in UNKNOWN:
        try:
            pipe([prompt], seeds=[0])
        except InputError as error:
            print(error, flush=True)


if __name__ == "__main__":
    run(main)
