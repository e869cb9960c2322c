"""The training loop: batch -> losses -> step -> averages; at intervals a log line, a preview, a checkpoint.

Order, noise, times and dropped conditions are functions of (seed, images seen), so a resumed run continues as if it had
never stopped, on any number of processes.
"""

import time
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from ditlab.config.reader import to_tables
from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data import ahead, training_order
from ditlab.diffusion.process import process_name
from ditlab.report.run import write_report
from ditlab.training.callbacks import Listeners
from ditlab.training.log import RunLog, Tally
from ditlab.training.losses import backward
from ditlab.training.optim import learning_rate
from ditlab.training.parallel import local, whole
from ditlab.training.preview import preview
from ditlab.training.setup import Job
from ditlab.training.signals import check_own_signal, end, interruption
from ditlab.training.state import TrainState
from ditlab.training.trackers import trackers


def train_to_end(job: Job) -> None:
    """Train from `job.state.seen` to the end of the recipe, to a signal, or until a callback stops the run.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
        SystemExit: with 0, after SIGTERM, once the state is saved.
    """
    recipe, settings, place, state, folder = job.recipe, job.recipe.train, job.place, job.state, job.folder
    listeners = Listeners()
    if place.first:
        own = trackers(settings.report, folder.folder, state.seen, to_tables(recipe))
        listeners = Listeners(own, job.callbacks)
    with (
        RunLog(folder.metrics, state.seen, settings.images, job.console, kept=place.first) as log,
        interruption() as signals,
        ExitStack() as closing,
    ):
        for tracker in listeners.trackers:
            closing.callback(tracker.close)
        started = time.monotonic() - state.seconds
        steps = Steps(job)
        order = training_order(len(job.dataset), settings.batch, settings.seed, state.seen)
        for batch in ahead(order, lambda indices: job.dataset.fetch(steps.part(indices))):
            before = state.seen
            rate = steps.take(batch)
            signal = place.most(max(signals, default=0))
            log.show(state.seen, state.tally.means)
            stop = job.finished
            if steps.due(settings.log_every, before):
                stop = write_log(job, log, listeners, rate) or stop
            if steps.due(settings.preview_every, before):  # before the checkpoint: a resumed run would not repeat it
                show_preview(job, listeners)
            if steps.due(settings.save_every, before) or signal or stop:
                state.seconds = time.monotonic() - started
                folder.save(state, job.pipe, settings, place)
            if signal or stop:
                folder.finish()
                write_run_report(job)
                if stop:
                    return
                job.say(f"saved {folder.folder} at {state.seen:,} images; the same command resumes")
                check_own_signal(signals, place)
                end(signal)


class Steps:
    """Takes training steps."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dtype = getattr(torch, job.state.precision)
        self.parts = job.recipe.parallel.accumulate
        self.share = job.place.share(job.recipe.train.batch, self.parts) * self.parts
        self.first = job.place.rank * self.share  # place of this process's images in the batch

    def part(self, values: Tensor) -> Tensor:
        """This process's part of the values (B, ...) of a batch."""
        return values[self.first : self.first + self.share]

    def due(self, interval: int, before: int) -> bool:
        """Whether a multiple of an interval lies between the images seen `before` and now, or the run ends."""
        return self.job.finished or before // interval != self.job.state.seen // interval

    def take(self, batch: Batch) -> float:
        """One step, skipped if its gradient is not finite; returns its learning rate."""
        recipe, state = self.job.recipe, self.job.state
        rate = learning_rate(recipe.optim, state.seen, recipe.train.images)
        losses = backward(self.job.run, batch, state.seen, self.first, self.parts, self.dtype)
        norm = whole(torch.nn.utils.clip_grad_norm_(state.net.parameters(), recipe.optim.clip or float("inf")))
        if norm.isfinite():
            take_step(state, rate)
            state.tally.add(losses, norm if self.job.place.first else None)
        else:
            skip_step(self.job)
        state.seen += recipe.train.batch
        return rate


def take_step(state: TrainState, rate: float) -> None:
    """Change the weights along the gradient, and the averages with them."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.net)
    state.profiles.update(state.net)
    state.in_a_row = 0


def skip_step(job: Job) -> None:
    """Record a batch whose gradient is not finite; after too many of them return to the last checkpoint's weights.

    At once if the weights themselves are no longer finite, which no other batch can repair.

    Raises:
        InputError: there is no checkpoint, or returning to it did not help.
    """
    settings, state, place, folder = job.recipe.train, job.state, job.place, job.folder
    state.optimizer.zero_grad()
    state.left_out, state.in_a_row = state.left_out + 1, state.in_a_row + 1
    if place.first:
        folder.note(state.seen, next(training_order(len(job.dataset), settings.batch, settings.seed, state.seen)))
    ruined = place.most(int(not all(value.isfinite().all() for value in local(state.net.parameters()))))
    if state.in_a_row % settings.max_bad_steps and not ruined:
        return
    folder.finish()
    what = "weights are no longer finite" if ruined else f"gradient was not finite in {state.in_a_row} steps in a row"
    wrong = f"the {what}, after {state.seen:,} images (their numbers: {folder.left_out})"
    kept = state.seen, state.seconds, state.left_out, state.in_a_row, state.tally
    helpless = state.in_a_row > settings.max_bad_steps or not folder.restore(state, job.console, place=place)
    if helpless or (ruined and state.seen == folder.back_at):
        raise InputError(
            f"{wrong}; resume with a lower optim.lr and changes allowed, or train in another folder with "
            'train.precision = "float32"'
        )
    job.say(f"{wrong}; continuing with the weights of {state.seen:,} images")
    folder.back_at = state.seen
    # Only the weights are those of the checkpoint: at its place in the run the same batches would follow.
    state.seen, state.seconds, state.left_out, state.in_a_row, state.tally = kept


def write_log(job: Job, log: RunLog, listeners: Listeners, rate: float) -> bool:
    """A line of metrics; returns whether a callback stops the run."""
    state = job.state
    values = state.tally.means(job.place.total(state.tally.flat())) | {"lr": rate}
    values |= {"left_out": state.left_out} if state.left_out else {}
    log.write(state.seen, values)
    stop = listeners.log(state.seen, values)
    state.tally = Tally()
    return job.place.agree(stop) if job.callbacks else False


def show_preview(job: Job, listeners: Listeners) -> None:
    """A preview by the average and by the raw weights; all processes generate a part."""
    state = job.state
    average = state.average()
    image = preview([replace(job.pipe, net=net) for net in (average, state.raw(average))], job.place)
    if image is not None:
        job.folder.show(state.seen, image)
        listeners.preview(state.seen, image)


def write_run_report(job: Job) -> None:
    """The report of the run so far, as one HTML file in its folder."""
    if not job.place.first:
        return
    net, state, settings = job.net, job.state, job.recipe.train
    facts = {
        "network": f"{net.config['name']}, {sum(p.numel() for p in net.parameters()) / 1e6:,.2f} M parameters",
        "objective": f"{job.pipe.objective.target}, {process_name(job.pipe.objective.process)}",
        "images": f"{state.seen:,} of {settings.images:,}, {settings.batch} at a time",
        "time": f"{state.seconds / 60:,.1f} minutes, {state.precision}",
        "skipped steps": str(state.left_out),
    }
    write_report(job.folder.folder, job.folder.folder.name, facts)
