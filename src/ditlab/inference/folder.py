"""Generate images or videos into a folder, with their settings, a contact sheet, and an optional animation."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.io import writing
from ditlab.core.progress import progress_bar
from ditlab.core.spelling import path_name
from ditlab.core.types import Between, Label, Seed, Step, between
from ditlab.core.units import counted
from ditlab.inference.base import BasePipeline
from ditlab.inference.finite import check_autoencoder
from ditlab.inference.output import file_suffix, frame_rate, native, save_item
from ditlab.inference.records import Repeat, describe
from ditlab.report.sheets import contact_sheet, save_animation, thumbnails, to_videos
from ditlab.report.videos import FPS, check_video


@dataclass(frozen=True)
class SampledFolder:
    """The files that `sample_folder` wrote."""

    count: int
    seconds: float
    grid: Path
    files: list[Path]
    trajectory: Path | None
    settings: Path


def generate_images(
    pipe: BasePipeline,
    labels: Sequence[Label],
    seeds: Sequence[Seed],
    console: Console,
    *,
    batch_size: int,
    options: dict[str, Any],
) -> Tensor:
    """Generate image i from labels[i] and seeds[i], with a progress bar; returns what `decode` does."""
    return torch.cat([*image_batches(pipe, labels, seeds, console, batch_size=batch_size, options=options)])


def image_batches(
    pipe: BasePipeline,
    labels: Sequence[Label],
    seeds: Sequence[Seed],
    console: Console,
    *,
    batch_size: int,
    options: dict[str, Any],
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[Tensor]:
    """Generate images as `generate_images` does, and yield each batch when it is complete."""
    steps, start, original = pipe.resolve(**options).steps, 0, options.get("original")
    with progress_bar(console) as progress:
        task = progress.add_task("generating", total=len(seeds))

        def show(step: Step) -> None:
            progress.advance(task, len(step.x) / steps)
            if on_step is not None:
                on_step(step)

        for x0 in pipe.batches(labels, seeds, batch_size, show, **options):
            pixels = pipe.decode(x0)
            yield pixels if original is None else original.part(slice(start, start + len(x0))).finish(pixels)
            start += len(x0)


def sample_folder(
    pipe: BasePipeline,
    labels: Sequence[Label] | None,
    seeds: Sequence[int],
    out: Path,
    console: Console,
    *,
    batch_size: int,
    trajectory: bool,
    options: dict[str, Any],
    strip: int | None = None,
    format: str = "",
    fps: float | None = None,
    cells: "Sequence[Cell] | None" = None,
) -> SampledFolder:
    """Generate an image for each combination of label and seed, and write them into a folder.

    Args:
        pipe, console: the model, and the console for the progress bar.
        labels, seeds: class indices or names (None or an empty list is all classes), and the seeds of each.
        out: the folder, which is created.
        batch_size: images generated at a time.
        trajectory: also write an animation of the sampler steps.
        options: arguments of `BasePipeline.steps`.
        strip: generate interpolations of this many images instead: between two seeds for each label, or with a single
            seed between two labels.
        format: "png" files show the shown channels with 8 bits; "npy" files hold arrays (H, W, C) of all channels, in
            the numbers and the type of the training data. Videos are "webp" (default), "gif", "mp4", "webm" or "npy"
            files, or folders of "frames". The contact sheet is a PNG file, with film strips of videos.
        fps, cells: frames per second of videos (default: as in the training data, or 8); images to generate instead.

    Raises:
        InputError: a label or setting cannot be used; nothing is written.
    """
    suffix, fps = file_format(pipe, format, fps, (plan := pipe.resolve(**options)).size)
    values: list[Label] = distinct(pipe, labels) if labels else pipe.examples
    seeds = list(dict.fromkeys(seeds))
    rows = table(pipe, values, seeds) if strip is None else strips(pipe, values, seeds, strip)
    rows = rows if cells is None else grouped(pipe, cells)
    check_autoencoder(pipe)
    cells = [cell for row in rows for cell in row.cells]
    names, numbers = [cell.label for cell in cells], [cell.seed for cell in cells]
    record = describe(pipe, plan, names, numbers, options.get("guide"))().played(fps if len(pipe.shape) == 4 else None)
    started = time.monotonic()
    frames: dict[int, list[Tensor]] = {}  # step -> images of each batch

    def keep(step: Step) -> None:
        frames.setdefault(step.i, []).append(pipe.decode(step.x.nan_to_num(0, 0, 0)))  # checked after the last step

    batches = image_batches(
        pipe, names, numbers, console, batch_size=batch_size, options=options, on_step=keep if trajectory else None
    )
    files = [out / f"{stem}{suffix}" for stem in different([cell.stem for cell in cells])]
    pixels = write_batches(pipe, batches, files, record.every(), fps)
    grid, settings = out / "grid.png", record.write(files)
    save_item(sheet(pipe, pixels, rows), grid, record.listed(files))
    animation = out / "trajectory.gif" if trajectory else None
    if animation is not None:
        save_animation([sheet(pipe, torch.cat(batch), rows) for batch in frames.values()], animation)
    return SampledFolder(len(pixels), time.monotonic() - started, grid, files, animation, settings)


def file_format(pipe: BasePipeline, format: str, fps: float | None, size: Sequence[int]) -> tuple[str, float]:
    """The suffix of the files of a model, and the frame rate of its videos of a size; see `sample_folder`.

    Raises:
        InputError: the format does not suit the model, or cannot be written; or images have a frame rate.
    """
    suffix = file_suffix(format, moving := len(pipe.shape) == 4)
    if fps is not None and not moving:
        raise InputError(f"fps is {fps:g}, which has no effect on images; remove it")
    fps = frame_rate(pipe.model.config) if fps is None else fps
    if moving and suffix != ".npy":
        check_video(suffix, pipe.picture_shape_of(size)[1], fps)
    return suffix, fps


def write_batches(
    pipe: BasePipeline,
    batches: Iterator[Tensor],
    files: Sequence[Path],
    records: Sequence[dict[str, Any]],
    fps: float = FPS,
) -> Tensor:
    """Write each batch while the next one is generated; returns all images (B, C, H, W) or videos (B, C, T, H, W)."""
    parts: list[Tensor] = []
    written = 0
    with ThreadPoolExecutor(1) as writer:
        saving: list[Future[None]] = []
        for part in batches:
            files[0].parent.mkdir(parents=True, exist_ok=True)
            rows = slice(written, written + len(part))
            saving.append(writer.submit(save_all, pipe, part, files[rows], records[rows], fps))
            written += len(part)
            parts.append(part)
        for task in saving:
            task.result()
    return torch.cat(parts)


def sheet(pipe: BasePipeline, pixels: Tensor, rows: "Sequence[Row]") -> Image.Image:
    """Arrange images, or film strips of videos, on a contact sheet with the names of the rows."""
    images = iter(thumbnails(pipe.values.displayed(pixels)))
    return contact_sheet([list(islice(images, len(row.cells))) for row in rows], [row.name for row in rows])


@dataclass(frozen=True)
class Cell:
    """One image of a contact sheet."""

    label: Label
    seed: Seed
    stem: str  # file name without suffix


@dataclass(frozen=True)
class Row:
    """One row of a contact sheet."""

    name: str
    cells: list[Cell]


def distinct(pipe: BasePipeline, labels: Sequence[Label]) -> list[Label]:
    """Return labels without those that repeat another one in other words, such as 3 and "index:3"."""
    kinds: dict[tuple[bool, str, str], Label] = {}
    for label in labels:
        kinds.setdefault((label is None, *words(pipe, label)), label)
    return list(kinds.values())


def different(stems: Sequence[str]) -> list[str]:
    """Return file names that differ on every file system: a number is appended to those that are equal."""
    counts: Counter[str] = Counter()
    names = []
    for stem in stems:
        counts[stem.casefold()] += 1
        count = counts[stem.casefold()]
        names.append(stem if count == 1 else f"{stem}-{count}")
    return names


def words(pipe: BasePipeline, label: Label) -> tuple[str, str]:
    """Return title and file name of a label, which may lie between two others."""
    if not isinstance(label, Between):
        return pipe.conditioner.title(label), pipe.conditioner.stem(label)
    (first, a), (second, b) = words(pipe, label.first), words(pipe, label.second)
    return f"{first} to {second}", f"{a}-to-{b}-{label.weight:.2f}"


def cell_of(pipe: BasePipeline, label: Label, seed: Seed) -> "Cell":
    """Return the cell of any label and seed, with a file name that has both."""
    name = f"{seed.first}-to-{seed.second}-{seed.weight:.2f}" if isinstance(seed, Between) else str(seed)
    return Cell(label, seed, f"{words(pipe, label)[1]}-seed{name}")


def repeated(
    pipe: BasePipeline, repeat: Repeat, labels: Sequence[Label] | None, seeds: Sequence[Seed] | None
) -> "list[Cell]":
    """Return the cells of recorded images under their names; with other labels or seeds, all combinations.

    Args:
        pipe: the model.
        repeat: the record.
        labels, seeds: instead of those that are recorded, if they are not None.
    """
    if labels is None and seeds is None:
        cells = [cell_of(pipe, image["label"], image["seed"]) for image in repeat.images]
        return [
            replace(cell, stem=path_name(Path(image["file"]).stem) if image.get("file") else cell.stem)
            for cell, image in zip(cells, repeat.images, strict=True)
        ]
    names = repeat.distinct("label") if labels is None else distinct(pipe, labels)
    return [
        cell_of(pipe, name, seed) for name in names for seed in (repeat.distinct("seed") if seeds is None else seeds)
    ]


def grouped(pipe: BasePipeline, cells: "Sequence[Cell]") -> "list[Row]":
    """Return cells in rows of one title."""
    rows = groupby(cells, lambda cell: words(pipe, cell.label)[0])
    return [Row(title, list(row)) for title, row in rows]


def table(pipe: BasePipeline, labels: Sequence[Label], seeds: Sequence[int]) -> list[Row]:
    """Return a row for each label, with a cell for each seed."""
    return [
        Row(
            pipe.conditioner.title(label),
            [Cell(label, seed, f"{pipe.conditioner.stem(label)}-seed{seed}") for seed in seeds],
        )
        for label in labels
    ]


def strips(pipe: BasePipeline, labels: Sequence[Label], seeds: Sequence[int], count: int) -> list[Row]:
    """Return rows of interpolations: between two seeds for each label, or with a single seed between two labels.

    Raises:
        InputError: fewer than two images, or other numbers of labels and seeds.
    """
    if count < 2:
        raise InputError(f"a strip of {counted(count, 'image')}; give 2 or more")
    stems, names = ([named(label) for label in labels] for named in (pipe.conditioner.stem, pipe.conditioner.title))
    if len(seeds) == 2:
        points = enumerate(between(seeds[0], seeds[1], count))
        columns = [(seed, f"seed{seeds[0]}-to-{seeds[1]}-{i:02d}") for i, seed in points]
        named_labels = zip(labels, names, stems, strict=True)
        return [
            Row(name, [Cell(label, seed, f"{stem}-{suffix}") for seed, suffix in columns])
            for label, name, stem in named_labels
        ]
    if len(seeds) == 1 and len(labels) == 2:
        stem = f"{stems[0]}-to-{stems[1]}-seed{seeds[0]}"
        cells = [
            Cell(label, seeds[0], f"{stem}-{i:02d}") for i, label in enumerate(between(labels[0], labels[1], count))
        ]
        return [Row(f"{names[0]} to {names[1]}", cells)]
    raise InputError(
        f"a strip between {counted(len(labels), 'label')} and {counted(len(seeds), 'seed')}; give two seeds, or one "
        "seed and two labels"
    )


def save_all(
    pipe: BasePipeline, pixels: Tensor, files: Sequence[Path], records: Sequence[dict[str, Any]], fps: float
) -> None:
    """Write a file for each image or video; a PNG file has its settings in the metadata."""
    items: Sequence[Any]
    if files[0].suffix == ".npy":
        items = [*native(pixels, pipe.values)]
    else:
        items = to_videos(pipe.values.displayed(pixels)) if pixels.ndim == 5 else pipe.displayed(pixels)
    for item, file, record in zip(items, files, records, strict=True):
        with writing(file):
            save_item(item, file, record, fps)
