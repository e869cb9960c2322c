"""One run on many processes: who is who, and a network spread over them with PyTorch's own engine.

A launcher (torchrun, Slurm, Kubernetes) starts the processes; without one there is a single process and nothing of this
costs anything. In the order that torchtitan uses: activation checkpointing, compiled blocks, then DDP or FSDP2.
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
    """This process among all of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, batch: int, parts: int) -> int:
        """Pictures that this process takes at a time, of a batch for all that passes in so many parts.

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
        """What the first process's work returns, or the InputError that it raises: in all of them.

        Raises:
            InputError: that of the first process.
        """
        found: tuple[T | None, str] = (None, "")
        if self.first:
            try:
                found = work(), ""
            except InputError as error:
                found = None, str(error)
        value, wrong = self.agree(found)
        if wrong:
            raise InputError(wrong)
        return cast(T, value)

    def collect(self, values: list[T]) -> list[T]:
        """The values of all processes, for the first one; its own for the others."""
        if self.world == 1:
            return values
        every: list[Any] | None = [None] * self.world if self.first else None
        dist.gather_object(values, every, dst=0)
        return values if every is None else [value for each in every for value in each]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU; for numbers that are told, not for gradients."""
        values = values.detach().cpu().clone()
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def most(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: str, seconds: int) -> Iterator[Place]:
    """This process in the group that its launcher made; alone where there is none.

    Args:
        device: as in `pick_device`.
        seconds: how long to wait for a process that says nothing.

    Raises:
        InputError: processes that do not find each other, or too many for the accelerators.
        RunError: one that ended, or said nothing for too long.
    """
    own = pick_device(device)
    rank, world = process_place()
    if world == 1:
        yield Place(own)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # Numbers that are told travel over gloo, so that they need not wait for the device.
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
            f"rank {rank}: another process ended, or said nothing for {seconds} s ({line}); "
            "the same command resumes at the newest checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


LOST = ("gloo/", "NCCL", "Connection closed by peer", "Connection reset by peer")  # in errors of talking to others


def keep_inputs_only(net: Backbone) -> None:
    """Activation checkpointing: blocks keep their inputs alone, and are computed again in the backward pass."""
    for block in net.repeated:
        block.forward = kept_inputs(block.forward)


def kept_inputs(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward pass that keeps its inputs alone; a function of its own, so that compilers see what is inside."""

    def through(*given: Any) -> Tensor:
        return cast(Tensor, checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False))

    return through


def spread(net: Backbone, settings: Parallel, place: Place) -> Callable[..., Tensor]:
    """The network over all processes; what it returns is called in its stead.

    Args:
        net: the network; itself where it is sharded already, or alone.
        settings: how.
        place: this process.
    """
    if place.world == 1 or settings.shard != "none":
        return net
    return DistributedDataParallel(
        net,
        device_ids=[place.device.index] if place.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=net.dynamic_depth,  # in some steps no image reaches the late blocks
    )


def shard(net: Backbone, settings: Parallel, place: Place) -> None:
    """FSDP2: every process holds a part of each weight; in place.

    Raises:
        InputError: a single process, or "hybrid" where nodes have different numbers of processes.
    """
    if place.world == 1:
        raise InputError("parallel.shard needs several processes; start them with torchrun, or leave it out")
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
    """Around a part of a batch: gradients are exchanged with the last one only."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


def local(values: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


def place_like(value: Tensor, like: Tensor) -> Tensor:
    """A value that every process has whole, on the device of another one, and cut into parts as that is."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    # Every process has read the same file: nothing need be sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """All of a value that may be spread over processes."""
    return value.full_tensor() if isinstance(value, DTensor) else value


# A view that the last linear layer returns is never changed in place here.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
