"""The training loop: batch, losses, optimizer step, averages; at intervals a log line, a preview and a checkpoint.

The order of images, noise, times and dropped conditions are functions of (seed, images seen). A resumed run therefore
gives the same weights as an uninterrupted one, on any number of processes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.config.reader import to_tables
from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.core.units import counted
from ditlab.core.weights import checkpoints
from ditlab.data import ahead
from ditlab.data.base import announced, numbered
from ditlab.diffusion.process import process_name
from ditlab.report.run import write_report
from ditlab.training.callbacks import Listeners
from ditlab.training.hanging import watched
from ditlab.training.job import Job
from ditlab.training.log import RunLog, Tally
from ditlab.training.losses import Losses, backward
from ditlab.training.optim import learning_rate
from ditlab.training.parallel import local, whole
from ditlab.training.preview import Guard
from ditlab.training.replicas import check_replicas, in_words
from ditlab.training.run_folder import STACKS
from ditlab.training.signals import check_own_signal, end, interruption
from ditlab.training.state import TrainState
from ditlab.training.trackers import trackers

EXPECTED = 16_384  # images before which the files that they need are fetched


def train_to_end(job: Job) -> None:
    """Train from `job.state.seen` images until the end of the recipe, a signal, or a callback that stops the run.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the state has been saved.
        SystemExit: with status 0 after SIGTERM, when the state has been saved.
    """
    recipe, settings, place, state, folder = job.recipe, job.recipe.train, job.place, job.state, job.folder
    listeners, guard = Listeners(), Guard(job.say)
    if place.first:
        run_trackers = trackers(settings.report, folder.folder, state.seen, to_tables(recipe))
        listeners = Listeners(run_trackers, job.callbacks)
    with (
        RunLog(
            folder.metrics, state.seen, settings.images, job.console, kept=place.first, seconds=job.seconds_left
        ) as log,
        interruption() as signals,
        ExitStack() as stack,
    ):
        for tracker in listeners.trackers:
            stack.callback(tracker.close)
        watch = stack.enter_context(watched(folder.folder / STACKS, place.rank, place.world, recipe.parallel.timeout))
        started = job.now - state.seconds
        steps = Steps(job)
        for batch in steps.batches(job.order()):
            watch.step()
            folder.check_written()
            before = state.seen
            rate = steps.take(batch)
            state.seconds = agreed(job, job.now - started)
            signal = place.maximum(max(signals, default=0))
            log.show(state.seen, state.tally.means)
            stop = agreed_stop(job, listeners.step(state.seen, state.net)) or job.finished
            if steps.due(settings.log_every, before):
                stop = write_log(job, log, listeners, rate) or stop
            saves = steps.due(settings.save_every, before) or bool(signal) or stop
            if (every := recipe.parallel.check_every) and (saves or steps.due(every, before)):
                check_replicas(state, place)
            # The preview comes before the checkpoint, because a run that resumes there would not repeat the preview.
            if steps.due(settings.preview_every, before):
                show_preview(job, listeners, guard)
            if saves:
                state.seconds = agreed(job, job.now - started)  # with the time of the preview
                folder.save(state, job.pipe, settings, place, complete=stop)
                if any(hasattr(callback, "on_checkpoint") for callback in job.callbacks):
                    folder.finish()
                    listeners.checkpoint(state.seen, checkpoints(folder.folder)[-1])
            if signal or stop:
                folder.finish()
                write_run_report(job)
                if stop:
                    return
                job.say(f"saved {folder.folder} at {counted(state.seen, 'image')}; the same command resumes")
                check_own_signal(signals, place)
                end(signal)
        stop_unreadable(job, steps.problem)


def agreed(job: Job, seconds: float) -> float:
    """The training time that all processes take as the same, because the learning rate may follow it."""
    return job.place.maximum(int(1000 * seconds)) / 1000 if job.recipe.train.minutes else seconds


class Steps:
    """Takes the training steps of this process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dtype = getattr(torch, job.state.precision)
        self.read = job.state.seen  # images of the batches that were read, ahead of `state.seen`
        self.problem: InputError | None = None  # why this process has no further batch

    def batches(self, order: Iterator[Tensor]) -> Iterator[Batch]:
        """Read the batches of an order ahead; ends if any process cannot read its images."""
        if self.job.files is not None:  # the reading of a batch must not wait for a file that could be there
            depth = -(-EXPECTED // self.job.recipe.train.batch)
            order = announced(order, lambda indices: self.job.dataset.expect(self.part(indices)), depth)
        with closing(ahead(order, self.fetch)) as reader:
            while True:
                try:
                    batch = next(reader)
                except InputError as error:
                    self.problem = error
                if self.job.place.maximum(int(self.problem is not None)):
                    return
                yield batch

    def fetch(self, indices: Tensor) -> Batch:
        """Read this process's images of the next batch."""
        own, seen = self.part(indices), self.part(torch.arange(self.read, self.read + len(indices)))
        self.read += len(indices)
        return numbered(self.job.dataset.fetch_at(own, self.job.recipe.train.seed, seen), own)

    def part(self, values: Tensor) -> Tensor:
        """This process's part of the values (B, ...) of a batch."""
        return values[self.job.place.rows(len(values))]

    def due(self, interval: int, before: int) -> bool:
        """Whether a multiple of an interval was reached since `before` images, or the run is finished."""
        return self.job.finished or before // interval != self.job.state.seen // interval

    def take(self, batch: Batch) -> float:
        """Take a step, or skip it if its gradient is not finite; returns the learning rate."""
        recipe, state = self.job.recipe, self.job.state
        rate = learning_rate(recipe.optim, state.seen, recipe.train.images, self.job.elapsed)
        place, parts = self.job.place, self.job.parts
        total = self.job.images_in(batch)
        first = place.rows(total).start
        losses = backward(self.job.run, batch, state.seen, first, parts, self.dtype, place.teams, total)
        self.job.place.average_gradients(state.further.parameters())  # those of the network are exchanged already
        norm = whole(torch.nn.utils.clip_grad_norm_(state.parameters(), recipe.optim.clip or float("inf")))
        if norm.isfinite():
            take_step(state, rate)
            state.tally.add(losses if place.leads else losses.uncounted(), norm if place.first else None)
        else:
            skip_step(self.job, losses)
        state.seen += total
        return rate


def stop_unreadable(job: Job, problem: InputError | None) -> None:
    """Save a run whose next batch cannot be read, and end it.

    After the images are repaired, the run resumes with this batch, and equals a run whose images were never broken.

    Raises:
        InputError: always.
    """
    state, folder = job.state, job.folder
    if state.seen:
        folder.save(state, job.pipe, job.recipe.train, job.place)
        folder.finish()
        write_run_report(job)
    raise InputError(
        f"{problem or 'another process cannot read its images'}; {folder.folder} is saved at "
        f"{counted(state.seen, 'image')}, and the same command resumes"
    ) from problem


def take_step(state: TrainState, rate: float) -> None:
    """Update the weights with the optimizer, then their averages."""
    for group in state.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # of moments of 8 bits, whose step is compiled
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.net)
    state.profiles.update(state.net)
    state.in_a_row = 0


def skip_step(job: Job, losses: Losses) -> None:
    """Record a batch whose gradient is not finite, and return to the last checkpoint after `max_bad_steps` of them.

    If the weights themselves are no longer finite, the run returns to the checkpoint immediately. The processes whose
    own losses are not finite are named, because the gradients of all processes are added.

    Raises:
        InputError: there is no checkpoint, or returning to it did not help.
    """
    settings, state, place, folder = job.recipe.train, job.state, job.place, job.folder
    state.optimizer.zero_grad()
    state.left_out, state.in_a_row = state.left_out + 1, state.in_a_row + 1
    ranks = place.collect([] if losses.total.isfinite().all() else [place.rank])
    if place.first:
        folder.note(state.seen, next(job.order()), ranks if place.world > 1 else None)
    ruined = place.maximum(int(not all(value.isfinite().all() for value in local(state.parameters()))))
    if state.in_a_row % settings.max_bad_steps and not ruined:
        return
    folder.finish()
    what = (
        "weights are no longer finite"
        if ruined
        else f"gradient was not finite in {counted(state.in_a_row, 'step')} in a row"
    )
    origin = f"; only the loss of {in_words(ranks)} is not finite" if 0 < len(ranks) < place.world else ""
    problem = f"the {what}, after {counted(state.seen, 'image')}{origin} (their indices: {folder.left_out})"
    kept = state.seen, state.seconds, state.left_out, state.in_a_row, state.tally
    failed = state.in_a_row > settings.max_bad_steps or not folder.restore(state, job.console, place=place)
    if failed or (ruined and state.seen == folder.back_at):
        raise InputError(
            f"{problem}; resume with a lower optim.lr and changes allowed, or train in another folder with "
            'train.precision = "float32"'
        )
    job.say(f"{problem}; continuing with the weights of {counted(state.seen, 'image')}")
    folder.back_at = state.seen
    # Restore the weights only: from the checkpoint's position in the run, the same batches would follow again.
    state.seen, state.seconds, state.left_out, state.in_a_row, state.tally = kept


def write_log(job: Job, log: RunLog, listeners: Listeners, rate: float) -> bool:
    """Write a line of metrics and send it to the listeners; returns whether a callback stops the run."""
    state = job.state
    values = state.tally.means(job.place.total(state.tally.flat())) | {"lr": rate, "seconds": round(state.seconds, 1)}
    values |= {"left_out": state.left_out} if state.left_out else {}
    log.write(state.seen, values)
    stop = listeners.log(state.seen, values)
    state.tally = Tally()
    return agreed_stop(job, stop)


def agreed_stop(job: Job, stop: bool) -> bool:
    """Whether a callback stops the run; only the first process calls them, and all processes stop together."""
    return job.place.agree(stop) if job.callbacks else False


def show_preview(job: Job, listeners: Listeners, guard: Guard) -> None:
    """Generate and write a preview with the averaged and the raw weights; all processes generate a part.

    A failure does not end the run. A callback that raises an error does.
    """
    state = job.state
    average = state.average()
    pipes = [replace(job.pipe, net=net) for net in (average, state.raw(average))]
    image = None
    with guard(f"preview at {counted(state.seen, 'image')}"):
        image = job.run.objective.preview(pipes, job.dataset, job.place)
        if image is not None:
            job.folder.show(state.seen, image)
            listeners.track_preview(state.seen, image)
    if image is not None:
        listeners.preview(state.seen, image)


def network_in_words(net: Backbone) -> str:
    """The name of a network, and its number of parameters."""
    return f"{net.config['name']}, {sum(p.numel() for p in net.parameters()) / 1e6:,.2f} M parameters"


def write_run_report(job: Job) -> None:
    """Write the report of the run as an HTML file in its folder."""
    if not job.place.first:
        return
    net, state, settings = job.net, job.state, job.recipe.train
    facts = {
        "network": network_in_words(net),
        "objective": f"{job.pipe.objective.target}, {process_name(job.pipe.objective.process)}",
        "images": f"{state.seen:,} of {settings.images:,}, {settings.batch} at a time",
        "time": f"{state.seconds / 60:,.1f} minutes, {state.precision}",
        "skipped steps": str(state.left_out),
    }
    write_report(job.folder.folder, job.folder.folder.name, facts)
