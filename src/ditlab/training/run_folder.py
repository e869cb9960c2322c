"""The folder of a training run: what it holds, and how checkpoints are written into it.

    run/recipe.toml                 the resolved recipe
    run/metrics.jsonl               a line of metrics at each interval
    run/previews/000000128000.png   samples of fixed seeds
    run/left-out.jsonl              the batches whose gradient was not finite, if there were any
    run/averages/000000128000.safetensors   see `ditlab.training.power_ema`
    run/checkpoints/000000128000/   a model folder (EMA), raw.safetensors, state.pt and manifest.json; ema.safetensors
                                    with LoRA, profiles.safetensors with power-function averages

A checkpoint is copied while training pauses, then written beside its place and renamed while training continues; so it
is whole or absent. It is the same for any number of processes, and any number of processes can resume from it.
"""

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ditlab.backbones.lora import merged, trained_tensors
from ditlab.config.fields import renamed, resume_rules
from ditlab.config.reader import parse_recipe, read_toml, to_tables, to_toml
from ditlab.config.sections import Recipe, Train
from ditlab.core.device import free_memory
from ditlab.core.errors import InputError
from ditlab.core.io import damage, is_vacant, replace_text, replacing, write_manifest
from ditlab.core.weights import ADAPTER, WEIGHTS, checkpoints, read_config
from ditlab.data import Dataset
from ditlab.diffusion.objective import completed
from ditlab.inference.pipeline import Pipeline
from ditlab.training.log import forget_after
from ditlab.training.parallel import Place
from ditlab.training.power_ema import STEPS, as_float16
from ditlab.training.state import AVERAGED, PROFILES, RAW, STATE, Snapshot, TrainState, restore_state, snapshot

COUNT = "pictures"  # key of config.json: images in the data


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
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def check(self, recipe: Recipe, dataset: Dataset, *, changes: bool = False) -> None:
        """Check that the folder is new or holds the same run; a run without a checkpoint has nothing to lose.

        Args:
            recipe: the settings of this call.
            dataset: its images as they are now.
            changes: whether settings that the run may change on resume have changed on purpose.

        Raises:
            InputError: the folder holds another run or something else; nothing is touched.
        """
        file = self.folder / "recipe.toml"
        if file.exists() and checkpoints(self.folder):
            differing = differences(saved_recipe(file), recipe)
            for folder in reversed(checkpoints(self.folder)):
                with suppress(InputError):  # a damaged one
                    differing |= other_images(read_config(folder), dataset)
                    break
            refused = [words for key, words in differing.items() if not changeable(key)]
            if refused:
                raise InputError(
                    f"{self.folder} holds another run ({'; '.join(refused)}); "
                    "give the same recipe to resume it, or another folder"
                )
            if differing and not changes:
                raise InputError(
                    f"{self.folder} was trained with other settings so far ({'; '.join(differing.values())}); give the "
                    "same recipe, or allow changes to resume with the new one"
                )
        elif not file.exists() and not is_vacant(self.folder):
            raise InputError(f"{self.folder} exists and is not a training run; give another folder")

    def begin(self, recipe: Recipe, seen: int) -> None:
        """Make the folders, write the recipe, and drop records of what will be repeated from `seen` images on."""
        try:
            # First, because it marks the folder as a run: if the process is killed now, the run can be restarted.
            replace_text(self.folder / "recipe.toml", to_toml(to_tables(recipe)))
            self.previews.mkdir(exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            for folder in (self.previews, self.checkpoints, self.averages):
                for left in folder.glob(".*.part"):  # from a process that was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            forget_after(self.left_out, seen - 1)
        except OSError as error:
            raise InputError(
                f"cannot write to {self.folder}: {error.strerror}; free some space or give another folder"
            ) from error

    def note(self, seen: int, indices: Tensor) -> None:
        """Record a batch whose step was skipped: its place in the run, and the numbers of its images."""
        with self.left_out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images": seen, "pictures": indices.tolist()}) + "\n")

    def show(self, seen: int, picture: Image.Image) -> None:
        """Write a preview.

        Raises:
            InputError: a disk that is full.
        """
        file = self.previews / f"{seen:012d}.png"
        try:
            with replacing(file) as draft:
                picture.save(draft, format="PNG")
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"cannot write preview {file}: {reason}; free some space and run the same command again"
            ) from error

    def save(self, state: TrainState, pipe: Pipeline, settings: Train, place: Place) -> None:
        """Copy the state now, and write it as a checkpoint while training continues; `finish` waits for it.

        All processes must call; the first one writes. Of older checkpoints the newest `keep` stay, and the first one
        after each multiple of `keep_every`. Low-rank updates are merged into the weights, or saved apart.

        Raises:
            InputError: weights that are not finite, or a disk that is full; earlier checkpoints stay as they are.
        """
        self.finish()
        size = sum(value.nbytes for value in state.net.parameters()) * 4  # raw, average, two moments
        aside = state.sharded or place.device.type != "cpu" or free_memory(place.device) > 1.5 * size
        taken = snapshot(state, place, copied=aside)
        if taken is None:
            return
        last = checkpoints(self.folder)[-1:]
        kept = f"the last good checkpoint is {last[0]}" if last else "there is no earlier checkpoint"
        if not taken.is_finite():
            raise InputError(
                f"the weights are no longer finite after {state.seen:,} images; {kept}: "
                'train into another folder with a lower optim.lr, or with train.precision = "float32"'
            )
        pipe.config |= {"images_seen": state.seen, "train_seconds": round(state.seconds, 3)}
        model = replace(pipe, net=taken.average, config=dict(pipe.config))
        self.writing = self.writer.submit(self._write, taken, model, settings, kept)
        if not aside:  # two copies would not fit into memory
            self.finish()

    def finish(self) -> None:
        """Wait for a checkpoint that is being written.

        Raises:
            InputError: it could not be.
        """
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def _write(self, taken: Snapshot, pipe: Pipeline, settings: Train, kept: str) -> None:
        target = self.checkpoints / f"{taken.rest['seen']:012d}"
        draft = self.checkpoints / f".{target.name}.part"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            model = replace(pipe, net=merged(pipe.net))
            model.save(draft, name=self.folder.name)
            save_file(taken.raw, draft / RAW)
            if model.net is not pipe.net:
                save_file(dict(pipe.net.state_dict()), draft / AVERAGED)
                if settings.lora_apart:
                    save_file(trained_tensors(pipe.net, pipe.config["lora"]["whole"]), draft / ADAPTER)
                    (draft / WEIGHTS).unlink()
            if taken.profiles:
                save_file(taken.profiles, draft / PROFILES)
                with replacing(self.averages / f"{target.name}.safetensors") as file:
                    save_file(as_float16(taken.profiles), file, {STEPS: str(taken.rest["profile_steps"])})
            torch.save(taken.rest, draft / STATE)
            write_manifest(draft)
            if target.exists():
                drop(target)
            os.replace(draft, target)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(draft, ignore_errors=True)
            message = " ".join(str(error).split())
            raise InputError(
                f"cannot write checkpoint {target}: {message}; {kept}; free some space and run the same command again"
            ) from error
        self.prune(taken.rest["seen"], settings)

    def prune(self, newest: int, settings: Train) -> None:
        """Remove the checkpoints that need not be kept, but none after the newest one."""
        # Those were damaged when the run resumed from an earlier one, and will be written again.
        written = [folder for folder in checkpoints(self.folder) if int(folder.name) <= newest]
        kept = 0
        for old in written[: -settings.keep]:
            number = int(old.name)
            if settings.keep_every and number // settings.keep_every > kept // settings.keep_every:
                kept = number
            else:
                drop(old)

    def restore(self, state: TrainState, console: Console, *, place: Place) -> bool:
        """Load the newest whole checkpoint into the state; returns whether there is one.

        Raises:
            InputError: checkpoints of which none is whole.
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
            InputError: none of them is whole.
        """
        written = checkpoints(self.folder)
        for folder in reversed(written):
            wrong = damage(folder, hashes=True)
            if wrong is None:
                return folder.name
            console.print(f"{folder} is damaged and ignored: {wrong}", markup=False)
        if written:
            raise InputError(
                f"none of the checkpoints in {self.checkpoints} is whole; remove the folder {self.folder} to restart"
            )
        return None


def drop(folder: Path) -> None:
    """Remove a checkpoint, so that it is never there in part."""
    aside = folder.with_name(f".{folder.name}.old.part")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def saved_recipe(file: Path) -> Recipe:
    """The recipe of a run, also under the names of earlier versions."""
    tables, _ = renamed(Recipe, read_toml(file))
    recipe = parse_recipe(tables, source=str(file))
    return replace(recipe, diffusion=completed(recipe.diffusion))


def differences(before: Recipe, now: Recipe) -> dict[str, str]:
    """Settings of a run that differ and that a resumed run may not change without asking: key -> in words."""
    old, new = to_tables(before), to_tables(now)
    rules, differing = resume_rules(Recipe), {}
    for section, before_ in old.items():
        for name in dict.fromkeys([*before_, *new[section]]):
            key, was, is_ = f"{section}.{name}", before_.get(name), new[section].get(name)
            if rules.get(key) != "free" and was != is_:
                differing[key] = f"{key} is {was} there, {is_} here"
    return differing


def other_images(config: dict[str, Any], dataset: Dataset) -> dict[str, str]:
    """The same for the data of an unchanged recipe: classes decide the labels, the count of images their order."""
    differing = {}
    before, now = config.get("classes", dataset.classes), dataset.classes
    if before != now:
        i = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
        was, is_ = (f'"{names[i]}"' if i < len(names) else "none" for names in (before, now))
        differing["data.source"] = f"class {i} of the images was {was} there and is {is_} here"
    if (count := config.get(COUNT)) not in (None, len(dataset)):
        differing[COUNT] = f"{count:,} images there, {len(dataset):,} here"
    return differing


def changeable(key: str) -> bool:
    """Whether a run may resume with another value if the user allows it."""
    return key == COUNT or resume_rules(Recipe).get(key) == "ask"
