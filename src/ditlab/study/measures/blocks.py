"""The outputs of all blocks of a network while it generates images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ditlab.config.evaluation import Evaluation
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.inference.pipeline import Pipeline

Watcher = Callable[[int, Tensor], None]
"""(number of the block in the order of execution, its output) -> None; called for each block of each evaluation."""


def check(recipe: Recipe, settings: Evaluation) -> None:
    """Check that all blocks are computed in every step.

    Raises:
        InputError: feature caching is set.
    """
    if settings.reuse is not None:
        raise InputError(
            f"reuse is {settings.reuse}, with which blocks are left out; remove reuse from this evaluation"
        )


@torch.inference_mode()
def watch_blocks(pipe: Pipeline, settings: Evaluation, watcher: Watcher, begin: Callable[[], None]) -> None:
    """Generate images, and hand on the output of each block.

    Args:
        pipe: the model.
        settings: number of images, seed, batch size, and sampling settings.
        watcher: receives the outputs.
        begin: called before each batch of images.

    Raises:
        InputError: the network has no list of blocks.
    """
    heads = {id(pipe.net.get_submodule(name.partition(".")[0])) for name in pipe.net.heads_out}
    blocks = [block for block in pipe.net.repeated if id(block) not in heads]
    if not blocks:
        raise InputError(f"{pipe.net.config['name']} has no list of blocks; leave it out of this evaluation")
    hooks = [block.register_forward_hook(hook(number, watcher)) for number, block in enumerate(blocks)]
    values = pipe.examples
    try:
        for start in range(0, settings.count, settings.batch_size):
            numbers = range(start, min(start + settings.batch_size, settings.count))
            labels = [values[number % len(values)] for number in numbers]
            begin()
            for _ in pipe.steps(
                labels, seeds=[settings.seed + number for number in numbers], **settings.sampling().given()
            ):
                pass
    finally:
        for handle in hooks:
            handle.remove()


def hook(number: int, watcher: Watcher) -> Callable[[nn.Module, object, object], None]:
    """A forward hook that hands on the output of a block, the first one if it has several."""

    def forward(module: nn.Module, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        assert isinstance(first, Tensor)
        watcher(number, first.float())

    return forward
