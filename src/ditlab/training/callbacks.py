"""Callbacks: methods of the caller's objects that a run calls while it trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ditlab.backbones import Backbone
from ditlab.core.errors import InputError, nearest
from ditlab.inference.pipeline import Pipeline
from ditlab.training.trackers import Tracker, flat

Callback = Any
"""An object with any of the methods

    on_step(seen, net)            after each step: images seen, and the network that is trained; returning True stops
                                  the run
    on_log(seen, values)          after each line of metrics: metrics by name; returning True stops the run
    on_preview(seen, image)       after each preview: a PIL image
    on_checkpoint(seen, folder)   when a checkpoint is written: its path; training waits for it
    on_end(pipe)                  when the run is finished or stopped: the trained model

Only the first process of a run calls them.
"""


METHODS = ("on_step", "on_log", "on_preview", "on_checkpoint", "on_end")


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check that each callback has a method that is called, and none of another name, which never would be.

    Raises:
        InputError: one has no such method, or one of another name; or this is no sequence.
    """
    if not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks is a {type(callbacks).__name__}; give a list of objects")
    for callback in callbacks:
        if isinstance(callback, type):
            raise InputError(f"callback {callback.__name__} is a class; give an object, {callback.__name__}()")
        names = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name))]
        if not names:
            raise InputError(f"callback {type(callback).__name__} has no method of {', '.join(METHODS)}; give it one")
        for name in names:
            if name not in METHODS:
                raise InputError(
                    f'callback {type(callback).__name__} has the method "{name}"; {nearest(name, METHODS)}'
                )


class Listeners:
    """The trackers and callbacks of a run; empty in all processes but the first."""

    def __init__(self, trackers: Sequence[Tracker] = (), callbacks: Sequence[Callback] = ()) -> None:
        self.trackers, self.callbacks = trackers, callbacks

    def log(self, seen: int, values: dict[str, Any]) -> bool:
        """Send a line of metrics to all listeners; returns whether a callback stops the run."""
        for tracker in self.trackers:
            tracker.numbers(seen, flat(values))
        return any(result is True for result in self.call("on_log", seen, values))

    def track_preview(self, seen: int, image: Image.Image) -> None:
        """Send a preview to all trackers."""
        for tracker in self.trackers:
            tracker.preview(seen, image)

    def preview(self, seen: int, image: Image.Image) -> None:
        """Send a preview to all callbacks."""
        self.call("on_preview", seen, image)

    def step(self, seen: int, net: Backbone) -> bool:
        """Send the network to all callbacks; returns whether one stops the run."""
        return any(result is True for result in self.call("on_step", seen, net))

    def checkpoint(self, seen: int, folder: Path) -> None:
        """Send the path of a checkpoint to all callbacks."""
        self.call("on_checkpoint", seen, folder)

    def end(self, pipe: Pipeline) -> None:
        """Send the trained model to all callbacks."""
        self.call("on_end", pipe)

    def call(self, name: str, *values: Any) -> list[Any]:
        """Call a method of each callback that has it; returns the results."""
        methods = (getattr(callback, name, None) for callback in self.callbacks)
        return [method(*values) for method in methods if method is not None]
