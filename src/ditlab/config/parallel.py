"""The section [parallel] of a recipe: how a run is distributed over processes, and what it keeps in memory."""

from dataclasses import dataclass
from typing import Literal

from ditlab.config.fields import setting
from ditlab.config.values import Whole


@dataclass(frozen=True)
class Parallel:
    """How a run is distributed over processes and memory; these settings do not change the result."""

    shard: Literal["none", "full", "hybrid"] = "none"
    """none: all weights in every process (DDP); full: sharded over all processes (FSDP2); hybrid: sharded within each
    node (HSDP)."""
    sequence: Whole = setting(1, at_least=1)
    """Sequence parallelism: number of processes that share the tokens of each image."""
    checkpointing: bool = False
    """Activation checkpointing: recompute the blocks in the backward pass instead of storing their activations."""
    accumulate: Whole = setting(1, at_least=1)
    """Gradient accumulation: number of parts of a batch that are processed one after another."""
    offload: tuple[Literal["average", "moments", "activations"], ...] = ()
    """What is kept in the memory of the host instead of the GPU: average, moments, activations."""
    checkpoint: Literal["auto", "whole", "sharded"] = "auto"
    """How checkpoints are written: whole by the first process, or sharded: each process writes its part. auto is
    sharded for a run with shard whose checkpoints have 8 GiB or more."""
    check_memory: bool = True
    """Refuse a run that is predicted to need more than 1.5 times the memory of the machine."""
    timeout: Whole = setting(600, at_least=1)
    """Seconds to wait for a process that does not respond."""
    check_every: Whole = setting(128_000, not_negative=True)
    """With several processes: images between comparisons of their weights, averages and moments, which are compared
    before each checkpoint too (0 disables both)."""
