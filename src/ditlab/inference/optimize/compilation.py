"""Compiling a network's repeated blocks, with fallback to eager execution where that fails or does not pay off.

Blocks are compiled one by one: the result is as fast as the compiled whole, and compiling takes a tenth of the time,
because equal blocks share their code.
"""

import time
from collections.abc import Callable

import torch
from rich.console import Console

from ditlab.backbones import Backbone
from ditlab.inference.optimize.packing import hide_from_compilers

SECONDS = 20.0  # to compile one kind of block on two cores without a cache; measured 5 to 20
# The least speedup, see docs/benchmarks.md, in sampling and in training, which has more element-wise work.
GAIN = {
    ("cpu", torch.float32): (1.05, 1.1),
    ("cpu", torch.bfloat16): (1.05, 1.25),
    ("cuda", torch.bfloat16): (1.3, 1.3),
}
KINDS = (
    256  # of one block in all networks of a process; by default torch compiles eight and silently runs others eagerly
)


def pays(net: Backbone, dtype: torch.dtype, seconds: float) -> bool:
    """Whether compiling shortens work in this precision that takes `seconds` without it."""
    gain = GAIN.get((net.device.type, dtype), (1.0, 1.0))[net.training]
    kinds = {tuple(parameter.shape for parameter in block.parameters()) for block in net.repeated}
    return bool(kinds) and seconds * (1 - 1 / gain) > 2 * SECONDS * len(kinds)


def wanted(net: Backbone, dtype: torch.dtype, setting: str, work: Callable[[], object], times: float, few: int) -> bool:
    """Whether to compile for work that will be repeated.

    Args:
        net: the network.
        dtype: precision of the work.
        setting: "always", "never", or "auto", which times the work and compiles if that shortens it.
        work: runs the network once.
        times: number of repetitions.
        few: with fewer repetitions nothing is timed or compiled.
    """
    if setting != "auto":
        return setting == "always" and bool(net.repeated)
    if times < few:
        return False
    work()
    start = time.perf_counter()
    work()
    return pays(net, dtype, times * (time.perf_counter() - start))


def compile_and_tell(net: Backbone, work: Callable[[], object], console: Console, *, dynamic: bool) -> None:
    """`compile_blocks`, with a message before and after it."""
    console.print(f"compiling {len(net.repeated)} blocks", highlight=False)
    seconds = compile_blocks(net, work, dynamic=dynamic)
    outcome = "which failed here; going on without" if seconds is None else f"which took {seconds:.0f} s"
    console.print(outcome, highlight=False)


def compile_blocks(net: Backbone, work: Callable[[], object], *, dynamic: bool) -> float | None:
    """Compile the network's blocks in place; its weights and their names stay as they are.

    Args:
        net: the network.
        work: runs it as it will be run later, so that compiling happens now.
        dynamic: compile for any batch size, which costs up to 6 % of the speed; otherwise each size is compiled.

    Returns:
        Seconds that it took; None if there is no compiler, or it failed: then the network is as before.
    """
    import torch._dynamo  # imported only when needed: it takes seconds

    start = time.perf_counter()
    hide_from_compilers()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    for block in net.repeated:
        block.compile(dynamic=dynamic)
    try:
        work()
    except RuntimeError:  # the base of all errors of the compiler
        for block in net.repeated:
            block._compiled_call_impl = None
        work()  # an error that is not the compiler's is raised again
        return None
    return time.perf_counter() - start


def is_compiled(net: Backbone) -> bool:
    """Whether `compile_blocks` compiled this network."""
    return any(block._compiled_call_impl is not None for block in net.repeated)
