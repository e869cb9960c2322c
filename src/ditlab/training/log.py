"""Progress of a run: a progress bar in the terminal, and a JSON line in `metrics.jsonl` at intervals."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ditlab.core.formats import complete_lines
from ditlab.core.io import replace_bytes
from ditlab.core.progress import outlook
from ditlab.core.terminal import say
from ditlab.training.losses import Losses

BINS = 10  # equal intervals of time t, for each of which the mean loss is logged


class Tally:
    """Sums since the last line of metrics: loss, images, gradient norm, steps; loss and images by time; named losses.

    Args:
        sums: sums of an earlier part of the run (4 + 2 BINS,).
        named: sum of each named loss, if there are several.
    """

    def __init__(self, sums: Tensor | None = None, named: Mapping[str, Tensor] | None = None) -> None:
        self.sums = torch.zeros(4 + 2 * BINS) if sums is None else sums
        self.named: dict[str, Tensor] = dict(named or {})  # () each

    def add(self, losses: Losses, norm: Tensor | None) -> None:
        """Add a step.

        Args:
            losses: losses of the images.
            norm: norm of the gradient (); None if another process counts the step.
        """
        total, t = losses.total.detach(), losses.times
        self.sums = self.sums.to(total)
        one = torch.ones_like(total)
        by_time = torch.zeros(2, BINS).to(total)
        if t is not None:
            by_time.index_add_(1, (t * BINS).long().clamp(0, BINS - 1).to(total.device), torch.stack([total, one]))
        step = total.new_zeros(2) if norm is None else torch.stack([norm.to(total), one[0]])
        self.sums = self.sums + torch.cat([total.sum()[None], one.sum()[None], step, by_time.flatten()])
        if len(losses.named) > 1:
            for name, value in losses.named.items():
                self.named[name] = self.named.get(name, torch.zeros(())).to(total) + value.detach().sum()

    def flat(self) -> Tensor:
        """All sums in one tensor, so that the sums of several processes can be added."""
        return torch.cat([self.sums, *(value.reshape(1).to(self.sums) for value in self.named.values())])

    def means(self, flat: Tensor | None = None) -> dict[str, Any]:
        """Means of the loss, the named losses, the gradient norm, and the loss in each interval of time.

        A mean is None if nothing was counted.

        Args:
            flat: sums of all processes in the order of `flat()` (default: the sums of this process).
        """
        values = (self.flat() if flat is None else flat).tolist()
        loss, images, norm, steps, *by_time = values[: len(values) - len(self.named)]
        named = dict(zip(self.named, values[len(values) - len(self.named) :], strict=True))
        spans = [total / count if count else None for total, count in zip(by_time[:BINS], by_time[BINS:], strict=True)]
        return {
            "loss": loss / images if images else None,
            **{f"loss_{name}": value / images if images else None for name, value in named.items()},
            "grad_norm": norm / steps if steps else None,
            "loss_by_time": spans,
        }


class RunLog:
    """The progress bar and the metrics file of a run; a context manager around the training loop.

    Args:
        path: the metrics file.
        seen: images seen up to now.
        images: length of the run in images.
        console: where progress is shown.
        kept: whether this process writes the metrics.
        seconds: training time that is left.
    """

    def __init__(
        self, path: Path, seen: int, images: int, console: Console, *, kept: bool = True, seconds: float = math.inf
    ) -> None:
        self.console = console
        self.seconds = seconds
        self.images = images
        self.path = path
        self.first = self.last_seen = seen
        self.started = self.last_time = self.last_shown = time.monotonic()
        if kept:
            forget_after(path, seen)
        self.file = (path if kept else Path(os.devnull)).open("a", encoding="utf-8", newline="\n")
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,}/{task.total:,} images  {task.fields[numbers]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("training", total=images, completed=seen, numbers="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.file.close()

    def write(self, seen: int, means: dict[str, Any]) -> None:
        """Write a line of metrics: the means since the last line."""
        now = time.monotonic()
        rate = (seen - self.last_seen) / max(now - self.last_time, 1e-9)
        self.last_seen, self.last_time = seen, now
        values = {"images": seen, **means, "images_per_second": round(rate, 1)}
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if not self.console.is_terminal:  # a log file: plain lines, with the remaining time
            overall = (seen - self.first) / (now - self.started)
            total, remaining = self._outlook(seen, overall, now)
            line = f"{seen:>12,}/{total:,} images  {self._numbers(rate, means)}  {remaining:,.0f} s left"
            say(self.console, line)

    def show(self, seen: int, means: Callable[[], dict[str, Any]]) -> None:
        """Update the bar about once a second; reading the means may wait for the device."""
        now = time.monotonic()
        if self.progress.disable or now - self.last_shown < 1:
            return
        self.last_shown = now
        rate = (seen - self.first) / max(now - self.started, 1e-9)
        total, _ = self._outlook(seen, rate, now)
        self.progress.update(self.task, completed=seen, total=total, numbers=self._numbers(rate, means()))

    def _outlook(self, seen: int, rate: float, now: float) -> tuple[int, float]:
        """Images at the end of the run, an estimate if the time is limited, and the seconds until then."""
        return outlook(seen, self.images, max(rate, 1e-9), max(0.0, self.seconds - (now - self.started)))

    @staticmethod
    def _numbers(rate: float, means: dict[str, Any]) -> str:
        if means["loss"] is None:
            return f"{rate:,.0f}/s  no step was taken"
        return f"{rate:,.0f}/s  loss {means['loss']:.4f}  gradient {means['grad_norm'] or 0:.2f}"


def forget_after(path: Path, seen: int) -> None:
    """Remove the lines after `seen` images, where the run resumes, so that no line appears twice."""
    if not path.exists():
        return
    lines = list(complete_lines(path))
    kept = [line for line, values in lines if isinstance(images := values.get("images"), int) and images <= seen]
    content = b"".join(line + b"\n" for line in kept)
    if content != path.read_bytes():
        replace_bytes(path, content)
