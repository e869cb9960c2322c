"""What each option of training brings: the letters of glyphs-32, at equal images and equal seeds.

    python benchmarks/quality.py OUT [SEEDS] [IMAGES]

Every option is trained for each seed by the same recipe and scored. OUT/results.jsonl is written as the runs end; a run
that is there is not repeated, one that was stopped goes on. At the end the table of all results: mean over the seeds,
half their range, and the difference from the recipe as it is, seed by seed, with its standard error.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console

from ditlab.config import Recipe, find_recipe, parse_recipe, read_toml
from ditlab.evaluation.glyphs import score_glyphs
from ditlab.hardware import keep_freed_memory
from ditlab.sampling import draw_batches
from ditlab.training import train

COUNT = 2600
OPTIONS: dict[str, list[str]] = {
    "as it is": [],
    "uniform t": ["--diffusion.time=uniform"],
    "target velocity": ["--diffusion.target=velocity", "--diffusion.weight=one"],
    "min-SNR": ["--diffusion.weight=min-snr"],
    "direction": ["--diffusion.direction=1"],
    "RMS norm, SwiGLU, RoPE": ["--model.rms_norm", "--model.swiglu", "--model.rope"],
    "routing": ["--train.route=0.5"],
    "alignment": ["--train.align", "1", "--train.align", "4"],
    "Muon": ["--optim.name=muon"],
}


def main() -> None:
    """Train, score, print."""
    keep_freed_memory()
    out = Path(sys.argv[1])
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    images = int(sys.argv[3]) if len(sys.argv) > 3 else 153_600
    out.mkdir(parents=True, exist_ok=True)
    console, file = Console(stderr=True), out / "results.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in range(seeds):
        for name, options in OPTIONS.items():
            if any((each["option"], each["seed"]) == (name, seed) for each in done):
                continue
            folder = out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            pipe = train(recipe(options, seed, images), folder, console=console)
            labels = [i % 26 for i in range(COUNT)]
            pixels = draw_batches(pipe, labels, list(range(COUNT)), console, batch_size=130, options={})
            found = score_glyphs(pixels, torch.tensor(labels))
            result = {"option": name, "seed": seed, "images": images, "fd": found.fd, "read": found.accuracy}
            result["seconds"] = pipe.config["train_seconds"]
            done.append(result)
            with file.open("a") as log:
                log.write(json.dumps(result) + "\n")
    print(f"| option | Frechet distance | against the recipe | read rightly | training |\n|{'---|' * 5}")
    for name in OPTIONS:
        print(row(name, done))


def recipe(options: Sequence[str], seed: int, images: int) -> Recipe:
    """glyphs-32 with these options and this budget."""
    path = find_recipe("glyphs-32")
    whole = parse_recipe(read_toml(path), options, str(path))
    return replace(whole, train=replace(whole.train, images=images, seed=seed, preview_every=images))


def row(name: str, done: list[dict[str, Any]]) -> str:
    """A line of the table."""
    mine = {each["seed"]: each for each in done if each["option"] == name}
    plain = {each["seed"]: each for each in done if each["option"] == "as it is"}
    differences = [mine[seed]["fd"] - plain[seed]["fd"] for seed in mine if seed in plain]
    error = f" ± {stdev(differences) / len(differences) ** 0.5:.2f}" if len(differences) > 1 else ""
    return (
        f"| {name} | {spread([each['fd'] for each in mine.values()], '.2f')} | {mean(differences):+.2f}{error} | "
        f"{spread([each['read'] for each in mine.values()], '.1%')} | "
        f"{mean(each['seconds'] for each in mine.values()):.0f} s |"
    )


def spread(values: list[float], shown: str) -> str:
    """Mean and half the range."""
    return f"{mean(values):{shown}} ± {(max(values) - min(values)) / 2:{shown}}"


if __name__ == "__main__":
    main()
