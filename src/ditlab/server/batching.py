"""Continuous batching: many generations share the calls of one network.

Each generation runs its sampler in its own thread, with its own settings. All network calls go to one thread, which
computes the waiting rows in one batch. Each row has its own timestep, so generations need not be at the same step. An
image does not depend on the other rows of a batch.
"""

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.core.types import Condition, Label, Seed, Step, Trace
from ditlab.inference.base import BasePipeline
from ditlab.inference.prepared import PreparedPipeline

WAIT = 0.004  # seconds that a network call waits for the calls of other generations
Context = Callable[[], AbstractContextManager[None]]


class Canceled(Exception):  # noqa: N818 - a normal event and not an error
    """The generation was canceled."""


@dataclass
class Call:
    """A network call of a generation, which waits for the network."""

    x: Tensor  # (B, C, H, W) or (B, C, T, H, W)
    t: Tensor  # (B,)
    condition: Condition  # B rows
    context: Context | None = None  # entered around the network call, which is then not batched
    inner: Callable[..., Tensor] | None = None  # replaces the inner part of the network; the call is not batched
    done: threading.Event = field(default_factory=threading.Event)
    output: Tensor | None = None
    error: Exception | None = None

    @property
    def alone(self) -> bool:
        """Whether the call must not be batched with others."""
        return self.context is not None or self.inner is not None


class Proxy(Backbone):
    """Takes the place of the network in a pipeline, and sends each call to the engine."""

    spatial = (2, 3)

    def __init__(self, net: Backbone, send: Callable[[Call], Tensor]) -> None:
        super().__init__(net.size, net.channels, net.classes, net.learn_variance)
        self.config = net.config
        self.target = (net,)  # in a tuple, so that its weights are not this module's
        self.send = send

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {}

    @property
    def one_size(self) -> str:
        return self.target[0].one_size

    @property
    def side_multiples(self) -> tuple[int, ...]:
        return self.target[0].side_multiples

    @property
    def longest_side(self) -> int | None:
        return self.target[0].longest_side

    def tokens_at(self, size: Sequence[int]) -> int:
        return self.target[0].tokens_at(size)

    @property
    def tokens(self) -> int:
        return self.target[0].tokens

    @property
    def dtype(self) -> torch.dtype:
        return self.target[0].dtype

    @property
    def device(self) -> torch.device:
        return self.target[0].device

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None) -> Tensor:
        rows = Condition(label=condition) if isinstance(condition, Tensor) else condition
        return self.send(Call(x, t, rows, inner=vars(self).get("inner")))  # feature caching sets it on the instance


class ProxyWithInner(Proxy):
    """A proxy for a network whose inner blocks can be cached."""

    def inner(self, x: Tensor, *others: Any) -> Tensor:
        return self.target[0].inner(x, *others)


class Engine:
    """A model and the thread that runs its network."""

    def __init__(
        self, pipe: BasePipeline, *, rows: int = 64, on_call: Callable[[int, float], None] | None = None
    ) -> None:
        """Start the thread.

        Args:
            pipe: the model, prepared for this machine (`Pipeline.prepared`).
            rows: most rows of a batch, including both halves of guidance; the call of one generation may have more.
            on_call: called after each network call with its number of rows and its seconds.
        """
        self.pipe = PreparedPipeline(pipe.model, pipe.net.fused().eval())
        self.rows, self.on_call = rows, on_call
        self.calls: deque[Call] = deque()
        self.change = threading.Condition()
        self.active = 0  # generations
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="network", daemon=True)
        self.thread.start()

    def steps(
        self,
        labels: list[Label],
        seeds: Sequence[Seed],
        stop: threading.Event,
        context: Context | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        """Sample like `Pipeline.steps`, with network calls that are batched with those of other generations.

        Args:
            labels, seeds, options: as in `Pipeline.steps`.
            stop: event that ends the generation before its next network call.
            context: entered around each network call, which is then not batched.

        Raises:
            InputError: a setting is invalid; raised by the call of this method, before the first step.
            Canceled: `stop` was set.
        """

        def send(call: Call) -> Tensor:
            if stop.is_set():
                raise Canceled
            call.context = context
            return self._send(call)

        net = self.pipe.net
        proxy = Proxy if type(net).inner is Backbone.inner else ProxyWithInner
        shared = PreparedPipeline(self.pipe.model, proxy(net, send).eval())
        return self._counted(shared.steps(labels, seeds=seeds, **options))

    def _counted(self, steps: Iterator[Step]) -> Iterator[Step]:
        with self._active():
            yield from steps

    @contextmanager
    def _active(self) -> Iterator[None]:
        with self.change:
            self.active += 1
        try:
            yield
        finally:
            with self.change:
                self.active -= 1
                self.change.notify_all()

    def close(self) -> None:
        """Finish the waiting calls, and end the thread."""
        with self.change:
            self.closed = True
            self.change.notify_all()
        self.thread.join()

    def _send(self, call: Call) -> Tensor:
        with self.change:
            if self.closed:
                raise Canceled
            self.calls.append(call)
            self.change.notify_all()
        call.done.wait()
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
                # Other generations will soon make their next call; waiting for them is faster than separate calls.
                self.change.wait_for(lambda: len(self.calls) >= self.active or self._full(), WAIT)
                batch = [self.calls.popleft()]
                rows = len(batch[0].x)
                while self.calls and self._together(batch[0], self.calls[0], rows):
                    rows += len(self.calls[0].x)
                    batch.append(self.calls.popleft())
            started = time.perf_counter()
            self._compute(batch)
            if self.on_call is not None:
                self.on_call(rows, time.perf_counter() - started)
            for call in batch:  # after the metrics, so that they include the call when the client gets its response
                call.done.set()

    def _together(self, first: Call, other: Call, rows: int) -> bool:
        if first.x.shape[1:] != other.x.shape[1:]:
            return False
        if (first.condition.given is None) != (other.condition.given is None):  # one has a timestep for each frame
            return False
        return not first.alone and not other.alone and rows + len(other.x) <= self.rows

    def _full(self) -> bool:
        return sum(len(call.x) for call in self.calls) >= self.rows

    @torch.no_grad()
    def _compute(self, calls: list[Call]) -> None:
        try:
            x, t = (torch.cat([getattr(call, name) for call in calls]) for name in "xt")
            condition = Condition.cat([call.condition for call in calls])
            if len(calls) > 1 and x.device.type == "cpu":
                filled = torch.arange(min(filled_rows(len(x)), self.rows)).clamp(max=len(x) - 1)
                x, t, condition = x[filled], t[filled], condition[filled]
            with (calls[0].context or nullcontext)():
                output = self._net(calls[0])(x, t, condition)
            counts = [len(call.x) for call in calls]
            parts = output[: sum(counts)].split(counts)
            for call, part in zip(calls, parts, strict=True):
                call.output = part
        except Exception as error:
            if len(calls) > 1:  # one call may have failed, or the memory was too small for all: try them one by one
                for call in calls:
                    self._compute([call])
                return
            calls[0].error = error

    def _net(self, call: Call) -> Backbone:
        if call.inner is None:
            return self.pipe.net
        net = copy.copy(self.pipe.net)  # shares all weights
        net.inner = call.inner  # type: ignore[method-assign]
        return net


def filled_rows(rows: int) -> int:
    """The number of rows of a joint batch on a CPU, which is filled up with copies of its last row.

    It has three significant bits: 8, 10, 12, 14, 16, 20, ... oneDNN compiles kernels for each number of rows, and keeps
    several MB for them; with all numbers from 1 to 64, a service grows by hundreds of MB.
    """
    step = 1 << max((rows - 1).bit_length() - 3, 0)
    return -(-rows // step) * step
