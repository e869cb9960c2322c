"""Drawing many pictures into a folder: PNG files, a grid with row labels, an animation on request."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ditlab.autoencoders import Absent
from ditlab.pictures import contact_sheet, save_animation
from ditlab.pipeline import PRESETS, Label, Pipeline, to_pil
from ditlab.types import Step


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    count: int
    seconds: float
    grid: Path
    files: list[Path]
    trajectory: Path | None


def draw_batches(
    pipe: Pipeline,
    labels: Sequence[Label],
    seeds: Sequence[int],
    console: Console,
    *,
    batch_size: int,
    options: dict[str, Any],
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Draw picture i of labels[i] and seeds[i], with a progress bar: uint8 (B, C, H, W) on the CPU."""
    preset = PRESETS.get(options.get("preset") or "", {})
    steps = options.get("num_inference_steps") or preset.get("num_inference_steps") or pipe.defaults.steps
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing", total=len(seeds))

        def show(step: Step) -> None:
            progress.advance(task, len(step.x) / steps)
            if on_step is not None:
                on_step(step)

        drawn = pipe(
            labels, seeds=seeds, batch_size=batch_size, output_type="latent", callback_on_step_end=show, **options
        )
        return torch.cat([pipe.decode(part) for part in drawn.images.split(batch_size)])


def draw(
    pipe: Pipeline,
    labels: Sequence[Label] | None,
    seeds: Sequence[int],
    out: Path,
    console: Console,
    *,
    batch_size: int,
    trajectory: bool,
    options: dict[str, Any],
) -> Drawn:
    """Draw each label with each seed into a folder.

    Args:
        labels: indices or names; None or none is all classes, or the null label of an unconditional model.
        options: settings of `Pipeline.steps`.

    Raises:
        InputError: a label, name or number that cannot be used; nothing is written.
    """
    rows: list[Label] = list(dict.fromkeys(labels)) if labels else list(range(pipe.net.classes)) or [None]
    seeds = list(dict.fromkeys(seeds))
    names = [row_name(pipe, label) for label in rows]
    if isinstance(pipe.autoencoder, Absent):
        pipe.decode(torch.empty(0))  # which it refuses: before any work
    every_label = [label for label in rows for _ in seeds]
    started = time.monotonic()
    frames: dict[int, list[Tensor]] = {}  # by step: the pictures of each batch

    def keep(step: Step) -> None:
        frames.setdefault(step.i, []).append(pipe.decode(step.x))

    pixels = draw_batches(
        pipe,
        every_label,
        list(seeds) * len(rows),
        console,
        batch_size=batch_size,
        options=options,
        on_step=keep if trajectory else None,
    )
    out.mkdir(parents=True, exist_ok=True)
    images = to_pil(pixels)
    stems = [file_stem(pipe, label) for label in rows]
    files = [out / f"{stem}-seed{seed}.png" for stem in stems for seed in seeds]
    for image, file in zip(images, files, strict=True):
        image.save(file)

    def sheet(pixels: Tensor) -> Any:
        pictures = to_pil(pixels)
        return contact_sheet([pictures[i : i + len(seeds)] for i in range(0, len(pictures), len(seeds))], names)

    grid = out / "grid.png"
    sheet(pixels).save(grid)
    animation = None
    if trajectory:
        animation = out / "trajectory.gif"
        save_animation([sheet(torch.cat(moment)) for moment in frames.values()], animation)
    return Drawn(len(images), time.monotonic() - started, grid, files, animation)


def row_name(pipe: Pipeline, label: Label) -> str:
    """How a row of the grid is called: the class's name, or its number."""
    index = int(pipe.labels([label])[0])
    if label is None:
        return "any"
    return pipe.classes[index] if index < len(pipe.classes) else str(index)


def file_stem(pipe: Pipeline, label: Label) -> str:
    """Index and name of a class, without characters that have a meaning in paths; unique to the class."""
    index, name = int(pipe.labels([label])[0]), row_name(pipe, label)
    clean = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    return clean if clean == str(index) or label is None else f"{index}-{clean}"
