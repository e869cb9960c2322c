"""Distributed training: the place of each process in a run, data parallelism (DDP), sharding (FSDP2), and sequence
parallelism (`ditlab.backbones.token_share`).

A launcher (torchrun, Slurm, Kubernetes) starts the processes; without a launcher there is a single process, which does
not communicate. As in torchtitan, activation checkpointing and compilation come before DDP or FSDP2.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
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
from ditlab.backbones.token_share import TokenShare
from ditlab.config.parallel import Parallel
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError, RunError
from ditlab.core.units import counted
from ditlab.training.hanging import lost_processes

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """The place of this process among all processes of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1
    group: Any = None  # the processes that exchange values; None is all processes of the run
    sequence: int = 1  # processes with consecutive ranks that compute the same images, and share their tokens

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    @property
    def teams(self) -> int:
        """The number of parts into which a batch is divided among processes."""
        return self.world // self.sequence

    @property
    def leads(self) -> bool:
        """Whether this process counts the images of its part of a batch, among those that compute the same."""
        return self.rank % self.sequence == 0

    def in_sequence(self, count: int) -> "Place":
        """The same place if `count` processes share the tokens of each image.

        Raises:
            InputError: the processes cannot be divided in this way.
        """
        if self.world % count:
            raise InputError(
                f"parallel.sequence is {count}, which does not divide {counted(self.world, 'process')}; start {count} "
                f"or a multiple with torchrun, or omit parallel.sequence"
            )
        return replace(self, sequence=count)

    def token_share(self) -> TokenShare:
        """This process's part of the tokens of each image; all processes must call."""
        mesh = init_device_mesh(self.device.type, (self.teams, self.sequence), mesh_dim_names=("images", "tokens"))
        return TokenShare(self.rank % self.sequence, self.sequence, mesh.get_group("tokens"))

    def share(self, batch: int, parts: int) -> int:
        """The most images that a process computes at a time.

        Args:
            batch: images in a batch of all processes.
            parts: parts that each process computes one after the other.

        Raises:
            InputError: a process would have fewer images than parts.
        """
        if batch // self.teams < parts:
            groups = f" ({self.sequence} for each image)" if self.sequence > 1 else ""
            raise InputError(
                f"a batch of {batch} cannot be shared among {counted(self.world, 'process')}{groups} in "
                f"{counted(parts, 'part')}; set train.batch to {self.teams * parts} or more, or use fewer processes or "
                "a lower parallel.accumulate"
            )
        return math.ceil(math.ceil(batch / self.teams) / parts)

    def rows(self, batch: int) -> slice:
        """The rows of a batch that this process computes; different parts differ by one row at most."""
        team = self.rank // self.sequence
        return slice(batch * team // self.teams, batch * (team + 1) // self.teams)

    def apart(self, seconds: int) -> "Place":
        """The same place with a connection of its own, for a thread beside the training; all processes must call.

        Args:
            seconds: timeout for a process that does not respond.
        """
        if self.world == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds)))

    def agree(self, value: T) -> T:
        """The value of the first process; all processes must call."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def first_does(self, work: Callable[[], T]) -> T:
        """Call a function in the first process; all processes return its result, or raise its InputError.

        Raises:
            InputError: the function raised it in the first process.
        """
        result: tuple[T | None, str] = (None, "")
        if self.first:
            try:
                result = work(), ""
            except InputError as error:
                result = None, str(error)
        value, message = self.agree(result)
        if message:
            raise InputError(message)
        return cast(T, value)

    def collect(self, values: list[T]) -> list[T]:
        """The values of all processes in the first process; each other process gets its own values."""
        if self.world == 1:
            return values
        lists: list[Any] | None = [None] * self.world if self.first else None
        dist.gather_object(values, lists, dst=0, group=self.group)
        return values if lists is None else [value for part in lists for value in part]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU; for metrics, not for gradients."""
        values = values.detach().cpu().clone()
        if self.world > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over all processes, for parameters that DDP does not manage."""
        if self.world > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.world

    def maximum(self, value: int) -> int:
        """The largest value of all processes."""
        if self.world == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: str, seconds: int, stacks: Path | None = None) -> Iterator[Place]:
    """Join the process group of the launcher for the enclosed block; without a launcher there is one process.

    Args:
        device: name of the device, as in `pick_device`.
        seconds: timeout for a process that does not respond.
        stacks: folder in which processes that hang write their stacks.

    Raises:
        InputError: processes did not connect, or there are more processes than accelerators.
        RunError: a process ended, or did not respond in time.
    """
    process_device = pick_device(device)
    rank, world = process_place()
    if world == 1:
        yield Place(process_device)
        return
    if process_device.type == "cuda":
        torch.cuda.set_device(process_device)
    # Metrics are exchanged with gloo, so that they need not wait for the device.
    backend = "cpu:gloo,cuda:nccl" if process_device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, **meeting_point(seconds))
        spare = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))  # to find who does not respond
    except (dist.DistError, RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        line = str(error).splitlines()[0]
        raise InputError(
            f"the {world} processes did not find each other at {where} within {seconds} s ({line})"
        ) from error
    try:
        yield Place(process_device, rank, world, dist.group.WORLD)
    except RuntimeError as error:
        if not has_lost_process(error):
            raise
        line = str(error).splitlines()[0]
        named = lost_processes(spare, rank, stacks)
        problem = f"{named} did not respond" if named else "another process ended, or did not respond"
        raise RunError(
            f"rank {rank}: {problem} for {seconds} s ({line}); the same command resumes at the newest checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def meeting_point(seconds: int) -> dict[str, Any]:
    """The arguments of `init_process_group` by which the processes of the launcher find each other.

    After a restart, the store of torchrun still holds the addresses of the processes that have died (seen with PyTorch
    2.13), and a new process may wait for one of them. On one machine, each restart therefore has keys of its own. With
    several machines the restarts are counted by each, so that the number is no common name.
    """
    limit = timedelta(seconds=seconds)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {"timeout": limit}
    store, rank, world = next(dist.rendezvous("env://", timeout=limit))  # type: ignore[attr-defined]
    own = dist.PrefixStore(f"restart-{restarts}", store)  # type: ignore[attr-defined]
    return {"timeout": limit, "store": own, "rank": rank, "world_size": world}


LOST = ("gloo/", "NCCL", "Connection closed by peer", "Connection reset by peer", "Application timeout", "Broken pipe")
"""Parts of communication errors, of which gloo raises most as a plain RuntimeError."""


def has_lost_process(error: RuntimeError) -> bool:
    """Whether an error means that another process ended or did not respond."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in LOST)


def keep_inputs_only(net: Backbone) -> None:
    """Enable activation checkpointing: blocks keep only their inputs and are recomputed in the backward pass."""
    for block in net.repeated:
        block.forward = kept_inputs(block.forward)


def kept_inputs(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a forward pass in activation checkpointing; compilers can trace the block only in a separate function."""

    def checkpointed(*inputs: Any) -> Tensor:
        return cast(Tensor, checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False))

    return checkpointed


def spread(net: Backbone, settings: Parallel, place: Place) -> Callable[..., Tensor]:
    """Wrap a network in DDP; call the result instead of the network for gradients.

    Args:
        net: the network; it is returned unchanged if it is sharded, or if there is one process.
        settings: the [parallel] section of the recipe.
        place: the place of this process.
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
    """Shard a network in place with FSDP2: each process holds a part of each weight.

    Raises:
        InputError: there is a single process, or nodes have different numbers of processes with "hybrid".
    """
    if place.world == 1:
        raise InputError("parallel.shard needs several processes; start them with torchrun, or omit parallel.shard")
    shape = mesh_shape(settings, place.world)
    mesh = init_device_mesh(place.device.type, shape, mesh_dim_names=("copied", "sharded")[-len(shape) :])
    for block in net.repeated:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def mesh_shape(settings: Parallel, world: int) -> tuple[int, ...]:
    """Shape of the device mesh: (processes,) for "full", (nodes, processes of a node) for "hybrid"."""
    if settings.shard == "full":
        return (world,)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % local:
        raise InputError(
            f"parallel.shard hybrid with {local} of {world} processes on this node; start {local} on each node"
        )
    return world // local, local


def no_exchange(network: Callable[..., Tensor], last: bool) -> AbstractContextManager[Any]:
    """A context for one part of a batch: processes exchange gradients only with the last part."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


def local(values: Iterable[Tensor]) -> list[Tensor]:
    """The part of each value that this process holds."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


def place_like(value: Tensor, like: Tensor) -> Tensor:
    """Move a complete tensor to the device of another tensor, and shard it in the same way."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    # All processes have read the same file, so nothing need be sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """The complete tensor of a value that may be sharded; then all processes must call."""
    return value.full_tensor() if isinstance(value, DTensor) else value


# The warning does not apply: the view that the last linear layer returns is never changed in place.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
