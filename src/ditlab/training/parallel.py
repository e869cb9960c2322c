"""One run on many processes: the place of each, and a network spread over them with DDP or FSDP2.

A launcher (torchrun, Slurm, Kubernetes) starts the processes; without one there is a single process, and none of this
costs time. In the order that torchtitan uses: activation checkpointing, compiled blocks, then DDP or FSDP2.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ditlab.backbones import Backbone
from ditlab.config.sections import Parallel
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError, RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """The place of this process among all processes of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, batch: int, parts: int) -> int:
        """Images that this process takes at a time, of a batch that all processes share in a number of parts.

        Raises:
            InputError: a batch that cannot be shared equally.
        """
        each, rest = divmod(batch, self.world * parts)
        if rest or each == 0:
            low = max(1, batch // (self.world * parts)) * self.world * parts
            raise InputError(
                f"a batch of {batch} cannot be shared equally among {self.world} processes in {parts} parts; "
                f"give a train.batch of {low}, or other numbers of both"
            )
        return each

    def agree(self, value: T) -> T:
        """The first process's value."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def first_does(self, work: Callable[[], T]) -> T:
        """Let the first process work; all processes return its result, or raise its InputError.

        Raises:
            InputError: the one that the first process raised.
        """
        result: tuple[T | None, str] = (None, "")
        if self.first:
            try:
                result = work(), ""
            except InputError as error:
                result = None, str(error)
        value, wrong = self.agree(result)
        if wrong:
            raise InputError(wrong)
        return cast(T, value)

    def collect(self, values: list[T]) -> list[T]:
        """The values of all processes in the first one; the others get their own."""
        if self.world == 1:
            return values
        lists: list[Any] | None = [None] * self.world if self.first else None
        dist.gather_object(values, lists, dst=0)
        return values if lists is None else [value for part in lists for value in part]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU; for metrics, not for gradients."""
        values = values.detach().cpu().clone()
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over all processes, for parameters that DDP does not know."""
        if self.world > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.world

    def most(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: str, seconds: int) -> Iterator[Place]:
    """Join the process group of the launcher; a process without a launcher is alone.

    Args:
        device: as in `pick_device`.
        seconds: how long to wait for a process that does not respond.

    Raises:
        InputError: processes that do not find each other, or too many for the accelerators.
        RunError: a process ended, or did not respond in time.
    """
    own = pick_device(device)
    rank, world = process_place()
    if world == 1:
        yield Place(own)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # Metrics are exchanged over gloo, so that they need not wait for the device.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except (dist.DistError, RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        line = str(error).splitlines()[0]
        raise InputError(
            f"the {world} processes did not find each other at {where} within {seconds} s ({line})"
        ) from error
    try:
        yield Place(own, rank, world)
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST):
            raise
        line = str(error).splitlines()[0]
        raise RunError(
            f"rank {rank}: another process ended, or did not respond for {seconds} s ({line}); "
            "the same command resumes at the newest checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


LOST = ("gloo/", "NCCL", "Connection closed by peer", "Connection reset by peer")  # in errors of communication


def keep_inputs_only(net: Backbone) -> None:
    """Activation checkpointing: blocks keep only their inputs and run again in the backward pass; in place."""
    for block in net.repeated:
        block.forward = kept_inputs(block.forward)


def kept_inputs(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward pass that keeps only its inputs; a function of its own, so that compilers can trace the block."""

    def through(*given: Any) -> Tensor:
        return cast(Tensor, checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False))

    return through


def spread(net: Backbone, settings: Parallel, place: Place) -> Callable[..., Tensor]:
    """Spread a network over all processes; the result is called instead of the network.

    Args:
        net: the network; it is returned itself if it is sharded, or if there is one process.
        settings: of the recipe.
        place: this process.
    """
    if place.world == 1 or settings.shard != "none":
        return net
    return DistributedDataParallel(
        net,
        device_ids=[place.device.index] if place.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=net.dynamic_depth,  # in some batches no image reaches the late blocks
    )


def shard(net: Backbone, settings: Parallel, place: Place) -> None:
    """FSDP2: every process holds a part of each weight; in place.

    Raises:
        InputError: a single process, or "hybrid" where nodes have different numbers of processes.
    """
    if place.world == 1:
        raise InputError("parallel.shard needs several processes; start them with torchrun, or leave shard out")
    shape = mesh_shape(settings, place.world)
    mesh = init_device_mesh(place.device.type, shape, mesh_dim_names=("copied", "sharded")[-len(shape) :])
    for block in net.repeated:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def mesh_shape(settings: Parallel, world: int) -> tuple[int, ...]:
    """Processes along which weights are copied and sharded: (all) for full, (nodes, processes of a node) for hybrid."""
    if settings.shard == "full":
        return (world,)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % local:
        raise InputError(f"parallel.shard hybrid with {local} processes here of {world}; start as many on each node")
    return world // local, local


def no_exchange(network: Callable[..., Tensor], last: bool) -> AbstractContextManager[Any]:
    """Around one part of a batch: gradients are exchanged only with the last part."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


def local(values: Iterable[Tensor]) -> list[Tensor]:
    """The part of each value that this process holds."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


def place_like(value: Tensor, like: Tensor) -> Tensor:
    """A value that every process has whole, on the device of another value and sharded like it."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    # Every process has read the same file: nothing need be sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """A value that may be sharded, whole."""
    return value.full_tensor() if isinstance(value, DTensor) else value


# A view that the last linear layer returns is never changed in place here.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
