"""Several processes of a run, forked from the test, so that they need not import PyTorch again."""

import multiprocessing
import os
import traceback

from helpers import free_port

FORK = multiprocessing.get_context("fork")


def in_processes(world, work, *args, timeout=200):
    """Call work(*args) in the processes of a run, started as a launcher does; returns what each returned or raised."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    started = []
    for rank in range(world):
        ours, theirs = FORK.Pipe(duplex=False)
        started.append((FORK.Process(target=one, args=(rank, meeting, theirs, work, args), daemon=True), ours))
        started[-1][0].start()
    found = [ours.recv() if ours.poll(timeout) else "the process hangs" for _, ours in started]
    for process, _ in started:
        process.kill()
        process.join()
    return found


def one(rank, meeting, results, work, args):
    os.environ |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": meeting["WORLD_SIZE"]}
    try:
        found = work(*args)
    except BaseException as error:
        found = error if type(error).__module__.startswith("ditlab") else traceback.format_exc()
    results.send(found)
