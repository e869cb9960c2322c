"""What a run keeps: its folder, its checkpoints, and the state that a checkpoint restores.

    run/recipe.toml                 the resolved recipe
    run/metrics.jsonl               one line every so many images
    run/previews/000000128000.png   EMA samples of fixed seeds
    run/left-out.jsonl              the batches whose gradient was not finite, if there were any
    run/averages/000000128000.safetensors   see `ditlab.training.power_ema`
    run/checkpoints/000000128000/   a model folder (EMA), raw.safetensors, state.pt and manifest.json; ema.safetensors
                                    with LoRA, profiles.safetensors with averages of chosen widths

A checkpoint is copied while the run stands still, and written beside its place and renamed while it goes on; so it is
whole or absent. It is the same whatever the number of processes, and any number goes on from it.
"""

import copy
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ditlab.backbones import Backbone, create
from ditlab.backbones.lora import merged, trained_tensors
from ditlab.config.reader import parse_recipe, read_toml, to_tables, to_toml
from ditlab.config.sections import Recipe, Train
from ditlab.core.device import free_memory
from ditlab.core.errors import InputError
from ditlab.core.io import damage, is_vacant, replace_text, replacing, write_manifest
from ditlab.core.modules import skip_init, with_modules
from ditlab.core.weights import ADAPTER, WEIGHTS, checkpoints, read_config, read_weights
from ditlab.data import Dataset
from ditlab.inference.pipeline import Pipeline
from ditlab.training.ema import EMA
from ditlab.training.log import Tally, forget_after
from ditlab.training.optim import Optimiser
from ditlab.training.parallel import Place, place_like, whole
from ditlab.training.power_ema import STEPS, PowerAverages, as_float16

PROFILES = "profiles.safetensors"
AVERAGED = "ema.safetensors"  # the average with its low-rank updates, from which training goes on
# A run may be resumed with other values of these,
FREE = {
    "images",
    "compile",
    "log_every",
    "preview_every",
    "save_every",
    "keep",
    "keep_every",
    "device",
    "report",
    "max_skipped",
}
# with other values of these if that is what is wanted, and with no others: they decide what the weights mean.
CHANGEABLE = {
    "label_dropout",
    "ema",
    "batch",
    "patience",
    "time",
    "time_mean",
    "time_scale",
    "stratified",
    "weight",
    "direction",
    "route",
    "align",
    "align_weight",
    "pictures",
}


@dataclass
class TrainState:
    """All that changes during training; what it holds is what is saved."""

    net: Backbone
    ema: EMA
    optimizer: Optimiser
    profiles: PowerAverages
    seen: int = 0
    seconds: float = 0.0
    precision: str = ""
    compiled: bool | None = None
    tally: Tally = field(default_factory=Tally)
    left_out: int = 0  # steps that were not taken because their gradient was not finite
    in_a_row: int = 0  # of these, without one between that was taken

    def average(self) -> Backbone:
        """The average of the weights as a network of this process alone; where it is sharded, all must call."""
        if not self.sharded:
            return self.ema.net
        return holding(self.ema.net, gathered(self.ema.net.state_dict(), kept=True)).to(self.ema.net.device)

    def raw(self, average: Backbone) -> Backbone:
        """The same of the weights themselves; `average` is what `average()` gave."""
        net = copy.deepcopy(average)
        net.load_state_dict(gathered(self.net.state_dict(), kept=True, copied=False))
        return net

    @property
    def sharded(self) -> bool:
        """Whether every process holds a part of the weights only."""
        return isinstance(next(self.net.parameters()), DTensor)


@dataclass(frozen=True)
class Snapshot:
    """A state that does not change any more, on the CPU."""

    average: Backbone
    raw: dict[str, Tensor]
    profiles: dict[str, Tensor]
    rest: dict[str, Any]

    def is_finite(self) -> bool:
        """Whether every weight is a number: a ruined network must not replace a good checkpoint."""
        weights = [*self.average.parameters(), *self.raw.values()]
        return bool(torch.stack([weight.isfinite().all() for weight in weights]).all())


class Run:
    """The folder of a training run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.previews = folder / "previews"
        self.left_out = folder / "left-out.jsonl"
        self.back_at: int | None = None  # images of the checkpoint that this process last went back to
        self.checkpoints = folder / "checkpoints"
        self.averages = folder / "averages"
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def check(self, recipe: Recipe, dataset: Dataset, *, changes: bool = False) -> None:
        """Check that the folder is new or holds the same run; a run without a checkpoint has nothing to lose.

        Args:
            recipe: what is asked for.
            dataset: the pictures that it means today.
            changes: whether another course of training is meant to be; never another network, data or target.

        Raises:
            InputError: the folder holds another run or something else; nothing is touched.
        """
        file = self.folder / "recipe.toml"
        if file.exists() and checkpoints(self.folder):
            differing = differences(parse_recipe(read_toml(file), source=str(file)), recipe)
            for folder in reversed(checkpoints(self.folder)):
                with suppress(InputError):  # a damaged one
                    differing |= other_pictures(read_config(folder), dataset)
                    break
            refused = [told for key, told in differing.items() if not changeable(key)]
            if refused:
                raise InputError(
                    f"{self.folder} holds another run ({'; '.join(refused)}); "
                    "give the same recipe to resume it, or another --out"
                )
            if differing and not changes:
                raise InputError(
                    f"{self.folder} was trained otherwise so far ({'; '.join(differing.values())}); give the same "
                    "recipe, or add --allow-changes to go on with the new one"
                )
        elif not file.exists() and not is_vacant(self.folder):
            raise InputError(f"{self.folder} exists and is not a training run; give another --out")

    def begin(self, recipe: Recipe, seen: int) -> None:
        """Make the folders, write the recipe, and forget what will be done again from `seen` images on."""
        try:
            # First, for it says what the folder is: a run that is killed now can be begun again.
            replace_text(self.folder / "recipe.toml", to_toml(to_tables(recipe)))
            self.previews.mkdir(exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            for folder in (self.previews, self.checkpoints, self.averages):
                for left in folder.glob(".*.part"):  # when it was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            forget_after(self.left_out, seen - 1)
        except OSError as error:
            raise InputError(
                f"cannot write to {self.folder}: {error.strerror}; free some space or give another --out"
            ) from error

    def note(self, seen: int, indices: Tensor) -> None:
        """Write down a batch that was left out: place in the run, and the numbers of its pictures."""
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
        """Copy the state now, and write it as a checkpoint while training goes on; `finish` waits for it.

        All processes must call; the first one writes. Older checkpoints but the newest `keep`, and the first behind
        each multiple of `keep_every`, are dropped; low-rank updates merged, or apart.

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
                "train into another --out with a lower --optim.lr, or with --train.precision=float32"
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
            save_file(taken.raw, draft / "raw.safetensors")
            if model.net is not pipe.net:
                save_file(dict(pipe.net.state_dict()), draft / AVERAGED)
                if settings.lora_apart:
                    save_file(trained_tensors(pipe.net, pipe.config["lora"]["whole"]), draft / ADAPTER)
                    (draft / WEIGHTS).unlink()
            if taken.profiles:
                save_file(taken.profiles, draft / PROFILES)
                with replacing(self.averages / f"{target.name}.safetensors") as file:
                    save_file(as_float16(taken.profiles), file, {STEPS: str(taken.rest["profile_steps"])})
            torch.save(taken.rest, draft / "state.pt")
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
        """Drop the checkpoints that are not to be kept; of those behind the newest, which are damaged, none."""
        # They were left aside when the run came back to an earlier one; it will write them anew.
        found = [each for each in checkpoints(self.folder) if int(each.name) <= newest]
        kept = 0
        for old in found[: -settings.keep]:
            number = int(old.name)
            if settings.keep_every and number // settings.keep_every > kept // settings.keep_every:
                kept = number
            else:
                drop(old)

    def restore(self, state: TrainState, console: Console, *, place: Place) -> bool:
        """Load the newest whole checkpoint into the state; whether there is one.

        Raises:
            InputError: checkpoints of which none is whole.
        """
        name = place.first_does(lambda: self.newest_whole(console))
        if name is None:
            return False
        folder = self.checkpoints / name
        if not folder.exists():
            raise InputError(
                f"process {place.rank} does not see {folder}, which the first one does; "
                "put the run on a file system that all machines share"
            )
        self._load(folder, state, place)
        return True

    def newest_whole(self, console: Console) -> str | None:
        """Name of the checkpoint to go on from; None where there is none.

        Raises:
            InputError: none of them is whole.
        """
        found = checkpoints(self.folder)
        for folder in reversed(found):
            wrong = damage(folder, hashes=True)
            if wrong is None:
                return folder.name
            console.print(f"{folder} is damaged and left aside: {wrong}", markup=False)
        if found:
            raise InputError(
                f"none of the checkpoints in {self.checkpoints} is whole; remove the folder {self.folder} to begin anew"
            )
        return None

    def _load(self, folder: Path, state: TrainState, place: Place) -> None:
        average = AVERAGED if (folder / AVERAGED).exists() else WEIGHTS
        with torch.no_grad():
            for net, name in ((state.net, "raw.safetensors"), (state.ema.net, average)):
                target = net.state_dict()
                for key, value in read_weights(folder / name, target).items():
                    target[key].copy_(place_like(value, target[key]))
            if mine := state.profiles.values:
                for key, value in read_weights(folder / PROFILES, mine).items():
                    mine[key].copy_(place_like(value, mine[key]))
        try:
            saved: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
            if state.sharded:
                parameters = [each for group in state.optimizer.param_groups for each in group["params"]]
                for number, values in saved["optimizer"]["state"].items():
                    for key, value in values.items():
                        if value.ndim:  # all but the count of steps
                            values[key] = place_like(value, parameters[number])
            asked = [settings_of(group) for group in state.optimizer.param_groups]
            state.optimizer.load_state_dict(saved["optimizer"])
            for group, settings in zip(state.optimizer.param_groups, asked, strict=True):
                group.update(settings)
            state.ema.updates = saved["ema_updates"]
            state.seen, state.seconds, state.precision = saved["seen"], saved["seconds"], saved["precision"]
            state.compiled, state.profiles.steps = saved["compiled"], saved["profile_steps"]
            state.left_out, state.in_a_row = saved["left_out"], saved["in_a_row"]
            state.tally = Tally(saved["tally"] if place.first else None)
        except Exception as error:  # a damaged pickle can raise almost anything
            raise InputError(
                f"{folder / 'state.pt'} is missing or damaged ({type(error).__name__}); "
                f"remove {folder} to resume from the checkpoint before it"
            ) from error


def drop(folder: Path) -> None:
    """Remove a checkpoint, which is there whole or not at all."""
    aside = folder.with_name(f".{folder.name}.old.part")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """What the recipe says of some parameters; their rate is set before each step."""
    return {key: value for key, value in group.items() if key not in ("params", "lr")}


def snapshot(state: TrainState, place: Place, *, copied: bool) -> Snapshot | None:
    """The state as it is now, on the CPU; without a copy it must be used before the next step.

    All must call; the first one has it.
    """

    def taken(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return gathered(values, kept=place.first, copied=copied)

    optimizer = state.optimizer.state_dict()
    average, raw = taken(state.ema.net.state_dict()), taken(state.net.state_dict())
    profiles = taken(state.profiles.values)
    moments = {number: taken(values) for number, values in optimizer["state"].items()}
    tally = place.total(state.tally.sums)
    if not place.first:
        return None
    return Snapshot(
        holding(state.ema.net, average).cpu() if copied or state.sharded else state.ema.net,
        raw,
        profiles,
        {
            "optimizer": optimizer | {"state": moments},
            "ema_updates": state.ema.updates,
            "profile_steps": state.profiles.steps,
            "seen": state.seen,
            "seconds": state.seconds,
            "precision": state.precision,
            "compiled": state.compiled,
            "left_out": state.left_out,
            "in_a_row": state.in_a_row,
            "tally": tally,
        },
    )


def holding(net: Backbone, tensors: dict[str, Tensor]) -> Backbone:
    """A network like this one with these tensors for its own."""
    if not isinstance(next(net.parameters()), DTensor):
        own = {key: value for key, value in net.state_dict(keep_vars=True).items() if key in tensors}
        same = {
            value: nn.Parameter(tensors[key], False) if isinstance(value, nn.Parameter) else tensors[key]
            for key, value in own.items()
        }
        return with_modules(net, same)
    with skip_init():
        plain = create(**net.config)
    plain.load_state_dict(tensors, assign=True)
    return plain.eval().requires_grad_(False)


def gathered(values: Mapping[str, Tensor], *, kept: bool, copied: bool = True) -> dict[str, Tensor]:
    """Values that may be spread over processes, whole and on the CPU; nothing where they are not kept."""
    found = {}
    for key, value in values.items():
        full = whole(value.detach())
        if kept:
            found[key] = full.to("cpu", copy=copied)
    return found


def differences(before: Recipe, now: Recipe) -> dict[str, str]:
    """What two recipes of a run differ in and may not silently: key -> what is said of it."""
    old, new = to_tables(before), to_tables(now)
    found = {}
    for section in ("model", "diffusion", "data", "optim", "train"):
        for key in sorted((old[section].keys() | new[section].keys()) - FREE):
            was, is_ = old[section].get(key), new[section].get(key)
            if was != is_:
                found[f"{section}.{key}"] = f"{section}.{key} is {was} there, {is_} here"
    return found


def other_pictures(config: dict[str, Any], dataset: Dataset) -> dict[str, str]:
    """The same for the pictures behind an unchanged recipe: their classes are labels, their number is the order."""
    found = {}
    before, now = config.get("classes", dataset.classes), dataset.classes
    if before != now:
        i = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
        was, is_ = (f'"{names[i]}"' if i < len(names) else "none" for names in (before, now))
        found["data.source"] = f"class {i} of the pictures was {was} there and is {is_} here"
    if (count := config.get("pictures")) not in (None, len(dataset)):
        found["pictures"] = f"{count:,} pictures there, {len(dataset):,} here"
    return found


def changeable(key: str) -> bool:
    """Whether a run can sensibly go on with another value."""
    section, _, name = key.partition(".")
    return (name or section) in CHANGEABLE or (section == "optim" and name != "name")
