"""The demo of text to image: train on captioned emoji, and score images of pairs that were never seen together."""

import json
import os
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from socket import socket
from typing import Any

import torch
from rich.console import Console
from torch.multiprocessing.spawn import ProcessRaisedException, spawn

from ditlab.config.reader import find_recipe, parse_recipe, read_toml, to_tables
from ditlab.config.sections import Recipe
from ditlab.core.device import keep_freed_memory, pick_device, process_place
from ditlab.core.errors import InputError, RunError
from ditlab.core.io import replace_text
from ditlab.core.terminal import make_console, say
from ditlab.core.units import counted
from ditlab.evaluation.features import open_features
from ditlab.evaluation.features.own import train_features
from ditlab.evaluation.prompts import HELD_OUT, REAL, SEEN, Distance, PromptScore, distance, score_prompts
from ditlab.inference.folder import generate_images
from ditlab.inference.pipeline import Pipeline
from ditlab.report.sheets import contact_sheet, save_sheet, to_pil
from ditlab.training import train

RECIPE, PROMPTS = "emoji-text", 300
ROWS, COLUMNS = 12, 8  # prompts and seeds of the contact sheet
FEATURE_MINUTES = 0.5  # longest time in which the features of the distance are trained
PROCESSES = 2  # of the training on a CPU: small layers take about as long with two threads as with one
EXAMPLE = "a blue apple on a yellow background"


@dataclass(frozen=True)
class TextDemo:
    """Scores and times of the demo."""

    score: PromptScore
    distance: Distance
    train_seconds: float
    score_seconds: float
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """The demo for JSON."""
        return {
            "score": self.score.as_json(),
            "fd": self.distance.fd,
            "real_fd": self.distance.real_fd,
            "train_seconds": self.train_seconds,
            "score_seconds": self.score_seconds,
            "folder": str(self.folder),
        }

    def report(self, command: str) -> list[str]:
        """The scores as lines of text; `command` is how ditlab was called."""
        names = {SEEN: "pairs seen in training", HELD_OUT: "pairs never seen together", REAL: "real images, read alike"}
        lines = [f"trained in {self.train_seconds:.0f} s, scored in {self.score_seconds:.0f} s"]
        for key, name in names.items():
            rates = self.score.rates[key]
            lines.append(f"{name}: object and background right {rates['both']}, clear {rates['clear']}")
        return [
            *lines,
            str(self.distance),
            f"images of pairs never seen together: {self.folder / 'grid.png'}",
            f'type a prompt: {command} sample {self.folder} --prompts "{EXAMPLE}" --seeds 0-7',
            "emoji: OpenMoji (openmoji.org), CC BY-SA 4.0",
        ]


def demo_recipe(name: str = RECIPE, minutes: float | None = None) -> Recipe:
    """The recipe of the demo, with another training time if it is given."""
    path = find_recipe(name)
    recipe = parse_recipe(read_toml(path), source=str(path))
    return recipe if minutes is None else replace(recipe, train=replace(recipe.train, minutes=minutes))


def run_text_demo(out: Path, console: Console, recipe: Recipe | None = None, count: int = 0) -> TextDemo:
    """Train (or use the finished run in `out`), generate images of prompts, and score them.

    Args:
        out: the run folder.
        console: where progress is shown.
        recipe: the recipe (default: that of the demo).
        count: number of prompts of each set; 0 is 300.
    """
    recipe = recipe or demo_recipe()
    pipe = train_in_processes(recipe, out, console)
    started, fast = time.monotonic(), pipe.prepared()
    outcome = score_prompts(fast, recipe.data.source, console, count=count or PROMPTS)
    file, seen = out / "features.safetensors", outcome.prompts[SEEN].data
    if not file.exists():
        train_features(seen, file, console, minutes=FEATURE_MINUTES)
    result = TextDemo(
        score=outcome.score,
        distance=distance(outcome.images[SEEN], seen, open_features("own", str(file))),
        train_seconds=pipe.config["train_seconds"],
        score_seconds=time.monotonic() - started,
        folder=out,
    )
    save_grid(pipe, outcome.prompts[HELD_OUT].texts[:ROWS], out / "grid.png", console)
    replace_text(out / "score.json", json.dumps(result.as_json(), indent=2) + "\n")
    return result


def train_in_processes(recipe: Recipe, out: Path, console: Console) -> Pipeline:
    """Train a recipe, on a CPU with `PROCESSES` processes that share each batch, if it has as many cores."""
    cores = os.cpu_count() or 1
    if pick_device(recipe.train.device).type == "cpu" and cores >= PROCESSES > process_place()[1]:
        say(console, f"training with {counted(PROCESSES, 'process')}")
        with socket() as opened:
            opened.bind(("127.0.0.1", 0))
            port = opened.getsockname()[1]
        try:
            part = port, cores // PROCESSES, to_tables(recipe), str(out)
            spawn(train_part, part, PROCESSES)  # type: ignore[no-untyped-call]
        except ProcessRaisedException as error:
            raise failure(str(error)) from None
        console = Console(quiet=True)  # the finished run is only loaded
    return train(recipe, out, console=console)


def failure(trace: str) -> InputError | RunError:
    """The error of a process of the training, of which only the traceback is left."""
    line = trace.strip().splitlines()[-1]
    name, _, message = line.partition(": ")
    if name == f"{InputError.__module__}.{InputError.__name__}":
        return InputError(message)
    return RunError(f"a process of the training failed: {line}")


def train_part(rank: int, port: int, threads: int, tables: dict[str, Any], out: str) -> None:
    """Train as one of `PROCESSES` processes.

    Args:
        rank: number of this process.
        port: where the processes find each other.
        threads: threads of this process.
        tables: the recipe.
        out: the run folder.
    """
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of convolutions of 1x1, whose strides are equal
    train(parse_recipe(tables), out, console=make_console(stderr=True))


def save_grid(pipe: Pipeline, prompts: list[str], file: Path, console: Console) -> None:
    """Write a contact sheet: a row for each prompt, with the seeds 0 to 7."""
    labels = [prompt for prompt in prompts for _ in range(COLUMNS)]
    seeds = list(range(COLUMNS)) * len(prompts)
    images = to_pil(pipe.values.displayed(generate_images(pipe, labels, seeds, console, batch_size=48, options={})))
    rows = [images[start : start + COLUMNS] for start in range(0, len(images), COLUMNS)]
    save_sheet(contact_sheet(rows, prompts), file)
