"""Tens of thousands of images in one .npz file, for evaluation; resumable and shared by processes."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from ditlab.config.sampling import ALIASES, NAMES, Sample
from ditlab.core.errors import InputError
from ditlab.core.io import held, replace_text
from ditlab.core.progress import progress_bar
from ditlab.data.npz import Draft
from ditlab.inference.base import BasePipeline
from ditlab.inference.plan import resolve
from ditlab.inference.samples import Labels, Samples, watch


def write_samples(
    pipe: BasePipeline,
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
    """Generate a large number of images into samples.npz; the same call again continues where it was stopped.

    Args:
        pipe: the model.
        folder: for samples.npz, and for samples.json with all settings.
        console: where progress is shown.
        count, labels, seed, batch_size, options: as in `Samples`.
        overwrite: replace an existing file.
        rank, world: number of this process, and of all; together they generate what one process alone would.

    Returns:
        The file, or None if other processes are still at work.

    Raises:
        InputError: a file that exists, a draft of another protocol, or a folder that is in use.
    """
    samples = Samples(pipe, count, labels=labels, seed=seed, batch_size=batch_size, options=options)
    protocol = {"count": count, "label_sampling": labels, "seed": seed, **samples.plan.settings()}
    protocol |= {"precision": str(pipe.dtype).removeprefix("torch."), "model": pipe.model.identity()}
    with held(folder, rank):
        return write_here(samples, protocol, folder, console, overwrite, rank, world)


def write_here(
    samples: Samples, protocol: dict[str, Any], folder: Path, console: Console, overwrite: bool, rank: int, world: int
) -> Path | None:
    """`write_samples` of a protocol, in a folder that no other process works in."""
    out, record = folder / "samples.npz", folder / "samples.json"
    if out.exists() and not overwrite:
        if world > 1 and record.exists() and same(record, protocol, samples):
            return out  # the other processes were faster
        raise InputError(f"{out} exists; give another --out, or add --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    draft, begun = folder / "samples.draft", folder / "samples.draft.json"
    if draft.exists() and begun.exists() and not same(begun, protocol, samples):
        raise InputError(
            f"{draft} was started with another model or other settings, see {begun}; remove both, or use those settings"
        )
    text = json.dumps(protocol, indent=2) + "\n"
    if not begun.exists():
        replace_text(begun, text)
    shape = (len(samples), *samples.size, samples.channels)
    written = fill(Draft(draft, shape), samples, out, console, rank, world)
    if written:
        replace_text(record, text)
        begun.unlink(missing_ok=True)
    return out if written else None


def same(file: Path, protocol: dict[str, Any], samples: Samples) -> bool:
    """Whether a file holds this protocol."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        saved = upgraded(saved, samples.pipe) if "defaults" in saved else saved
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(saved == json.loads(json.dumps(protocol)))


def upgraded(saved: dict[str, Any], pipe: BasePipeline) -> dict[str, Any]:
    """A protocol of version 0.1, which held the options and the model's defaults, with all settings filled in."""
    defaults = Sample.read(saved.pop("defaults"))
    words = {key: saved.pop(key) for key in (*NAMES, *ALIASES) if key in saved}
    settings = resolve(words, pipe.objective, defaults=defaults, conditional=pipe.conditional).settings()
    return saved | {"label_sampling": saved.pop("labels")} | settings


def fill(draft: Draft, samples: Samples, out: Path, console: Console, rank: int, world: int) -> bool:
    """Generate this process's share; returns whether the file is written."""
    mine = draft.left(rank, world)
    with progress_bar(console) as progress:
        left = sum(len(draft.places(block)) for block in mine)
        watch(samples, progress, "generating", len(samples) if world == 1 else left, left)
        for block in mine:
            draft.put(block, samples.fetch(draft.places(block)).x)
    if draft.left():
        return False
    draft.finish(samples.labels if samples.pipe.net.classes else None, out)
    return True
