"""Make a pipeline fast for a known amount of work."""

from functools import partial
from typing import Any

import torch
from rich.console import Console

from ditlab.core.device import out_of_memory
from ditlab.inference.optimize.batch import best_batch
from ditlab.inference.optimize.compilation import compile_and_tell, wanted
from ditlab.inference.optimize.precision import slowness
from ditlab.inference.pipeline import Pipeline

FEW = 50  # network calls, for which nothing is worth the wait


def ready(
    pipe: Pipeline,
    console: Console,
    *,
    precision: str,
    compile: str,
    count: int,
    batch_size: int | None,
    options: dict[str, Any],
) -> tuple[Pipeline, int]:
    """A pipeline made quick for drawing so many pictures on this machine, and how many to draw at a time.

    Args:
        pipe: the model.
        console: where it is told what was done.
        precision: as in `Pipeline.prepared`.
        compile: "always", "never", or "auto": if the work is so long that compiling shortens it.
        count, options: what will be drawn, and how.
        batch_size: pictures at a time; None tries what is quickest here.
    """
    pipe = pipe.prepared(precision)
    net, steps = pipe.net.eval(), pipe.step_count(options)

    @torch.no_grad()
    def call(batch: int) -> None:
        net(*net.example(batch)).mean().item()  # which waits for the device

    if slow := slowness(str(net.dtype).removeprefix("torch."), net.device):
        console.print(slow, markup=False)
    if batch_size is None:
        batch_size = best_batch(call, net.device, count, steps)
    batch = max(1, min(batch_size, count))
    while True:
        try:
            if wanted(net, net.dtype, compile, partial(call, batch), steps * count / batch, FEW):
                compile_and_tell(net, partial(call, batch), console, dynamic=True)
            return pipe, batch_size
        except RuntimeError as error:
            if batch == 1 or not out_of_memory(error):
                raise
            batch = batch_size = batch // 2
            console.print(f"memory is too small for the batch; going on with {batch} at a time", highlight=False)
