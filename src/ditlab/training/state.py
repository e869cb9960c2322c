"""What a run keeps: its folder, its checkpoints, and the state that a checkpoint restores.

    run/recipe.toml                 the resolved recipe
    run/metrics.jsonl               one line every so many images
    run/previews/000000128000.png   EMA samples of fixed seeds
    run/checkpoints/000000128000/   a model folder (EMA), raw.safetensors and state.pt; ema.safetensors with LoRA

A checkpoint is written beside its place and renamed, so it is whole or absent.
"""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ditlab.backbones import Backbone
from ditlab.backbones.lora import merged, trained_tensors
from ditlab.config import Recipe, parse_recipe, read_toml, to_tables, to_toml
from ditlab.errors import InputError
from ditlab.files import replace_text
from ditlab.pipeline import ADAPTER, WEIGHTS, Pipeline, newest_checkpoint, read_weights
from ditlab.training.ema import EMA

# A run may be resumed with other values of these.
AVERAGED = "ema.safetensors"  # the average with its low-rank updates, from which training goes on
FREE = {"images", "compile", "log_every", "preview_every", "save_every", "keep", "device", "max_skipped"}


@dataclass
class TrainState:
    """All that changes during training; what it holds is what is saved."""

    net: Backbone
    ema: EMA
    optimizer: torch.optim.AdamW
    seen: int = 0
    seconds: float = 0.0
    precision: str = ""
    compiled: bool | None = None

    def is_finite(self) -> bool:
        """Whether every weight is a number: a ruined network must not replace a good checkpoint."""
        weights = [*self.net.parameters(), *self.ema.net.parameters()]
        return bool(torch.stack([weight.detach().isfinite().all() for weight in weights]).all())


class Run:
    """The folder of a training run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.previews = folder / "previews"
        self.checkpoints = folder / "checkpoints"

    def check(self, recipe: Recipe) -> None:
        """Check that the folder is new or holds the same run; a run without a checkpoint has nothing to lose.

        Raises:
            InputError: the folder holds another run or something else; nothing is touched.
        """
        file = self.folder / "recipe.toml"
        if file.exists() and newest_checkpoint(self.folder) is not None:
            before, now = to_tables(parse_recipe(read_toml(file), source=str(file))), to_tables(recipe)
            for section in ("model", "diffusion", "data", "optim", "train"):
                for key in sorted((before[section].keys() | now[section].keys()) - FREE):
                    old, new = before[section].get(key), now[section].get(key)
                    if old != new:
                        raise InputError(
                            f"{self.folder} holds another run ({section}.{key} is {old} there, {new} here); "
                            "give the same recipe to resume it, or another --out"
                        )
        elif not file.exists() and self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{self.folder} exists and is not a training run; give another --out")

    def begin(self, recipe: Recipe) -> None:
        """Make the folders and write the recipe."""
        try:
            self.previews.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            replace_text(self.folder / "recipe.toml", to_toml(to_tables(recipe)))
        except OSError as error:
            raise InputError(
                f"cannot write to {self.folder}: {error.strerror}; free some space or give another --out"
            ) from error

    def save(self, state: TrainState, pipe: Pipeline, keep: int, *, apart: bool = False) -> Path:
        """Write a checkpoint and drop all but the newest `keep`; low-rank updates merged, or apart.

        Raises:
            InputError: weights that are not finite, or a disk that is full; earlier checkpoints stay as they are.
        """
        last = newest_checkpoint(self.folder)
        kept = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
        if not state.is_finite():
            raise InputError(
                f"the weights are no longer finite after {state.seen:,} images; {kept}: "
                "lower --optim.lr or set --train.precision=float32 and train again into another --out"
            )
        target = self.checkpoints / f"{state.seen:012d}"
        draft = self.checkpoints / f".{target.name}.part"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            pipe.config |= {"images_seen": state.seen, "train_seconds": round(state.seconds, 3)}
            model = replace(pipe, net=merged(pipe.net))
            model.save(draft, name=self.folder.name)
            save_file(dict(state.net.state_dict()), draft / "raw.safetensors")
            if model.net is not pipe.net:
                save_file(dict(pipe.net.state_dict()), draft / AVERAGED)
                if apart:
                    save_file(trained_tensors(pipe.net, pipe.config["lora"]["whole"]), draft / ADAPTER)
                    (draft / WEIGHTS).unlink()
            torch.save(
                {
                    "optimizer": state.optimizer.state_dict(),
                    "ema_updates": state.ema.updates,
                    "seen": state.seen,
                    "seconds": state.seconds,
                    "precision": state.precision,
                    "compiled": state.compiled,
                },
                draft / "state.pt",
            )
            if target.exists():
                shutil.rmtree(target)
            os.replace(draft, target)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(draft, ignore_errors=True)
            message = " ".join(str(error).split())
            raise InputError(
                f"cannot write checkpoint {target}: {message}; {kept}; free some space and run the same command again"
            ) from error
        for old in sorted(path for path in self.checkpoints.glob("*") if path.name.isdigit())[:-keep]:
            shutil.rmtree(old)
        return target

    def restore(self, state: TrainState) -> None:
        """Load the newest checkpoint into the state, if there is one."""
        folder = newest_checkpoint(self.folder)
        if folder is None:
            return
        average = AVERAGED if (folder / AVERAGED).exists() else WEIGHTS
        for net, name in ((state.net, "raw.safetensors"), (state.ema.net, average)):
            net.load_state_dict(read_weights(folder / name, net.state_dict()))
        try:
            saved: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
            state.optimizer.load_state_dict(saved["optimizer"])
            state.ema.updates = saved["ema_updates"]
            state.seen, state.seconds, state.precision = saved["seen"], saved["seconds"], saved["precision"]
            state.compiled = saved.get("compiled", False)  # runs of before were not
        except Exception as error:  # a damaged pickle can raise almost anything
            raise InputError(
                f"{folder / 'state.pt'} is missing or damaged ({type(error).__name__}); "
                f"remove {folder} to resume from the checkpoint before it"
            ) from error
