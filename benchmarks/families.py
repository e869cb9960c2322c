"""Every family trained by one recipe at about equal multiply-accumulates, scored, with several seeds.

    python benchmarks/families.py digits|glyphs-32 OUT [SEEDS]

Writes OUT/results.jsonl as the runs end; a run that is there is not repeated, one that was stopped goes on. At the end
the table of all results, mean and half the range over the seeds.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console

from ditlab import create
from ditlab.config import Recipe, find_recipe, parse_recipe, read_toml
from ditlab.evaluation import measure, score_digits
from ditlab.evaluation.glyphs import score_glyphs
from ditlab.pipeline import Pipeline
from ditlab.sampling import draw_batches
from ditlab.training import train

NAMES = {
    "digits": {
        "DiT": {"width": 188, "depth": 4, "heads": 4, "patch": 2, "qk_norm": True},
        "U-DiT": {"width": 48, "heads": 2, "depths": (1, 2, 1)},
        "U-ViT": {"width": 156, "depth": 5, "heads": 4, "patch": 2},
        "Skip-DiT": {"width": 180, "depth": 4, "heads": 4, "patch": 2, "qk_norm": True},
        "ADM": {"width": 40, "multiples": (1, 2), "depth": 1, "attention_at": (2,), "head_width": 40},
        "LDM": {"width": 38, "multiples": (1, 2), "depth": 1, "attention_at": (2,), "head_width": 38},
    },
    "glyphs-32": {  # as few multiply-accumulates as U-DiT can have at full resolution
        "DiT": {"width": 312, "depth": 6, "heads": 4, "patch": 8, "qk_norm": True},
        "U-DiT": {"width": 16, "heads": 2, "depths": (1, 1, 1, 1, 1)},
        "U-ViT": {"width": 316, "depth": 5, "heads": 4, "patch": 8},
        "Skip-DiT": {"width": 300, "depth": 6, "heads": 4, "patch": 8, "qk_norm": True},
        "ADM": {"width": 16, "multiples": (1, 2, 4), "depth": 1, "attention_at": (4,), "head_width": 16},
        "LDM": {"width": 16, "multiples": (1, 2, 4), "depth": 1, "attention_at": (4,), "head_width": 16},
    },
}
SHAPES = {"digits": (8, 1, 10), "glyphs-32": (32, 3, 26)}
IMAGES = 51_200
LR = 2e-3  # that all of them bear


def main() -> None:
    """Train, score, print."""
    data, out, seeds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2
    console = Console(stderr=True)
    file = out / "results.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in range(seeds):
        for family in NAMES[data]:
            if any((each["family"], each["seed"]) == (family, seed) for each in done):
                continue
            pipe = train(recipe(data, family, seed), out / f"{family}-{seed}", console=console)
            result = {"family": family, "seed": seed, **cost(data, family), **score(data, pipe, console)}
            result["seconds"] = pipe.config["train_seconds"]
            done.append(result)
            with file.open("a") as log:
                log.write(json.dumps(result) + "\n")
    print(f"| network | parameters | MMACs | Frechet distance | read rightly |\n|{'---|' * 5}")
    for family in NAMES[data]:
        print(row([each for each in done if each["family"] == family]))


def recipe(data: str, family: str, seed: int) -> Recipe:
    """The recipe of the data set, with this network, budget and seed."""
    path = find_recipe(data)
    table: dict[str, Any] = read_toml(path) | {"model": {"name": family, **NAMES[data][family]}}
    whole = parse_recipe(table, source=str(path))
    each = {"images": IMAGES, "preview_every": IMAGES, "save_every": IMAGES // 4, "precision": "float32", "seed": seed}
    return replace(whole, train=replace(whole.train, **each), optim=replace(whole.optim, lr=LR))


def cost(data: str, family: str) -> dict[str, float]:
    """Parameters and multiply-accumulates, merged."""
    size, channels, classes = SHAPES[data]
    shape = {"size": size, "channels": channels, "classes": classes, "learn_variance": False}
    found = measure(lambda: create(family, **shape, **NAMES[data][family]))
    return {"parameters": found.parameters, "mmacs": found.gmacs * 1e3}


def score(data: str, pipe: Pipeline, console: Console) -> dict[str, float]:
    """Frechet distance, its floor, and the share that is read as it was asked for."""
    classes = pipe.net.classes
    labels = [i % classes for i in range(100 * classes)]
    pixels = draw_batches(pipe, labels, list(range(len(labels))), console, batch_size=130, options={})
    wanted = torch.tensor(labels)
    found = score_digits(pixels, wanted) if data == "digits" else score_glyphs(pixels, wanted)
    return {"fd": found.fd, "floor": found.fd_floor, "accuracy": found.accuracy}


def row(results: list[dict[str, Any]]) -> str:
    """A line of the table."""
    if not results:
        return ""

    def spread(key: str, shown: str) -> str:
        values = [each[key] for each in results]
        return f"{mean(values):{shown}} ± {(max(values) - min(values)) / 2:{shown}}"

    first = results[0]
    return (
        f"| {first['family']} | {first['parameters'] / 1e6:.2f} M | {first['mmacs']:.0f} | {spread('fd', '.3f')} | "
        f"{spread('accuracy', '.1%')} |"
    )


if __name__ == "__main__":
    main()
