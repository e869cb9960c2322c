"""The folder of a training run: its files, and how checkpoints are written, removed and restored.

    run/recipe.toml                 the resolved recipe
    run/images.npz                  names, labels, sizes and times of the images, see `ditlab.training.data_index`
    run/metrics.jsonl               a line of metrics at each interval
    run/previews/000000128000.png   samples of fixed seeds
    run/left-out.jsonl              the batches whose gradient was not finite, if there were any
    run/averages/000000128000.safetensors   snapshots of power-function averages, see `ditlab.training.power_ema`
    run/checkpoints/000000128000/   a model folder (EMA), raw.safetensors, state.pt and manifest.json; ema.safetensors
                                    with LoRA, profiles.safetensors with power-function averages. With LoRA apart,
                                    adapter.safetensors (EMA) and raw.safetensors hold only what is trained, and
                                    there are no other weights of the network

Training pauses while the state is copied, and continues while the copy is written to a temporary folder, which is then
renamed: a checkpoint is complete or absent. Any number of processes can resume from it.
"""

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.backbones.lora import has_updates, merged, trained_tensors
from ditlab.config.reader import to_tables, to_toml
from ditlab.config.sections import Recipe, Train
from ditlab.core.device import free_memory
from ditlab.core.errors import InputError
from ditlab.core.io import (
    AGAIN,
    WINDOWS,
    damage,
    discard,
    is_vacant,
    make_folder,
    patiently,
    replace_text,
    replacing,
    sync,
    write_manifest,
    writing,
)
from ditlab.core.terminal import say
from ditlab.core.units import counted
from ditlab.core.weights import ADAPTER, AVERAGED, RAW, checkpoints, write_pickle, write_tensors
from ditlab.data import Dataset
from ditlab.inference import saving
from ditlab.inference.pipeline import Pipeline
from ditlab.training.data_index import DataIndex
from ditlab.training.files import refuse_other_run
from ditlab.training.log import forget_after
from ditlab.training.parallel import Place
from ditlab.training.power_ema import STEPS, as_float16
from ditlab.training.resuming import changeable, compare_run
from ditlab.training.state import PROFILES, STATE, Snapshot, TrainState, restore_state, snapshot

CHOICES = "choices.json"
"""What `ditlab train FOLDER` has chosen."""
HALVES = "halves"
"""The folder of the first run of a distillation, in that of the second."""
BEFORE = ("skipped*.csv", CHOICES, HALVES)  # what may be written before the run begins


class RunFolder:
    """The folder of a training run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.previews = folder / "previews"
        self.left_out = folder / "left-out.jsonl"
        self.back_at: int | None = None  # images of the checkpoint that this process last returned to
        self.checkpoints = folder / "checkpoints"
        self.averages = folder / "averages"
        self.index: DataIndex | None = None  # the images, in the first process
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def check(self, recipe: Recipe, pipe: Pipeline, dataset: Dataset, *, changes: bool = False) -> list[str]:
        """Check that the folder is new, or holds the same run; a run without a checkpoint may be replaced.

        Args:
            recipe: the settings of this call.
            pipe: the model that they describe.
            dataset: the present data set.
            changes: whether the user allows settings to change that may change on resume.

        Returns:
            A note for each place that has moved and holds the same content, and one for allowed changes.

        Raises:
            InputError: the folder holds another run or something else; nothing is changed.
        """
        file = self.folder / "recipe.toml"
        notes: list[str] = []
        self.index = DataIndex.of(self.folder, dataset)
        if file.exists() and checkpoints(self.folder):
            differing, notes = compare_run(self.folder, recipe, pipe, self.index)
            refuse_other_run(self.folder, [words for key, words in differing.items() if not changeable(key)])
            words = "; ".join(differing.values())
            if differing and not changes:
                raise InputError(
                    f"{self.folder} was trained with other settings ({words}); give the "
                    "same recipe, or allow changes to resume with the new one"
                )
            notes += [f"allowed changes: {words}"] if differing else []
        elif not file.exists() and not is_vacant(self.folder, *BEFORE):
            raise InputError(f"{self.folder} exists and is not a training run; give another folder")
        return notes

    def begin(self, recipe: Recipe, seen: int) -> None:
        """Create the folders, write the recipe, and remove records after `seen` images, which will be repeated.

        Raises:
            InputError: the folder cannot be written.
        """
        with writing(f"to {self.folder}", "free some space or give another folder"):
            # The recipe comes first, because it marks the folder as a run: a process killed now can be restarted.
            replace_text(self.folder / "recipe.toml", to_toml(to_tables(recipe)))
            if self.index is not None:
                self.index.save(self.folder)
            make_folder(self.previews)
            make_folder(self.checkpoints)
            for folder in (self.previews, self.checkpoints, self.averages):
                for draft in folder.glob(".*.part"):  # left by a process that was killed
                    discard(draft)
            forget_after(self.left_out, seen - 1)

    def note(self, seen: int, indices: Tensor) -> None:
        """Record a batch whose step was skipped: images seen before it, and the indices of its images."""
        with self.left_out.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"images": seen, "pictures": indices.tolist()}) + "\n")

    def show(self, seen: int, image: Image.Image) -> None:
        """Write a preview.

        Raises:
            InputError: the file cannot be written.
        """
        file = self.previews / f"{seen:012d}.png"
        with writing(f"preview {file}", AGAIN), replacing(file) as draft:
            image.save(draft, format="PNG")

    def save(self, state: TrainState, pipe: Pipeline, settings: Train, place: Place) -> None:
        """Copy the state, and write it as a checkpoint while training continues; `finish` waits for it.

        All processes must call; the first one writes. The newest `keep` checkpoints are kept, and the first checkpoint
        after each multiple of `keep_every`. Low-rank updates are merged into the weights, or saved separately.

        Raises:
            InputError: weights are not finite, or the disk is full; earlier checkpoints are not changed.
        """
        self.finish()
        size = sum(value.nbytes for value in state.net.parameters()) * 4  # raw, average, two moments
        copied = state.sharded or place.device.type != "cpu" or free_memory(place.device) > 1.5 * size
        taken = snapshot(state, place, copied=copied)
        if taken is None:
            return
        last = checkpoints(self.folder)[-1:]
        kept = f"the last good checkpoint is {last[0]}" if last else "there is no earlier checkpoint"
        if not taken.is_finite():
            raise InputError(
                f"the weights are no longer finite after {counted(state.seen, 'image')}; {kept}: "
                'train into another folder with a lower optim.lr, or with train.precision = "float32"'
            )
        pipe.config |= {"images_seen": state.seen, "train_seconds": round(state.seconds, 3)}
        model = replace(pipe, net=taken.average, config=dict(pipe.config))
        self.writing = self.writer.submit(self._write, taken, model, settings, kept)
        if not copied:  # a copy does not fit into memory, so training must wait
            self.finish()

    def check_written(self) -> None:
        """Report at once that the current checkpoint could not be written, not only when the next one is due.

        Raises:
            InputError: it could not be written.
        """
        if self.writing is not None and self.writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the current checkpoint is written.

        Raises:
            InputError: it could not be written.
        """
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def _write(self, taken: Snapshot, pipe: Pipeline, settings: Train, kept: str) -> None:
        target = self.checkpoints / f"{taken.content['seen']:012d}"
        with writing(f"checkpoint {target}", f"{kept}; {AGAIN}"), replacing(target) as draft:
            self._fill(draft, taken, pipe, settings)
            write_manifest(draft)
            for records in (self.metrics, self.left_out):  # a resumed run does not write the lines before it again
                if records.exists():
                    sync(records)
        self.prune(taken.content["seen"], settings)

    def _fill(self, draft: Path, taken: Snapshot, pipe: Pipeline, settings: Train) -> None:
        """Write the files of a checkpoint."""
        if has_updates(pipe.net) and settings.lora_apart:
            trained = partial(trained_tensors, whole=pipe.config["lora"]["whole"])
            write_tensors(trained(pipe.net.state_dict()), draft / ADAPTER)
            write_tensors(trained(taken.raw), draft / RAW)
            saving.write_others(pipe, draft, self.folder.name)
        else:
            saving.write(replace(pipe, net=merged(pipe.net)), draft, self.folder.name)
            write_tensors(taken.raw, draft / RAW)
            if has_updates(pipe.net):
                write_tensors(pipe.net.state_dict(), draft / AVERAGED)
        if taken.profiles:
            write_tensors(taken.profiles, draft / PROFILES)
            steps = {STEPS: str(taken.content["profile_steps"])}
            write_tensors(
                as_float16(taken.profiles), self.averages / f"{taken.content['seen']:012d}.safetensors", steps
            )
        write_pickle(taken.content, draft / STATE)

    def prune(self, newest: int, settings: Train) -> None:
        """Remove checkpoints that need not be kept, up to that of `newest` images."""
        # Later checkpoints were damaged when the run resumed from an earlier one, and will be written again.
        written = [folder for folder in checkpoints(self.folder) if int(folder.name) <= newest]
        kept = 0
        for old in written[: -settings.keep]:
            number = int(old.name)
            if settings.keep_every and number // settings.keep_every > kept // settings.keep_every:
                kept = number
            else:
                drop(old)

    def restore(self, state: TrainState, console: Console, *, place: Place) -> bool:
        """Load the newest complete checkpoint into the state; returns whether there is one.

        Raises:
            InputError: all checkpoints are damaged.
        """
        name = place.first_does(lambda: self.newest_whole(console))
        if name is None:
            return False
        folder = self.checkpoints / name
        if not folder.exists():
            raise InputError(
                f"process {place.rank} cannot find {folder}, which the first process can; "
                "put the run on a file system that all machines share"
            )
        restore_state(folder, state, place)
        return True

    def newest_whole(self, console: Console) -> str | None:
        """Name of the checkpoint to resume from; None if there is none.

        Raises:
            InputError: all checkpoints are damaged.
        """
        written = checkpoints(self.folder)
        for folder in reversed(written):
            problem = damage(folder, hashes=True)
            if problem is None:
                return folder.name
            say(console, f"{folder} is damaged and ignored: {problem}")
        if written:
            raise InputError(
                f"none of the checkpoints in {self.checkpoints} is whole; remove the folder {self.folder} to restart"
            )
        return None


def drop(folder: Path) -> None:
    """Remove a checkpoint; it is renamed first, so that an incomplete checkpoint is never visible.

    On Windows, a checkpoint that another process has loaded stays; the next call tries again.
    """
    renamed_folder = folder.with_name(f".{folder.name}.old.part")
    shutil.rmtree(renamed_folder, ignore_errors=True)
    try:
        patiently(lambda: os.replace(folder, renamed_folder))
    except PermissionError:
        if not WINDOWS:
            raise
        return
    discard(renamed_folder)
