"""Runs that lose processes: the processes that are left compute the same batches, each with the memory that it had.

A launcher that restarts processes may start fewer of them than before. The batch of a run stays the same, and so does
the number of images that a process computes at a time, so each process computes its images in more parts.
"""

import os
import warnings

from ditlab.core.units import counted
from ditlab.core.weights import newest_checkpoint, read_config
from ditlab.training.job import Job
from ditlab.training.parallel import Place

PROCESSES = "processes"  # key of config.json: number of processes, and the images that each computes at a time


def restarted_by_launcher() -> bool:
    """Whether the launcher restarts processes, so that nobody can adapt the recipe to their number."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def left_alone(place: Place) -> bool:
    """Whether this process may be the last one of a run that had several."""
    return place.world == 1 and restarted_by_launcher()


def divide_batch(job: Job) -> None:
    """Choose the number of parts in which each process computes its images of a batch.

    Raises:
        InputError: a process would have fewer images than parts, or the processes cannot share tokens.
    """
    if not left_alone(job.place):
        job.place = job.place.in_sequence(job.recipe.parallel.sequence)
    place, batch = job.place, job.recipe.train.batch
    job.parts = job.recipe.parallel.accumulate
    job.processes = {"count": place.world, "at_once": place.share(batch, job.parts)}
    before = place.first_does(lambda: saved_processes(job)) if restarted_by_launcher() else {}
    if before and place.world < before["count"]:
        job.processes = before
        job.parts = max(job.parts, -(-place.share(batch, 1) // before["at_once"]))
        job.say(
            f"{place.world} of {counted(before['count'], 'process')} are left; each computes its images of a batch in "
            f"{counted(job.parts, 'part')}"
        )
    if batch % place.teams:
        low = batch // place.teams
        job.say(f"{counted(place.world, 'process')} share a batch of {batch}: {low} or {low + 1} images each")


def saved_processes(job: Job) -> dict[str, int]:
    """The processes of the run up to its newest checkpoint; empty if there was one process, or no checkpoint."""
    with warnings.catch_warnings(action="ignore"):  # `restore` warns of damaged checkpoints
        checkpoint = newest_checkpoint(job.folder.folder)
    return {} if checkpoint is None else dict(read_config(checkpoint).get(PROCESSES, {}))
