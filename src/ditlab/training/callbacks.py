"""Functions of the caller that a run calls while it trains."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ditlab.inference.pipeline import Pipeline
from ditlab.training.trackers import Tracker, flat

Callback = Any
"""An object with any of the methods

    on_log(seen, values)      after each line of metrics: images seen and the numbers by name; True stops the run
    on_preview(seen, image)   after each preview, a PIL image
    on_end(pipe)              when the run is finished or stopped, with the trained model

They are called in the first process of a run.
"""


class Listeners:
    """The trackers and callbacks of a run; empty in all processes but the first."""

    def __init__(self, trackers: Sequence[Tracker] = (), callbacks: Sequence[Callback] = ()) -> None:
        self.trackers, self.callbacks = trackers, callbacks

    def log(self, seen: int, values: dict[str, Any]) -> bool:
        """Pass on a line of metrics; returns whether a callback stops the run."""
        for tracker in self.trackers:
            tracker.numbers(seen, flat(values))
        return any(answer is True for answer in self.call("on_log", seen, values))

    def preview(self, seen: int, image: Image.Image) -> None:
        """Pass on a preview."""
        for tracker in self.trackers:
            tracker.preview(seen, image)
        self.call("on_preview", seen, image)

    def end(self, pipe: Pipeline) -> None:
        """Pass on the trained model."""
        self.call("on_end", pipe)

    def call(self, name: str, *values: Any) -> list[Any]:
        """Call a method of each callback that has it; returns the results."""
        return [method(*values) for each in self.callbacks if (method := getattr(each, name, None)) is not None]
