"""Memory and time of a DiT-S/2 whose tokens two processes share, against one process.

    python benchmarks/sequence.py [TOKENS ...]

Each process has one thread and computes the gradient of one image in float32. The memory is what is kept for the
backward pass besides the weights, the time that of the CPU in a process; neither depends on the load of the machine.
"""

import os
import sys
import time
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ditlab.backbones import Backbone, create
from ditlab.training.parallel import Place

ROUNDS = 3
PORT = "29655"


def step(net: Backbone) -> tuple[float, float]:
    """Compute a gradient; returns the bytes that are kept for it, and the seconds of CPU time."""
    weights = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return value

    started = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = net(*net.example(1)).square().mean()
    size = float(sum(kept.values()))
    loss.backward()  # type: ignore[no-untyped-call]
    return size, time.process_time() - started


def work(rank: int, counts: list[int]) -> None:
    """Measure in one of two processes; the other one waits while the first computes alone."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    share = Place(torch.device("cpu"), rank, 2).in_sequence(2).token_share()
    for tokens in counts:
        net = create("DiT-S/2", size=2 * round(tokens**0.5), learn_variance=False)
        measured: dict[str, list[tuple[float, float]]] = {"alone": [], "shared": []}
        for _ in range(ROUNDS):
            dist.barrier()
            net.share_tokens(None)
            if rank == 0:
                measured["alone"].append(step(net))
            dist.barrier()
            net.share_tokens(share)
            measured["shared"].append(step(net))
        if rank == 0:
            (one, alone), (part, shared) = (
                [median(part) for part in zip(*rows, strict=True)] for rows in measured.values()
            )
            print(
                f"| {tokens:,} | {one / 2**20:,.0f} MiB | {part / 2**20:,.0f} MiB | {part / one:.3f} | {alone:.1f} s | "
                f"{shared:.1f} s |",
                flush=True,
            )
    dist.destroy_process_group()


def main() -> None:
    """Measure and print the rows of the table."""
    counts = [int(argument) for argument in sys.argv[1:]] or [1024, 4096]
    print(
        "| tokens | kept by one process | by each of two | share | CPU time of one | of each of two |\n"
        "|---|---|---|---|---|---|"
    )
    mp.spawn(work, (counts,), nprocs=2)


if __name__ == "__main__":
    main()
