"""The folder of a training run: its files, and how checkpoints are written, removed and restored.

    run/recipe.toml                 the resolved recipe
    run/images.npz                  names, labels, sizes and times of the images, see `ditlab.training.data_index`
    run/metrics.jsonl               a line of metrics at each interval
    run/previews/000000128000.png   samples of fixed seeds
    run/left-out.jsonl              the batches whose gradient was not finite, if there were any
    run/stacks/rank-3.txt           where process 3 hung, if it did
    run/averages/000000128000.safetensors   snapshots of power-function averages, see `ditlab.training.power_ema`
    run/checkpoints/000000128000/   a model folder (EMA), raw.safetensors, state.pt and manifest.json; ema.safetensors
                                    with LoRA, profiles.safetensors with power-function averages. With LoRA apart,
                                    adapter.safetensors (EMA) and raw.safetensors hold only what is trained, and
                                    there are no other weights of the network. Checkpoints of large sharded runs are
                                    in parts, see `ditlab.training.sharded`

Training pauses while the state is copied, and continues while the copy is written to a temporary folder, which is then
renamed: a checkpoint is complete or absent. Any number of processes can resume from it.
"""

import json
import os
import shutil
import warnings
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
    PART,
    WINDOWS,
    discard,
    is_vacant,
    make_folder,
    move,
    patiently,
    remove,
    replace_text,
    replacing,
    sync,
    write_manifest,
    writing,
)
from ditlab.core.model_files import AVERAGE_PARTS
from ditlab.core.parts import join_parts
from ditlab.core.stores import StoreError
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
from ditlab.training.run_copy import IDENTITY, RunCopy
from ditlab.training.sharded import Parts, Stager, damage_together, in_parts, outlined, restore_parts, take_parts
from ditlab.training.state import PROFILES, STATE, Snapshot, TrainState, restore_state, snapshot

CHOICES = "choices.json"
"""What `ditlab train FOLDER` has chosen."""
STACKS = "stacks"  # folder with the stacks of processes that hung
HALVES, PAIRS = "halves", "pairs"  # folders of the runs of a distillation before the last one, in that of the last
BEFORE = ("skipped*.csv", CHOICES, IDENTITY, HALVES, PAIRS)  # what may be written before the run begins


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
        self.copy: RunCopy | None = None  # in a store
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.together: Place | None = None  # of the writer, if all processes write each checkpoint together
        self.stage: Stager | None = None  # copies the parts of this process

    def write_together(self, place: Place, seconds: int) -> None:
        """Let all processes write their parts of each checkpoint from now on; all processes must call.

        Args:
            place: the place of this process.
            seconds: timeout for a process that does not respond while a checkpoint is written.
        """
        self.together, self.stage = place.apart(seconds), Stager(place.device)

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
        file, self.index = self.folder / "recipe.toml", DataIndex.of(self.folder, dataset)
        notes: list[str] = []
        if file.exists() and checkpoints(self.folder):
            differing, notes = compare_run(self.folder, recipe, pipe, self.index)
            url = self.copy.url if self.copy is not None and self.copy.fetched else ""
            refuse_other_run(self.folder, [words for key, words in differing.items() if not changeable(key)], url)
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

    def note(self, seen: int, indices: Tensor, ranks: list[int] | None = None) -> None:
        """Record a batch whose step was skipped.

        Args:
            seen: images seen before it.
            indices: of its images.
            ranks: with several processes, those whose losses are not finite.
        """
        line = {"images": seen, "pictures": indices.tolist()} | ({} if ranks is None else {"processes": ranks})
        with self.left_out.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")

    def show(self, seen: int, image: Image.Image) -> None:
        """Write a preview.

        Raises:
            InputError: the file cannot be written.
        """
        file = self.previews / f"{seen:012d}.png"
        with writing(f"preview {file}", AGAIN), replacing(file) as draft:
            image.save(draft, format="PNG")

    def save(self, state: TrainState, pipe: Pipeline, settings: Train, place: Place, *, complete: bool = False) -> None:
        """Copy the state, and write it as a checkpoint while training continues; `finish` waits for it.

        All processes must call; the first one writes, or all of them. The newest `keep` checkpoints are kept, and the
        first checkpoint after each multiple of `keep_every`. Low-rank updates are merged into the weights, or saved
        separately.

        Args:
            state: the state.
            pipe: the model.
            settings: the [train] section of the recipe.
            place: the place of this process.
            complete: whether the checkpoint must be a model folder, which one that all processes write is not.

        Raises:
            InputError: weights are not finite, or the disk is full; earlier checkpoints are not changed.
        """
        self.finish()
        size = sum(value.nbytes for value in state.net.parameters()) * 4  # raw, average, two moments
        copied = state.sharded or place.device.type != "cpu" or free_memory(place.device) > 1.5 * size
        if self.together is not None:
            self._save_together(state, pipe, settings, place, copied=copied, complete=complete)
            return
        taken = snapshot(state, place, copied=copied)
        if taken is None:
            return
        kept = self._kept()
        if not taken.is_finite():
            raise InputError(not_finite(state.seen, kept))
        pipe.config |= {"images_seen": state.seen, "train_seconds": round(state.seconds, 3)}
        model = replace(pipe, net=taken.average, config=dict(pipe.config))
        self.writing = self.writer.submit(self._write, taken, model, settings, kept)
        if not copied:  # a copy does not fit into memory, so training must wait
            self.finish()

    def _save_together(
        self, state: TrainState, pipe: Pipeline, settings: Train, place: Place, *, copied: bool, complete: bool
    ) -> None:
        target, kept = self.checkpoints / f"{state.seen:012d}", self._kept()
        draft = target.with_name(f".{target.name}{PART}")  # the same in all processes
        if place.first:
            remove(draft)  # of an attempt that failed; the other processes wait in `take_parts`
        copied = not place.maximum(int(not copied))
        taken = take_parts(state, place, self.stage if copied else None)
        if not taken.finite:
            raise InputError(not_finite(state.seen, kept))
        pipe.config |= {"images_seen": state.seen, "train_seconds": round(state.seconds, 3)}
        model = replace(pipe, net=outlined(pipe.net), config=dict(pipe.config))
        self.writing = self.writer.submit(self._write_together, taken, target, draft, model, settings, kept, complete)
        if not copied:
            self.finish()

    def _kept(self) -> str:
        last = checkpoints(self.folder)[-1:]
        return f"the last good checkpoint is {last[0]}" if last else "there is no earlier checkpoint"

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
            self._sync_records()
        removed = self.prune(taken.content["seen"], settings)
        self.send(target, removed, last=taken.content["seen"] >= settings.images)

    def send(self, checkpoint: Path, removed: list[str], *, last: bool) -> None:
        """Copy a checkpoint to the store; a store that fails does not end the run before its last checkpoint."""
        if self.copy is None:
            return
        try:
            self.copy.send(checkpoint, removed)
        except StoreError as error:
            if last:
                raise InputError(f"{error}; {checkpoint} is on this machine only") from error
            warnings.warn(f"{error}; the run continues, and {checkpoint} is on this machine only", stacklevel=2)

    def _write_together(
        self, taken: Parts, target: Path, draft: Path, pipe: Pipeline, settings: Train, kept: str, complete: bool
    ) -> None:
        assert self.together is not None
        with writing(f"checkpoint {target}", f"{kept}; {AGAIN}"):
            entries = taken.write(draft, self.together)

        def finish() -> None:
            with writing(f"checkpoint {target}", f"{kept}; {AGAIN}"):
                saving.write_others(pipe, draft, self.folder.name)
                if complete:
                    join_parts(draft / AVERAGE_PARTS, draft)
                write_pickle(taken.content, draft / STATE)
                write_manifest(draft, known=entries)
                self._sync_records()
                sync(draft)
                move(draft, target)
                removed = self.prune(taken.content["seen"], settings)
            self.send(target, removed, last=complete)

        self.together.first_does(finish)

    def _sync_records(self) -> None:
        for records in (self.metrics, self.left_out):  # a resumed run does not write the lines before it again
            if records.exists():
                sync(records)

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

    def prune(self, newest: int, settings: Train) -> list[str]:
        """Remove checkpoints that need not be kept, up to that of `newest` images; returns their names."""
        removed = []
        # Later checkpoints were damaged when the run resumed from an earlier one, and will be written again.
        written = [folder for folder in checkpoints(self.folder) if int(folder.name) <= newest]
        kept = 0
        for old in written[: -settings.keep]:
            number = int(old.name)
            if settings.keep_every and number // settings.keep_every > kept // settings.keep_every:
                kept = number
            else:
                drop(old)
                removed.append(old.name)
        return removed

    def restore(self, state: TrainState, console: Console, *, place: Place) -> bool:
        """Load the newest complete checkpoint into the state; returns whether there is one.

        Raises:
            InputError: all checkpoints are damaged.
        """
        name = self.newest_whole(console, place)
        if name is None:
            return False
        folder = self.checkpoints / name
        if not folder.exists():
            raise InputError(
                f"process {place.rank} cannot find {folder}, which the first process can; "
                "put the run on a file system that all machines share"
            )
        restore = restore_parts if in_parts(folder) else restore_state
        restore(folder, state, place)
        return True

    def newest_whole(self, console: Console, place: Place) -> str | None:
        """Name of the checkpoint to resume from; None if there is none. All processes must call.

        Raises:
            InputError: all checkpoints are damaged.
        """
        written = place.agree([folder.name for folder in checkpoints(self.folder)])
        for name in reversed(written):
            problem = damage_together(self.checkpoints / name, place)
            if problem is None:
                return name
            say(console, f"{self.checkpoints / name} is damaged and ignored: {problem}")
        if written:
            raise InputError(
                f"none of the checkpoints in {self.checkpoints} is whole; remove the folder {self.folder} to restart"
            )
        return None


def not_finite(seen: int, kept: str) -> str:
    """Describe that weights are no longer finite.

    Args:
        seen: images seen.
        kept: the last good checkpoint, as text.
    """
    return (
        f"the weights are no longer finite after {counted(seen, 'image')}; {kept}: "
        'train into another folder with a lower optim.lr, or with train.precision = "float32"'
    )


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
