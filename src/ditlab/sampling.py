"""Drawing many pictures: PNG files with a grid and an animation on request, or tens of thousands for an evaluation."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ditlab.autoencoders import Absent
from ditlab.data.base import Dataset
from ditlab.data.samples import Draft
from ditlab.errors import InputError
from ditlab.files import held, replace_text
from ditlab.hardware import out_of_memory
from ditlab.pictures import contact_sheet, save_animation
from ditlab.pipeline import Label, Pipeline, Seed, to_pil
from ditlab.samplers.grids import grid_identity
from ditlab.speed.batch import best_batch
from ditlab.speed.compilation import compile_and_tell, wanted
from ditlab.speed.precision import slowness
from ditlab.types import Batch, Step, between


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    count: int
    seconds: float
    grid: Path
    files: list[Path]
    trajectory: Path | None


def ready(
    pipe: Pipeline,
    console: Console,
    *,
    precision: str,
    compile: str,
    count: int,
    batch_size: int | None,
    options: dict[str, Any],
) -> tuple[Pipeline, int]:
    """A pipeline made quick for drawing so many pictures on this machine, and how many to draw at a time.

    Args:
        pipe: the model.
        console: where it is told what was done.
        precision: as in `Pipeline.prepared`.
        compile: "always", "never", or "auto": if the work is so long that compiling shortens it.
        count, options: what will be drawn, and how.
        batch_size: pictures at a time; None tries what is quickest here.
    """
    pipe = pipe.prepared(precision)
    net, steps = pipe.net.eval(), pipe.step_count(options)

    @torch.no_grad()
    def call(batch: int) -> None:
        x = torch.zeros(batch, net.channels, *net.size, device=net.device)
        t, y = torch.full((batch,), 0.5, device=net.device), net.null(torch.zeros(batch, device=net.device).long())
        net(x, t, y).mean().item()  # which waits for the device

    if slow := slowness(str(net.dtype).removeprefix("torch."), net.device):
        console.print(slow, markup=False)
    if batch_size is None:
        batch_size = best_batch(call, net.device, count, steps)
    batch = max(1, min(batch_size, count))
    while True:
        try:
            if wanted(net, net.dtype, compile, partial(call, batch), steps * count / batch, FEW):
                compile_and_tell(net, partial(call, batch), console, dynamic=True)
            return pipe, batch_size
        except RuntimeError as error:
            if batch == 1 or not out_of_memory(error):
                raise
            batch = batch_size = batch // 2
            console.print(f"memory is too small for the batch; going on with {batch} at a time", highlight=False)


FEW = 50  # network calls, for which nothing is worth the wait


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


Labels = Literal["balanced", "random"]


@final
class Samples(Dataset):
    """A model's pictures as a data set: picture i depends on the seed, the count and i alone."""

    def __init__(
        self,
        pipe: Pipeline,
        count: int,
        *,
        labels: Labels,
        seed: int,
        batch_size: int,
        options: dict[str, Any],
        precision: str = "float32",
        console: Console | None = None,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            pipe: the model.
            count: pictures in all.
            labels: each class equally often, or uniformly at random.
            seed: picture i is drawn with the seed `seed * count + i`, so that other seeds give other pictures.
            batch_size: pictures drawn at a time; they do not depend on it.
            options: settings of `Pipeline.steps`.
            precision: another than float32 makes the model `ready` for it before the first picture.
            console: where it is told what was done for that.

        Raises:
            InputError: a count that the classes do not divide, or a model without an autoencoder.
        """
        if count < 1 or seed < 0:
            raise InputError(f"count {count} and seed {seed}; give 1 or more, and 0 or more")
        if labels == "balanced" and pipe.net.classes and count % pipe.net.classes:
            low = count // pipe.net.classes * pipe.net.classes
            raise InputError(
                f"{count} pictures cannot be shared equally among {pipe.net.classes} classes; "
                f"give a count of {low or pipe.net.classes} or {low + pipe.net.classes}, or random labels"
            )
        self.pipe, self.batch_size, self.options = pipe.fused(), batch_size, options
        self.precision, self.console = precision, console or Console(quiet=True)
        self.first_seed = seed * count
        self.classes = pipe.classes or [str(i) for i in range(pipe.net.classes)]
        chance = torch.Generator().manual_seed(seed)
        places = torch.arange(count)
        if pipe.net.classes == 0:
            self.labels = torch.zeros(count, dtype=torch.long)
        elif labels == "balanced":
            self.labels = places % pipe.net.classes
        else:
            self.labels = torch.randint(pipe.net.classes, (count,), generator=chance)
        self.channels, self.size = pipe.picture_shape
        self.on_step: Callable[[Step], None] | None = None

    @property
    def steps(self) -> int:
        """Sampler steps of each picture."""
        return self.pipe.step_count(self.options)

    @cached_property
    def drawing(self) -> tuple[Pipeline, int]:
        """The pipeline in its precision, compiled where that pays, and how many pictures it draws at a time."""
        if self.precision == "float32":
            return self.pipe, self.batch_size
        return ready(
            self.pipe, self.console, precision=self.precision, compile="auto", count=len(self),
            batch_size=self.batch_size, options=self.options,
        )  # fmt: skip

    def fetch(self, indices: Tensor) -> Batch:
        labels = self.labels[indices]
        pipe, batch_size = self.drawing
        drawn = pipe(
            labels.tolist() if pipe.net.classes else None,
            seeds=[self.first_seed + i for i in indices.tolist()],
            batch_size=batch_size,
            output_type="latent",
            callback_on_step_end=self.on_step,
            **self.options,
        ).images
        whole = drawn.isfinite().flatten(1).all(1)
        if not whole.all():
            bad = int(indices[~whole][0])
            raise InputError(
                f"picture {bad} (seed {self.first_seed + bad}) is not finite; draw it in float32, or train the model on"
            )
        return Batch(torch.cat([pipe.decode(part) for part in drawn.split(batch_size)]), labels)


def progress_bar(console: Console) -> Progress:
    """A bar that counts pictures."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def watch(pictures: Dataset, progress: Progress, what: str, total: int, left: int) -> Callable[[int], None]:
    """A task of the bar, which moves with every step of drawn pictures; call the result with each batch's size."""
    task = progress.add_task(what, total=total, completed=total - left)
    if isinstance(pictures, Samples):
        steps = pictures.steps
        pictures.on_step = lambda step: progress.advance(task, len(step.x) / steps)
        return lambda count: None
    return lambda count: progress.advance(task, count)


def draw_file(
    pipe: Pipeline,
    folder: Path,
    console: Console,
    *,
    count: int,
    labels: Labels,
    seed: int,
    batch_size: int,
    options: dict[str, Any],
    overwrite: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Path | None:
    """Draw very many pictures into samples.npz; the same call again goes on where it was stopped.

    Args:
        pipe: the model.
        folder: where samples.npz goes, and samples.json, which says how they were drawn.
        console: where progress is shown.
        count, labels, seed, batch_size, options: as in `Samples`.
        overwrite: draw anew what is already there.
        rank, world: number of this process, and of all; together they draw what one alone would.

    Returns:
        The file, or None if other processes still draw.

    Raises:
        InputError: a file that is already there, a draft of another protocol, or a folder that is in use.
    """
    pictures = Samples(pipe, count, labels=labels, seed=seed, batch_size=batch_size, options=options)
    grid = grid_identity(options.get("grid") or pipe.defaults.grid, pipe.step_count(options))
    precision = str(pipe.net.dtype).removeprefix("torch.")
    protocol = {"count": count, "labels": labels, "seed": seed, **options, "grid": grid, "precision": precision}
    protocol |= {"model": pipe.identity()}
    text = json.dumps(protocol | {"defaults": asdict(pipe.defaults)}, indent=2) + "\n"
    with held(folder, rank):
        return draw_here(pictures, text, folder, console, overwrite, rank, world)


def draw_here(
    pictures: Samples, text: str, folder: Path, console: Console, overwrite: bool, rank: int, world: int
) -> Path | None:
    """`draw_file` of a protocol, in a folder that nobody else works in."""
    out, told = folder / "samples.npz", folder / "samples.json"
    if out.exists() and not overwrite:
        if world > 1 and told.exists() and told.read_text(encoding="utf-8") == text:
            return out  # the others were quicker
        raise InputError(f"{out} is there already; give another --out, or add --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    draft, begun = folder / "samples.draft", folder / "samples.draft.json"
    if draft.exists() and begun.exists() and begun.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{draft} was begun with another model or settings, see {begun}; remove both, or go on with those"
        )
    if not begun.exists():
        replace_text(begun, text)
    shape = (len(pictures), *pictures.size, pictures.channels)
    written = fill(Draft(draft, shape), pictures, out, console, rank, world)
    if written:
        replace_text(told, text)
        begun.unlink(missing_ok=True)
    return out if written else None


def fill(draft: Draft, pictures: Samples, out: Path, console: Console, rank: int, world: int) -> bool:
    """Draw this process's share; whether the file is written."""
    mine = draft.left(rank, world)
    with progress_bar(console) as progress:
        left = sum(len(draft.places(block)) for block in mine)
        watch(pictures, progress, "drawing", len(pictures) if world == 1 else left, left)
        for block in mine:
            draft.put(block, pictures.fetch(draft.places(block)).images)
    if draft.left():
        return False
    draft.finish(pictures.labels if pictures.pipe.net.classes else None, out)
    return True


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
    every: list[Label] = list(dict.fromkeys(labels)) if labels else list(range(pipe.net.classes)) or [None]
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
        Row(row_name(pipe, label), [Cell(label, seed, f"{file_stem(pipe, label)}-seed{seed}") for seed in seeds])
        for label in labels
    ]


def strips(pipe: Pipeline, labels: Sequence[Label], seeds: Sequence[int], count: int) -> list[Row]:
    """For each label the way from one seed to the other; with a single seed the way from one label to the other.

    Raises:
        InputError: other counts of labels and seeds.
    """
    if count < 2:
        raise InputError(f"a strip of {count}; give 2 or more")
    stems, names = ([told(pipe, label) for label in labels] for told in (file_stem, row_name))
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
