"""Compiling a network's repeated blocks, with the plain way where that fails or does not pay.

Blocks are compiled one by one: as fast as the whole, in a tenth of the time, because blocks of a kind share their code.
"""

import time
from collections.abc import Callable

import torch
from rich.console import Console

from ditlab.backbones import Backbone
from ditlab.inference.optimize.packing import hide_from_compilers

SECONDS = 20.0  # that compiling a kind of block takes on two cores when nothing of it is cached; measured 5 to 20
# What it gains at the least, see docs/benchmarks.md, in drawing and in training, which has more element-wise work.
GAIN = {
    ("cpu", torch.float32): (1.05, 1.1),
    ("cpu", torch.bfloat16): (1.05, 1.25),
    ("cuda", torch.bfloat16): (1.3, 1.3),
}
KINDS = 256  # of one block in all networks of a process; torch compiles eight, and silently runs the rest as they are


def pays(net: Backbone, dtype: torch.dtype, seconds: float) -> bool:
    """Whether compiling shortens work in this precision that would take so many seconds without."""
    gain = GAIN.get((net.device.type, dtype), (1.0, 1.0))[net.training]
    kinds = {tuple(parameter.shape for parameter in block.parameters()) for block in net.repeated}
    return bool(kinds) and seconds * (1 - 1 / gain) > 2 * SECONDS * len(kinds)


def wanted(net: Backbone, dtype: torch.dtype, setting: str, work: Callable[[], object], times: float, few: int) -> bool:
    """Whether to compile for work that will be done so many times.

    Args:
        net: the network.
        dtype: precision of the work.
        setting: "always", "never", or "auto": if that shortens it, which is timed.
        work: runs the network once.
        times: how often that will be done.
        few: fewer times are not even timed.
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
    """`compile_blocks`, with a line before it and one after it."""
    console.print(f"compiling {len(net.repeated)} blocks", highlight=False)
    seconds = compile_blocks(net, work, dynamic=dynamic)
    told = "which failed here; going on without" if seconds is None else f"which took {seconds:.0f} s"
    console.print(told, highlight=False)


def compile_blocks(net: Backbone, work: Callable[[], object], *, dynamic: bool) -> float | None:
    """Compile the network's blocks in place; its weights and their names stay as they are.

    Args:
        net: the network.
        work: runs it as it will be run, so that compiling happens now.
        dynamic: for any batch size, at up to 6 % of the speed; otherwise each size is compiled anew.

    Returns:
        Seconds that it took; None where there is no compiler, or it failed: the network is as before.
    """
    import torch._dynamo  # not before it is needed: it takes seconds

    start = time.perf_counter()
    hide_from_compilers()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    for block in net.repeated:
        block.compile(dynamic=dynamic)
    try:
        work()
    except RuntimeError:  # of which all errors of the compiler are a kind
        for block in net.repeated:
            block._compiled_call_impl = None
        work()  # what is not the compiler's fault comes again
        return None
    return time.perf_counter() - start


def is_compiled(net: Backbone) -> bool:
    """Whether `compile_blocks` was here."""
    return any(block._compiled_call_impl is not None for block in net.repeated)
