"""Drawing many pictures: PNG files with a grid and an animation on request, or tens of thousands for an evaluation."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ditlab.autoencoders import Absent
from ditlab.core.errors import InputError
from ditlab.core.progress import progress_bar
from ditlab.core.types import Label, Seed, Step, between
from ditlab.inference.pipeline import Pipeline
from ditlab.report.sheets import contact_sheet, save_animation, to_pil


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
    seeds: Sequence[Seed],
    console: Console,
    *,
    batch_size: int,
    options: dict[str, Any],
) -> Tensor:
    """Draw picture i of labels[i] and seeds[i], with a progress bar: uint8 (B, C, H, W) on the CPU."""
    return torch.cat([*drawn_batches(pipe, labels, seeds, console, batch_size=batch_size, options=options)])


def drawn_batches(
    pipe: Pipeline,
    labels: Sequence[Label],
    seeds: Sequence[Seed],
    console: Console,
    *,
    batch_size: int,
    options: dict[str, Any],
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[Tensor]:
    """The same, batch by batch as they are drawn."""
    steps, start, original = pipe.step_count(options), 0, options.get("original")
    with progress_bar(console) as progress:
        task = progress.add_task("drawing", total=len(seeds))

        def show(step: Step) -> None:
            progress.advance(task, len(step.x) / steps)
            if on_step is not None:
                on_step(step)

        for x0 in pipe.batches(labels, seeds, batch_size, show, **options):
            pixels = pipe.decode(x0)
            yield pixels if original is None else original.part(slice(start, start + len(x0))).finish(pixels)
            start += len(x0)


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
    strip: int | None = None,
) -> Drawn:
    """Draw each label with each seed into a folder.

    Args:
        labels: indices or names; None or none is all classes, or the null label of an unconditional model.
        options: settings of `Pipeline.steps`.
        strip: instead, so many pictures from one seed to the other for each label; or with a single seed from one
            label to the other.

    Raises:
        InputError: a label, name or number that cannot be used; nothing is written.
    """
    every: list[Label] = list(dict.fromkeys(labels)) if labels else pipe.conditioner.all_values()
    seeds = list(dict.fromkeys(seeds))
    rows = table(pipe, every, seeds) if strip is None else strips(pipe, every, seeds, strip)
    if isinstance(pipe.autoencoder, Absent):
        pipe.decode(torch.empty(0))  # which it refuses: before any work
    cells = [cell for row in rows for cell in row.cells]
    started = time.monotonic()
    frames: dict[int, list[Tensor]] = {}  # by step: the pictures of each batch

    def keep(step: Step) -> None:
        frames.setdefault(step.i, []).append(pipe.decode(step.x))

    files = [out / f"{cell.stem}.png" for cell in cells]
    batches = drawn_batches(
        pipe,
        [cell.label for cell in cells],
        [cell.seed for cell in cells],
        console,
        batch_size=batch_size,
        options=options,
        on_step=keep if trajectory else None,
    )
    parts: list[Tensor] = []
    written = 0
    with ThreadPoolExecutor(1) as writer:  # compresses while the next batch is drawn
        saving: list[Future[None]] = []
        for part in batches:
            out.mkdir(parents=True, exist_ok=True)
            saving.append(writer.submit(save_all, part, files[written : written + len(part)]))
            written += len(part)
            parts.append(part)
        for each in saving:
            each.result()
    pixels = torch.cat(parts)

    def sheet(pixels: Tensor) -> Any:
        pictures = to_pil(pixels)
        columns = len(pictures) // len(rows)
        return contact_sheet(
            [pictures[i : i + columns] for i in range(0, len(pictures), columns)], [row.name for row in rows]
        )

    grid = out / "grid.png"
    sheet(pixels).save(grid)
    animation = None
    if trajectory:
        animation = out / "trajectory.gif"
        save_animation([sheet(torch.cat(moment)) for moment in frames.values()], animation)
    return Drawn(len(pixels), time.monotonic() - started, grid, files, animation)


@dataclass(frozen=True)
class Cell:
    """A picture of a sheet."""

    label: Label
    seed: Seed
    stem: str  # of its file


@dataclass(frozen=True)
class Row:
    """A row of a sheet."""

    name: str
    cells: list[Cell]


def table(pipe: Pipeline, labels: Sequence[Label], seeds: Sequence[int]) -> list[Row]:
    """Each label with each seed."""
    return [
        Row(
            pipe.conditioner.title(label),
            [Cell(label, seed, f"{pipe.conditioner.stem(label)}-seed{seed}") for seed in seeds],
        )
        for label in labels
    ]


def strips(pipe: Pipeline, labels: Sequence[Label], seeds: Sequence[int], count: int) -> list[Row]:
    """For each label the way from one seed to the other; with a single seed the way from one label to the other.

    Raises:
        InputError: other counts of labels and seeds.
    """
    if count < 2:
        raise InputError(f"a strip of {count}; give 2 or more")
    stems, names = ([named(label) for label in labels] for named in (pipe.conditioner.stem, pipe.conditioner.title))
    if len(seeds) == 2:
        ways = enumerate(between(seeds[0], seeds[1], count))
        columns = [(seed, f"seed{seeds[0]}-to-{seeds[1]}-{i:02d}") for i, seed in ways]
        each = zip(labels, names, stems, strict=True)
        return [Row(name, [Cell(label, seed, f"{stem}-{end}") for seed, end in columns]) for label, name, stem in each]
    if len(seeds) == 1 and len(labels) == 2:
        stem = f"{stems[0]}-to-{stems[1]}-seed{seeds[0]}"
        cells = [
            Cell(label, seeds[0], f"{stem}-{i:02d}") for i, label in enumerate(between(labels[0], labels[1], count))
        ]
        return [Row(f"{names[0]} to {names[1]}", cells)]
    raise InputError(
        f"a strip between {len(labels)} labels and {len(seeds)} seeds; give two seeds, or one seed and two labels"
    )


def save_all(pixels: Tensor, files: Sequence[Path]) -> None:
    """A PNG for each picture."""
    for image, file in zip(to_pil(pixels), files, strict=True):
        image.save(file)
