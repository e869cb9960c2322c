"""Tens of thousands of images in one .npz file, for evaluation; resumable and shared by processes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.core.io import held, replace_text
from ditlab.core.progress import progress_bar
from ditlab.data.npz import Draft
from ditlab.diffusion.samplers.grids import grid_identity
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.samples import Labels, Samples, watch


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
            draft.put(block, pictures.fetch(draft.places(block)).x)
    if draft.left():
        return False
    draft.finish(pictures.labels if pictures.pipe.net.classes else None, out)
    return True
