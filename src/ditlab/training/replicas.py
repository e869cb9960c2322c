"""Compare what the processes of a run hold in common, to find a process whose memory or arithmetic is faulty."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ditlab.core.errors import RunError
from ditlab.core.units import counted
from ditlab.training.parallel import Place
from ditlab.training.state import TrainState


def check_replicas(state: TrainState, place: Place) -> None:
    """Check that all processes hold the same weights, averages and moments, and finite ones; all must call.

    Each process sums the bits of each of its tensors. Sharded tensors are compared with those of the processes that
    hold the same part.

    Raises:
        RunError: they differ, or are not finite; the message names the processes and a tensor.
    """
    if place.world == 1:
        return
    named = dict(tensors_of(state))
    sums = torch.stack([checksum(value) for value in named.values()])
    ruined = torch.stack([~part_of(value).isfinite().all() for value in named.values()]).cpu()
    rows = [torch.zeros_like(sums) for _ in range(place.world)]
    dist.all_gather(rows, sums, group=place.group)
    finite = [torch.zeros_like(ruined) for _ in range(place.world)]
    dist.all_gather(finite, ruined, group=place.group)
    where = f"after {counted(state.seen, 'image')}; the same command resumes at the newest checkpoint"
    names = list(named)
    for i, name in enumerate(names):
        ranks = [rank for rank in range(place.world) if finite[rank][i]]
        if 0 < len(ranks) < place.world:  # of all processes, it is no fault of one, and `save` reports it
            raise RunError(f"{in_words(ranks)}: {name} is not finite {where}")
    parts = place_of_parts(next(iter(state.net.parameters())), place)
    for i, name in enumerate(names):
        if ranks := minority([(parts[rank], int(rows[rank][i])) for rank in range(place.world)]):
            raise RunError(f"{in_words(ranks)}: {name} differs from that of the other processes {where}")


def in_words(ranks: list[int]) -> str:
    """Numbers of processes as text."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def tensors_of(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    """What all processes hold in common: name -> tensor."""
    yield from ((name, value.detach()) for name, value in state.net.named_parameters())
    yield from ((f"the average of {name}", value.detach()) for name, value in state.ema.net.named_parameters())
    yield from ((f"the trained {name}", value.detach()) for name, value in state.further.named_parameters())
    for number, values in state.optimizer.state_dict()["state"].items():
        yield from ((f"moment {key} {number}", part) for key, value in values.items() for part in plain_parts(value))


def plain_parts(value: Tensor) -> list[Tensor]:
    """The tensors that hold the numbers of a tensor: itself, or those inside of it, as of moments of 8 bits."""
    if isinstance(value, DTensor) or not is_traceable_wrapper_subclass(value):
        return [value] if value.ndim else []
    return [getattr(value, name) for name in value.__tensor_flatten__()[0]]


def part_of(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return value.to_local() if isinstance(value, DTensor) else value


def checksum(value: Tensor) -> Tensor:
    """The sum of the bits of the part of a tensor that this process holds, as whole numbers; int64 ()."""
    own = part_of(value).contiguous().flatten()
    return own.view(torch.int32 if own.element_size() == 4 else torch.uint8).sum(dtype=torch.int64).cpu()


def place_of_parts(weight: Tensor, place: Place) -> list[Any]:
    """For each process, which part of all tensors it holds; processes with the same part must hold the same numbers."""
    if not isinstance(weight, DTensor):
        return [None] * place.world
    mesh, sharded = weight.device_mesh, [not isinstance(kind, Replicate) for kind in weight.placements]
    return [
        tuple(int(i) for i, part in zip((mesh.mesh == rank).nonzero()[0], sharded, strict=True) if part)
        for rank in range(place.world)
    ]


def minority(values: list[tuple[Any, int]]) -> list[int]:
    """Positions of the values that differ from the most frequent one of their part; all of it without a majority."""
    found = []
    for part in dict.fromkeys(part for part, _ in values):
        own = {i: value for i, (other, value) in enumerate(values) if other == part}
        (most, count), *others = Counter(own.values()).most_common()
        tied = bool(others) and others[0][1] == count
        found += [i for i, value in own.items() if value != most or tied]
    return found
