"""Prepare a pipeline for a known amount of work."""

from functools import partial
from typing import Any

import torch
from rich.console import Console

from ditlab.core.device import out_of_memory
from ditlab.core.terminal import say
from ditlab.inference.base import BasePipeline
from ditlab.inference.optimize.batch import best_batch
from ditlab.inference.optimize.compilation import compile_and_tell, wanted
from ditlab.inference.optimize.precision import slowness
from ditlab.inference.prepared import PreparedPipeline

FEW = 50  # with fewer network calls, timing and compiling take more time than they save


def ready(
    pipe: BasePipeline,
    console: Console,
    *,
    precision: str,
    compile: str,
    count: int,
    batch_size: int | None,
    options: dict[str, Any],
) -> tuple[PreparedPipeline, int]:
    """Prepare a model for generating `count` images on this machine; returns it with the batch size.

    Args:
        pipe: the model.
        console: console for messages.
        precision: as in `Pipeline.prepared`.
        compile: "always", "never", or "auto" (if that saves time).
        count: number of images that will be generated.
        batch_size: images at a time; None measures the fastest batch size.
        options: arguments of `BasePipeline.steps`.
    """
    prepared = pipe.model.prepared(precision)
    net, plan = prepared.net.eval(), pipe.resolve(**options)
    steps = plan.steps

    @torch.no_grad()
    def call(batch: int) -> None:
        net(*net.example(batch, size=plan.size)).mean().item()  # .item() waits for the device

    if slow := slowness(net.precision, net.device):
        say(console, slow)
    if batch_size is None:
        batch_size = best_batch(call, net.device, count, steps)
    batch = max(1, min(batch_size, count))
    while True:
        try:
            if wanted(net, net.dtype, compile, partial(call, batch), steps * count / batch, FEW):
                compile_and_tell(net, partial(call, batch), console, dynamic=True)
            return prepared, batch_size
        except RuntimeError as error:
            if batch == 1 or not out_of_memory(error):
                raise
            batch = batch_size = batch // 2
            say(console, f"not enough memory for the batch; continuing with {batch} at a time")
