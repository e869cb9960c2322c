"""Compile the repeated blocks of a network, with fallback to eager execution.

Blocks are compiled separately. This is as fast as compiling the whole network, and compilation takes a tenth of the
time, because equal blocks share their code.
"""

import math
import time
from collections.abc import Callable
from functools import cache

import torch
from rich.console import Console

from ditlab.backbones import Backbone
from ditlab.core.terminal import say
from ditlab.core.units import counted
from ditlab.inference.optimize.packing import PackedLinear
from ditlab.inference.optimize.quantized import OneDNNLinear

SECONDS = 20.0  # compilation time of one kind of block on two cores without a cache; measured: 5 to 20 s
# Smallest measured speedups in sampling and in training, which has more element-wise work; see docs/benchmarks.md.
GAIN = {
    ("cpu", torch.float32): (1.05, 1.1),
    ("cpu", torch.bfloat16): (1.05, 1.25),
    ("cuda", torch.bfloat16): (1.3, 1.3),
}
KINDS = (
    256  # variants of one block in a process; by default torch compiles eight, and runs others eagerly without a note
)


def pays(net: Backbone, dtype: torch.dtype, seconds: float) -> bool:
    """Whether compilation saves time, for work in this precision that takes `seconds` without it."""
    gain = GAIN.get((net.device.type, dtype), (1.0, 1.0))[net.training]
    if net.quantized and net.device.type == "cpu":  # slower when compiled, measured
        return False
    kinds = {tuple(parameter.shape for parameter in block.parameters()) for block in net.repeated}
    return bool(kinds) and seconds * (1 - 1 / gain) > 2 * SECONDS * len(kinds)


def wanted(
    net: Backbone,
    dtype: torch.dtype,
    setting: str,
    work: Callable[[], object],
    times: float,
    few: int,
    seconds: float = math.inf,
) -> bool:
    """Whether to compile a network for repeated work.

    Args:
        net: the network.
        dtype: precision of the work.
        setting: "always", "never", or "auto", which measures the work and compiles if that saves time.
        work: runs the network once.
        times: number of repetitions.
        few: with fewer repetitions, "auto" neither measures nor compiles.
        seconds: longest time of the repeated work.
    """
    if setting != "auto":
        return setting == "always" and bool(net.repeated)
    if times < few:
        return False
    work()
    start = time.perf_counter()
    work()
    return pays(net, dtype, min(seconds, times * (time.perf_counter() - start)))


@cache
def hide_from_compilers() -> None:
    """Exclude packed products from compilation, because compilers cannot read their weights.

    This imports PyTorch's compiler, which takes two seconds, so that it is only called before the first compilation.
    """
    for owner, name in ((PackedLinear, "forward"), (OneDNNLinear, "multiplied")):
        setattr(owner, name, torch.compiler.disable(getattr(owner, name)))  # type: ignore[no-untyped-call]


def compile_and_tell(net: Backbone, work: Callable[[], object], console: Console, *, dynamic: bool) -> None:
    """Compile the blocks of a network (`compile_blocks`), with a message before and after it."""
    say(console, f"compiling {counted(len(net.repeated), 'block')}")
    seconds = compile_blocks(net, work, dynamic=dynamic)
    outcome = "failed; continuing without" if seconds is None else f"took {seconds:.0f} s"
    say(console, f"compilation {outcome}")


def compile_blocks(net: Backbone, work: Callable[[], object], *, dynamic: bool) -> float | None:
    """Compile the blocks of a network in place; weights and their names do not change.

    Args:
        net: the network.
        work: runs the network as it will be run later, so that compilation happens now.
        dynamic: compile once for all batch sizes, which costs up to 6 % of the speed; otherwise every size is compiled.

    Returns:
        Compilation time in seconds; None if there is no compiler or it failed, and the network is unchanged.
    """
    import torch._dynamo  # imported here, because it takes seconds

    start = time.perf_counter()
    hide_from_compilers()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    for block in net.repeated:
        block.compile(dynamic=dynamic)
    try:
        work()
    except RuntimeError:  # the base class of all errors of the compiler
        for block in net.repeated:
            block._compiled_call_impl = None
        work()  # raises the error again if it is not an error of the compiler
        return None
    return time.perf_counter() - start


def is_compiled(net: Backbone) -> bool:
    """Whether `compile_blocks` compiled this network."""
    return any(block._compiled_call_impl is not None for block in net.repeated)
