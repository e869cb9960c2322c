"""Generate many images into one .npz file for evaluation; can be resumed and distributed over processes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ditlab.config.sampling import ALIASES, NAMES, Sample
from ditlab.core.errors import InputError
from ditlab.core.formats import read_object
from ditlab.core.io import held, replace_text
from ditlab.core.progress import progress_bar
from ditlab.core.version import __version__
from ditlab.data.npz import Draft
from ditlab.inference.base import BasePipeline
from ditlab.inference.plan import resolve
from ditlab.inference.records import recorded_size
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
    prompts: Sequence[str | None] | str = "",
    overwrite: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Path | None:
    """Generate a large number of images into samples.npz; an interrupted call resumes if it is repeated.

    The images are numbers of the type and range of the training data, with all channels.

    Args:
        pipe: the model.
        folder: folder of samples.npz, and of samples.json with all settings.
        console: console for the progress bar.
        count, labels, seed, batch_size, options, prompts: as in `Samples`.
        overwrite: replace an existing file.
        rank, world: rank of this process, and number of processes; the images do not depend on them.

    Returns:
        The file, or None if other processes have not finished.

    Raises:
        InputError: the file exists, a draft has other settings, the folder is in use, or the model generates videos.
    """
    if len(pipe.shape) == 4:
        raise InputError(
            "an .npz file for evaluation tools holds images, and this model generates videos; write .npy files"
        )
    samples = Samples(pipe, count, labels=labels, seed=seed, batch_size=batch_size, options=options, prompts=prompts)
    protocol = {"count": count, "label_sampling": labels, "seed": seed, **samples.plan.settings()}
    protocol |= {"precision": pipe.net.precision, "model": pipe.model.identity()}
    if samples.plan.size != pipe.net.size:  # files of the model's size are repeated and continued without it
        protocol["size"] = recorded_size(pipe, samples.plan.size)
    protocol |= {"prompts": samples.prompts} if samples.prompts else {}
    with held(folder, rank):
        return write_here(samples, protocol, folder, console, overwrite, rank, world)


def write_here(
    samples: Samples, protocol: dict[str, Any], folder: Path, console: Console, overwrite: bool, rank: int, world: int
) -> Path | None:
    """Write the samples of a protocol into a folder that is locked by this process, see `write_samples`."""
    out, record = folder / "samples.npz", folder / "samples.json"
    if out.exists() and not overwrite:
        if world > 1 and record.exists() and same(record, protocol, samples):
            return out  # written by the other processes
        raise InputError(f"{out} exists; give another folder, or allow to overwrite it")
    folder.mkdir(parents=True, exist_ok=True)
    draft, draft_record = folder / "samples.draft", folder / "samples.draft.json"
    if draft.exists() and draft_record.exists() and not same(draft_record, protocol, samples):
        raise InputError(
            f"{draft} was started with another model or other settings, see {draft_record}; remove both files, or use "
            "those settings"
        )
    about = {"version": __version__, **samples.pipe.model.loaded_from}  # may differ in a call that resumes
    text = json.dumps(protocol | about, indent=2) + "\n"
    if not draft_record.exists():
        replace_text(draft_record, text)
    shape = (len(samples), *samples.size, samples.channels)
    written = fill(Draft(draft, shape, samples.values.dtype), samples, out, console, rank, world)
    if written:
        replace_text(record, text)
        if not draft.exists():  # otherwise the next call must notice a draft with other settings
            draft_record.unlink(missing_ok=True)
    return out if written else None


def same(file: Path, protocol: dict[str, Any], samples: Samples) -> bool:
    """Whether a file contains this protocol, in the present form or in that of version 0.1."""
    try:
        saved = read_object(file)
        saved = upgraded(saved, samples.pipe) if "defaults" in saved else saved
        for name in ("version", "source", "load_options"):
            saved.pop(name, None)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(saved == json.loads(json.dumps(protocol)))


def upgraded(saved: dict[str, Any], pipe: BasePipeline) -> dict[str, Any]:
    """Convert a protocol of version 0.1, which has options and defaults, to the present one, which has all settings."""
    defaults = Sample.read(saved.pop("defaults"))
    words = {key: saved.pop(key) for key in (*NAMES, *ALIASES) if key in saved}
    settings = resolve(words, pipe.objective, defaults=defaults, conditional=pipe.conditional).settings()
    return saved | {"label_sampling": saved.pop("labels")} | settings


def fill(draft: Draft, samples: Samples, out: Path, console: Console, rank: int, world: int) -> bool:
    """Generate the images of this process; returns whether all images are complete and the file is written."""
    blocks = draft.left(rank, world)
    with progress_bar(console) as progress:
        left = sum(len(draft.places(block)) for block in blocks)
        watch(samples, progress, "generating", len(samples) if world == 1 else left, left)
        for block in blocks:
            draft.put(block, samples.values.restored(samples.fetch(draft.places(block)).x))
    if draft.left():
        return False
    draft.finish(samples.labels if samples.pipe.net.classes else None, out, samples.values)
    return True
