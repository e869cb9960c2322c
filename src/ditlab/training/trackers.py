"""Where the metrics of a run go beside metrics.jsonl. A new tracker is one function and one line in `TRACKERS`."""

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
        """A line of metrics."""

    def preview(self, images: int, picture: Image.Image) -> None:
        """A preview."""

    def close(self) -> None:
        """The run ends or stops."""


class TensorBoard:
    """Event files in the run's folder; what a resumed run writes again is purged."""

    def __init__(self, folder: Path, seen: int, recipe: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("train.report tensorboard needs it; pip install 'ditlab[tensorboard]'") from None
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=seen + 1)

    def numbers(self, images: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, images)

    def preview(self, images: int, picture: Image.Image) -> None:
        self.writer.add_image("preview", np.asarray(picture), images, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Hosted:
    """Weights & Biases, or trackio, which has the same interface; a resumed run continues under its name."""

    def __init__(self, library: str, folder: Path, seen: int, recipe: dict[str, Any]) -> None:
        try:
            self.library: Any = importlib.import_module(library)
        except ImportError:
            raise InputError(f"train.report {library} needs it; pip install {library}") from None
        file = folder / f"{library}.id"
        if not file.exists():
            replace_text(file, uuid4().hex)
        known = {"id": file.read_text(encoding="utf-8")} if library == "wandb" else {}  # trackio goes by the name
        self.library.init(project="ditlab", name=folder.name, config=recipe, resume="allow", **known)

    def numbers(self, images: int, values: dict[str, float]) -> None:
        self.library.log({"images": images, **values})

    def preview(self, images: int, picture: Image.Image) -> None:
        self.library.log({"images": images, "preview": self.library.Image(picture)})

    def close(self) -> None:
        self.library.finish()


TRACKERS: Registry[Callable[[Path, int, dict[str, Any]], Tracker]] = Registry(
    "tracker", {"tensorboard": TensorBoard, "wandb": partial(Hosted, "wandb"), "trackio": partial(Hosted, "trackio")}
)
"""Name -> tracker from the run's folder, the images seen before, and the recipe's tables."""


def trackers(names: tuple[str, ...], folder: Path, seen: int, recipe: dict[str, Any]) -> list[Tracker]:
    """The trackers that the recipe names.

    Raises:
        InputError: an unknown name, or a library that is not installed.
    """
    opened = [TRACKERS.find(name)(folder, seen, recipe) for name in names]
    for name, tracker in zip(names, opened, strict=True):
        if missing := [method for method in ("numbers", "preview", "close") if not hasattr(tracker, method)]:
            raise InputError(f'the tracker "{name}" has no {", ".join(missing)}; it must define it')
    return opened


def flat(means: dict[str, Any]) -> dict[str, float]:
    """Numbers by name: the spans of time as loss_by_time/0.0-0.1 and so on; spans without images are missing."""
    numbers = {name: value for name, value in means.items() if isinstance(value, int | float)}
    spans = means.get("loss_by_time") or []
    for i, value in enumerate(spans):
        if value is not None:
            numbers[f"loss_by_time/{i / len(spans):.1f}-{(i + 1) / len(spans):.1f}"] = value
    return numbers
