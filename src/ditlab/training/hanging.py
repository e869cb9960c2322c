"""Find processes that hang: each writes its stack if a step takes too long, and the others name it."""

import faulthandler
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch.distributed as dist

EARLY = 0.8  # share of the timeout after which a process writes its stack, before the others end the run
LATE = 10  # seconds to wait for the processes that can still respond


class Watch:
    """Writes the stack of this process if a step takes too long; see `watched`."""

    def __init__(self, file: TextIOWrapper | None, seconds: float) -> None:
        self.file, self.seconds = file, seconds

    def step(self) -> None:
        """Report that a step begins."""
        if self.file is not None:
            faulthandler.dump_traceback_later(self.seconds, file=self.file)


@contextmanager
def watched(folder: Path, rank: int, world: int, seconds: int) -> Iterator[Watch]:
    """Watch over the steps of this process during the block.

    Args:
        folder: where `rank-N.txt` is written; removed at the end if nothing was.
        rank: of this process.
        world: number of processes; a single one waits for no other and is not watched.
        seconds: timeout for a process that does not respond.
    """
    if world == 1:
        yield Watch(None, seconds)
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = stack_file(folder, rank)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        try:
            yield Watch(file, EARLY * seconds)
        finally:
            faulthandler.cancel_dump_traceback_later()
    if not path.stat().st_size:
        path.unlink()
        with suppress(OSError):  # another process has written its stack, or is not at its end yet
            folder.rmdir()


def stack_file(folder: Path, rank: int) -> Path:
    """The file with the stack of a process that hung."""
    return folder / f"rank-{rank}.txt"


def lost_processes(group: Any, rank: int, folder: Path | None) -> str:
    """Name the processes that do not respond, after an exchange with them has failed; empty if that is not known.

    Args:
        group: a connection of all processes that has not failed yet.
        rank: of this process; the first one asks the others.
        folder: where their stacks are.
    """
    try:
        dist.monitored_barrier(group, timedelta(seconds=LATE), wait_all_ranks=True)
        return ""
    except RuntimeError as error:
        text = str(error)
    named = re.search(r"Ranks ([\d, ]+) failed to pass", text)
    if named is None and (rank == 0 or "Timed out" not in text):
        return ""
    ranks = [int(number) for number in named[1].split(",")] if named else [0]
    return ", ".join(f"rank {number}{stack_of(number, folder)}" for number in ranks)


def stack_of(rank: int, folder: Path | None) -> str:
    """Where a process hangs, in parentheses; empty if it could not write its stack."""
    file = None if folder is None else stack_file(folder, rank)
    lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []
    threads = [i for i, line in enumerate(lines) if line.startswith(("Thread", "Current thread"))]
    if not threads:
        return ""
    call = re.fullmatch(
        r'\s*File "(.*)", line (\d+) in (.*)', lines[threads[-1] + 1]
    )  # the main thread is the last one
    where = f" in {call[3]}, {call[1]}:{call[2]}" if call else ""
    return f" (it hangs{where}; all its stacks: {file})"
