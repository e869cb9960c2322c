"""Trackers, which receive the metrics of a run. A new one is one class or function and a line in `TRACKERS`."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from PIL import Image

from ditlab.core.errors import InputError
from ditlab.core.io import replace_text
from ditlab.core.registry import Registry


class Tracker(Protocol):
    """Receives the metrics and previews of a run."""

    def numbers(self, images: int, values: dict[str, float]) -> None:
        """Receive a line of metrics after `images` images."""

    def preview(self, images: int, image: Image.Image) -> None:
        """Receive a preview after `images` images."""

    def close(self) -> None:
        """Called when the run ends or stops."""


class TensorBoard:
    """Writes TensorBoard event files in the run folder; a resumed run purges the events after its checkpoint."""

    def __init__(self, folder: Path, seen: int, recipe: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("train.report tensorboard needs TensorBoard; pip install 'ditlab[tensorboard]'") from None
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=seen + 1)

    def numbers(self, images: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, images)

    def preview(self, images: int, image: Image.Image) -> None:
        self.writer.add_image("preview", np.asarray(image), images, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Hosted:
    """Sends metrics to Weights & Biases, or to trackio, which has the same interface; a resumed run keeps its id."""

    def __init__(self, library: str, folder: Path, seen: int, recipe: dict[str, Any]) -> None:
        try:
            self.library: Any = importlib.import_module(library)
        except ImportError:
            raise InputError(f"train.report {library} needs the library {library}; pip install {library}") from None
        file = folder / f"{library}.id"
        if not file.exists():
            replace_text(file, uuid4().hex)
        options = {"id": file.read_text(encoding="utf-8")} if library == "wandb" else {}  # trackio identifies by name
        self.library.init(project="ditlab", name=folder.name, config=recipe, resume="allow", **options)

    def numbers(self, images: int, values: dict[str, float]) -> None:
        self.library.log({"images": images, **values})

    def preview(self, images: int, image: Image.Image) -> None:
        self.library.log({"images": images, "preview": self.library.Image(image)})

    def close(self) -> None:
        self.library.finish()


TRACKERS: Registry[Callable[[Path, int, dict[str, Any]], Tracker]] = Registry(
    "tracker", {"tensorboard": TensorBoard, "wandb": partial(Hosted, "wandb"), "trackio": partial(Hosted, "trackio")}
)
"""Name -> function (run folder, images seen before, tables of the recipe) -> tracker."""


def trackers(names: tuple[str, ...], folder: Path, seen: int, recipe: dict[str, Any]) -> list[Tracker]:
    """The trackers that the recipe names.

    Raises:
        InputError: a name is unknown, or its library is not installed.
    """
    opened = [TRACKERS.find(name)(folder, seen, recipe) for name in names]
    for name, tracker in zip(names, opened, strict=True):
        if missing := [method for method in ("numbers", "preview", "close") if not hasattr(tracker, method)]:
            raise InputError(f'the tracker "{name}" has no {", ".join(missing)}; it must define it')
    return opened


def flat(means: dict[str, Any]) -> dict[str, float]:
    """Metrics as a flat table: the loss in intervals of time becomes loss_by_time/0.0-0.1 and so on."""
    numbers = {name: value for name, value in means.items() if isinstance(value, int | float)}
    spans = means.get("loss_by_time") or []
    for i, value in enumerate(spans):
        if value is not None:
            numbers[f"loss_by_time/{i / len(spans):.1f}-{(i + 1) / len(spans):.1f}"] = value
    return numbers
