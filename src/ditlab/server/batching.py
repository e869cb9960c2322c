"""Many drawings at a time through one network.

Every drawing runs its own sampler in a thread of its own, with its own labels, seeds, guidance, sampler and count of
steps. What all of them ask the network goes to one thread, which answers the rows that wait in one call; a network
takes a time for each row, so drawings need not be at the same step. A picture depends on its own rows alone.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.core.types import Condition, Label, Seed, Step, Trace
from ditlab.inference.pipeline import Pipeline

PATIENCE = 0.004  # seconds that a call waits for those of the other drawings


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """The drawing is not wanted any more."""


@dataclass
class Call:
    """Rows that wait for the network."""

    x: Tensor  # (B, C, H, W)
    t: Tensor  # (B,)
    condition: Condition  # B rows
    around: Callable[[], AbstractContextManager[None]] | None = None  # in which it is answered alone
    answered: threading.Event = field(default_factory=threading.Event)
    output: Tensor | None = None
    error: Exception | None = None


class Shared(Backbone):
    """In the place of the network: what it is asked is answered together with what others ask."""

    def __init__(self, net: Backbone, ask: Callable[[Tensor, Tensor, Condition], Tensor]) -> None:
        super().__init__(net.size, net.channels, net.classes, net.learn_variance)
        self.config = net.config
        self.of = (net,)  # in a tuple, so that its weights are not this module's
        self.ask = ask

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {}

    @property
    def tokens(self) -> int:
        return self.of[0].tokens

    @property
    def dtype(self) -> torch.dtype:
        return self.of[0].dtype

    @property
    def device(self) -> torch.device:
        return self.of[0].device

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None) -> Tensor:
        return self.ask(x, t, Condition(label=condition) if isinstance(condition, Tensor) else condition)


class Engine:
    """A model and the thread that runs its network."""

    def __init__(self, pipe: Pipeline, *, rows: int = 64, told: Callable[[int, float], None] | None = None) -> None:
        """Ready to draw.

        Args:
            pipe: the model, made ready for this machine (`Pipeline.prepared`).
            rows: pictures in a network call at most, both halves of guidance counted; a single drawing may have more.
            told: called after each network call with its rows and seconds.
        """
        self.pipe = replace(pipe, net=pipe.net.fused().eval())
        self.rows, self.told = rows, told
        self.calls: deque[Call] = deque()
        self.change = threading.Condition()
        self.drawings = 0
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="network", daemon=True)
        self.thread.start()

    def steps(
        self,
        labels: list[Label],
        seeds: Sequence[Seed],
        stop: threading.Event,
        around: Callable[[], AbstractContextManager[None]] | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        """`Pipeline.steps`, answered together with all other drawings.

        Args:
            labels, seeds, options: as there.
            stop: set by somebody else, it ends the drawing before its next network call.
            around: a context in which each of its network calls is answered, apart from all others.

        Raises:
            InputError: a setting that cannot be used; at once, not at the first step.
            Stopped: it was.
        """

        def ask(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            if stop.is_set():
                raise Stopped
            return self._ask(Call(x, t, condition, around))

        drawing = replace(self.pipe, net=Shared(self.pipe.net, ask).eval())
        return self._counted(drawing.steps(labels, seeds=seeds, **options))

    def _counted(self, steps: Iterator[Step]) -> Iterator[Step]:
        with self._drawing():
            yield from steps

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        with self.change:
            self.drawings += 1
        try:
            yield
        finally:
            with self.change:
                self.drawings -= 1
                self.change.notify_all()

    def close(self) -> None:
        """Answer what waits, and end."""
        with self.change:
            self.closed = True
            self.change.notify_all()
        self.thread.join()

    def _ask(self, call: Call) -> Tensor:
        with self.change:
            if self.closed:
                raise Stopped
            self.calls.append(call)
            self.change.notify_all()
        call.answered.wait()
        if call.error is not None:
            raise call.error
        assert call.output is not None
        return call.output

    def _run(self) -> None:
        while True:
            with self.change:
                self.change.wait_for(lambda: self.calls or self.closed)
                if not self.calls:
                    return
                # The other drawings are between two calls: waiting for them is quicker than a call for each.
                self.change.wait_for(lambda: len(self.calls) >= self.drawings or self._full(), PATIENCE)
                taken = [self.calls.popleft()]
                rows = len(taken[0].x)
                while self.calls and self._together(taken[0], self.calls[0], rows):
                    rows += len(self.calls[0].x)
                    taken.append(self.calls.popleft())
            started = time.perf_counter()
            self._answer(taken)
            if self.told is not None:
                self.told(rows, time.perf_counter() - started)
            for call in taken:  # last, so that who has its answer finds the call told
                call.answered.set()

    def _together(self, first: Call, other: Call, rows: int) -> bool:
        return first.around is other.around is None and rows + len(other.x) <= self.rows

    def _full(self) -> bool:
        return sum(len(call.x) for call in self.calls) >= self.rows

    @torch.no_grad()
    def _answer(self, calls: list[Call]) -> None:
        try:
            x, t = (torch.cat([getattr(call, name) for call in calls]) for name in "xt")
            condition = Condition.cat([call.condition for call in calls])
            with (calls[0].around or nullcontext)():
                parts = self.pipe.net(x, t, condition).split([len(call.x) for call in calls])
            for call, part in zip(calls, parts, strict=True):
                call.output = part
        except Exception as error:
            if len(calls) > 1:  # too much memory, or one that spoils it for the others
                for call in calls:
                    self._answer([call])
                return
            calls[0].error = error
