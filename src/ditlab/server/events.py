"""The events of a generation that its client has not read yet."""

import asyncio
from collections import deque
from dataclasses import replace

from ditlab.server.generation import Event

PREVIEWS = 4  # most previews that wait for a client


class Events:
    """A queue that is bounded: if a client reads slowly, old previews are dropped, but no step and no result.

    The number of steps is limited by the service, and an event without images is small.
    """

    def __init__(self) -> None:
        self.waiting: deque[Event] = deque()
        self.change = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event; called in the thread of the event loop."""
        self.waiting.append(event)
        previews = [i for i, other in enumerate(self.waiting) if other.kind == "preview"]
        if len(previews) > PREVIEWS:
            oldest = previews[0]
            self.waiting[oldest] = replace(self.waiting[oldest], kind="step", images=())
        self.change.set()

    async def get(self) -> Event:
        """The oldest event; waits until there is one."""
        while not self.waiting:
            self.change.clear()
            await self.change.wait()
        return self.waiting.popleft()

    async def last(self) -> Event:
        """The result of the generation; all other events are dropped."""
        while (event := await self.get()).kind not in ("done", "error"):
            pass
        return event
