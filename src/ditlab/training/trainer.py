"""The training loop: batch -> latents -> loss -> step -> EMA; now and then a log line, a preview, a checkpoint.

Order, noise, times and label dropout are functions of (seed, images seen), so a run that resumes goes on as if it
had never stopped.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.autoencoders import Autoencoder, Latent, Pixel
from ditlab.backbones import Backbone, create, find, name_of
from ditlab.backbones.lora import add_lora, merged
from ditlab.config import Model, Recipe, to_tables
from ditlab.data import Dataset, Latents, ahead, open_dataset, training_order
from ditlab.diffusion.objective import Objective
from ditlab.errors import InputError
from ditlab.hardware import pick_device
from ditlab.interop import load, load_autoencoder
from ditlab.interop.autoencoders import fingerprint
from ditlab.pictures import contact_sheet
from ditlab.pipeline import Pipeline, make_objective, newest_checkpoint
from ditlab.speed.compilation import compile_and_tell, wanted
from ditlab.speed.precision import faster_dtype
from ditlab.training.ema import EMA
from ditlab.training.log import RunLog
from ditlab.training.optim import learning_rate, make_optimizer
from ditlab.training.state import Run, TrainState
from ditlab.training.transfer import report, transfer
from ditlab.types import Batch

FEW = 500  # steps, for which compiling is not worth the wait
COUNTS = ("images", "batch", "log_every", "preview_every", "save_every", "keep")


def train(recipe: Recipe, out: str | Path, *, console: Console | None = None) -> Pipeline:
    """Train as the recipe says; the same call again resumes.

    Args:
        recipe: the settings.
        out: the run folder; made if it does not exist.
        console: where progress is shown (standard error by default).

    Returns:
        The trained model (EMA weights).

    Raises:
        InputError: settings that do not fit together, or a folder that holds something else.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    console = console or Console(stderr=True)
    settings = recipe.train
    check_ranges(recipe)
    dataset = open_dataset(recipe.data.source, recipe.data, Path(out) / "skipped.csv")
    device = pick_device(settings.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what is not in bfloat16
    run = Run(Path(out))
    # A resumed run has its own weights and does not need the source again.
    resumed = newest_checkpoint(run.folder)
    source = load(resumed or settings.init_from) if settings.init_from else None
    if source is not None:
        recipe = replace(recipe, model=continued(recipe.model, source))
    pipe = build(recipe, dataset, pick_autoencoder(recipe.data.autoencoder, dataset, source), device)
    pipe.steps()  # a sampler or grid that does not exist shall not be found out at the first preview
    run.check(recipe)
    net = pipe.net.train()
    whole = [*net.label_tables, *net.heads_out]
    if source is not None and resumed is None:
        changes = transfer(net, pipe.classes, source, settings.class_map)
        console.print(report(changes))
        whole += [change.name for change in changes if change.fate != "kept"]
        if source.objective.target != pipe.objective.target or source.objective.process != pipe.objective.process:
            console.print(
                f"{settings.init_from} was trained with another target or process; its head has to learn anew"
            )
    if settings.lora and source is not None:
        origin = Path(settings.init_from)
        fresh = {"source": str(origin.absolute() if origin.exists() else origin), "whole": whole}
        pipe.config["lora"] = source.config["lora"] if resumed else fresh
        add_lora(net, settings.lora, pipe.config["lora"]["whole"], settings.seed)
    ema = EMA(net, settings.ema)
    pipe.net = ema.net  # what is shown and shared is the average
    state = TrainState(net, ema, make_optimizer(net, recipe.optim))
    run.restore(state)
    pipe.config |= {"images_seen": state.seen, "train_seconds": round(state.seconds, 3)}
    if state.seen >= settings.images:
        console.print(f"{out} is already trained on {state.seen:,} images; raise --train.images to go on", markup=False)
        pipe.net = merged(pipe.net)
        return pipe
    run.begin(recipe)
    if state.seen:
        console.print(f"resuming {out} at {state.seen:,} images", markup=False)
    loss_of = LossOf(net, pipe.objective, pipe.autoencoder, settings.label_dropout, settings.seed)
    step = trial_step(loss_of, dataset, settings.batch)
    if not state.precision:
        state.precision = probe(step, net) if settings.precision == "auto" else settings.precision
    console.print(f"training {net.config['name']} on {device} in {state.precision}", markup=False)
    make_quick(partial(step, getattr(torch, state.precision)), state, recipe, console)
    loop(recipe, run, state, pipe, loss_of, dataset, console)
    if dataset.skipped:
        console.print(f"{len(dataset.skipped)} pictures could not be read: {out}/skipped.csv", markup=False)
    pipe.net = merged(pipe.net)
    return pipe


def loop(
    recipe: Recipe, run: Run, state: TrainState, pipe: Pipeline, loss_of: "LossOf", dataset: Dataset, console: Console
) -> None:
    """Train from `state.seen` to the end, or to the next Ctrl-C."""
    settings = recipe.train
    dtype = getattr(torch, state.precision)
    sums, count = torch.zeros(2, device=state.net.device), 0
    with RunLog(run.metrics, state.seen, settings.images, console) as log, interruption() as interrupted:
        started = time.monotonic() - state.seconds
        order = training_order(len(dataset), settings.batch, settings.seed, state.seen)
        for batch in ahead(order, dataset.fetch):
            rate = learning_rate(recipe.optim, state.seen, settings.images)
            loss = loss_of(batch, state.seen, dtype)
            norm = update(state, loss, rate, recipe.optim.clip)
            before, state.seen = state.seen, state.seen + settings.batch
            sums, count = sums + torch.stack([loss.detach(), norm]), count + 1
            done = state.seen >= settings.images

            def due(every: int, before: int = before, done: bool = done) -> bool:
                return done or before // every != state.seen // every

            def means(sums: Tensor = sums, count: int = count) -> tuple[float, float]:
                loss, norm = (sums / count).tolist()
                return loss, norm

            log.show(state.seen, means)
            if due(settings.log_every) or interrupted.is_set():
                log.write(state.seen, *means(), rate)
                sums, count = torch.zeros_like(sums), 0
            if due(settings.save_every) or interrupted.is_set():
                state.seconds = time.monotonic() - started
                run.save(state, pipe, settings.keep, apart=settings.lora_apart)
            if due(settings.preview_every):
                preview(pipe, dataset).save(run.previews / f"{state.seen:012d}.png")
            if done:
                return
            if interrupted.is_set():
                console.print(f"saved {run.folder} at {state.seen:,} images; the same command resumes", markup=False)
                raise KeyboardInterrupt


class LossOf:
    """The mean loss of a batch at a position of the run, with all chance drawn from (seed, position)."""

    def __init__(
        self, net: Backbone, objective: Objective, autoencoder: Autoencoder, label_dropout: float, seed: int
    ) -> None:
        self.net, self.objective, self.autoencoder = net, objective, autoencoder
        self.label_dropout, self.seed = label_dropout, seed

    def __call__(self, batch: Batch, seen: int, dtype: torch.dtype) -> Tensor:
        """Float32 loss (), with the network in autocast where dtype is not float32."""
        device = self.net.device
        chance = torch.Generator().manual_seed((self.seed * 1_000_000_007 + seen) % 2**63)

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=chance).to(like)

        with torch.no_grad():
            images = batch.images.to(device)
            moments = images if images.is_floating_point() else self.autoencoder.encode(images)  # a cache has them
            x0 = self.autoencoder.latents(moments, noise)
        dropped = torch.rand(len(x0), generator=chance) < self.label_dropout
        y = torch.where(dropped, self.net.null(batch.labels), batch.labels).to(device)
        t = self.objective.draw_times(len(x0), chance)
        eps = noise(x0)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            return self.objective.loss(self.net, x0, y, t, eps).mean()


def update(state: TrainState, loss: Tensor, rate: float, clip: float) -> Tensor:
    """Back-propagate, clip, step, average; returns the norm of the gradient before clipping."""
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(state.net.parameters(), clip or float("inf"))
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.net)
    return norm


def continued(model: Model, source: Pipeline) -> Model:
    """The source's architecture; under the recipe's family where that extends the source's (Skip-DiT extends DiT), and
    with the recipe's exits."""
    own: dict[str, Any] = {key: source.net.config.get(key) for key in vars(model)}
    own["exits"] = model.exits or own["exits"]
    kind, theirs = find(model.name)[0], type(source.net)
    if kind is not theirs and issubclass(kind, theirs):
        own["name"] = name_of(kind, own)
    return Model(**own)


def pick_autoencoder(given: str, dataset: Dataset, source: Pipeline | None) -> Autoencoder:
    """The autoencoder to train with: of the cache, as given, of the model to start from; pixels otherwise.

    Raises:
        InputError: a cache that was made with another one than is given or started from.
    """
    wanted = load_autoencoder(given) if given else None
    if wanted is None and source is not None and isinstance(source.autoencoder, Latent):
        wanted = source.autoencoder
    if not isinstance(dataset, Latents):
        return wanted or Pixel()
    own, made_with = load_autoencoder(dataset.folder / "autoencoder"), dataset.description.autoencoder
    for autoencoder, what in ((own, "lies beside it"), (wanted, "this run asks for")):
        if autoencoder is not None and fingerprint(autoencoder) != made_with:
            raise InputError(
                f"the cache {dataset.folder} was made with autoencoder {made_with[:12]}, not with "
                f"{fingerprint(autoencoder)[:12]}, which {what}; encode the pictures again"
            )
    return own


def build(recipe: Recipe, dataset: Dataset, autoencoder: Autoencoder, device: torch.device) -> Pipeline:
    """A fresh, untrained model for this data."""
    channels, size = autoencoder.latent_shape(dataset.channels, dataset.size)
    classes = recipe.data.classes or len(dataset.classes)
    if classes < len(dataset.classes):
        raise InputError(f"data.classes is {classes}, but the data has {len(dataset.classes)} classes; leave it out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)  # initial weights only; all later chance has its own generator
        net = create(
            **vars(recipe.model),
            size=size,
            channels=channels,
            classes=classes,
            learn_variance=recipe.diffusion.learn_variance,
        )
    tables = to_tables(recipe)
    config = {"sample": tables["sample"], "recipe": tables}
    return Pipeline(net.to(device), make_objective(recipe.diffusion), autoencoder.to(device), dataset.classes, config)


def trial_step(loss_of: LossOf, dataset: Dataset, batch: int) -> Callable[[torch.dtype], None]:
    """A step without a consequence, for timing; its pictures are read when it is first taken."""

    @cache
    def some() -> Batch:
        return dataset.fetch(torch.arange(batch) % len(dataset))

    def step(dtype: torch.dtype) -> None:
        loss_of(some(), 0, dtype).backward()  # type: ignore[no-untyped-call]
        loss_of.net.zero_grad()

    return step


def probe(step: Callable[[torch.dtype], None], net: Backbone) -> str:
    """The faster precision for such steps, by name."""
    return str(faster_dtype(step, net.device, int(net.config["width"]))).removeprefix("torch.")


def make_quick(step: Callable[[], None], state: TrainState, recipe: Recipe, console: Console) -> None:
    """Compile the network where that shortens what is left; a run that was compiled once stays so, bit for bit."""
    settings, net = recipe.train, state.net
    if settings.compile == "never":
        return
    if state.compiled is None:
        left = (settings.images - state.seen) / settings.batch
        state.compiled = wanted(net, getattr(torch, state.precision), settings.compile, step, left, FEW)
    if state.compiled:
        compile_and_tell(net, step, console, dynamic=bool(net.config.get("exits")))


def preview(pipe: Pipeline, dataset: Dataset) -> Image.Image:
    """EMA samples of fixed seeds: a row for each of up to ten classes."""
    columns = 8
    names: list[str | None] = list(dataset.classes[:10]) or [None, None]
    labels = [name for name in names for _ in range(columns)]
    seeds = list(range(columns)) * len(names) if dataset.classes else list(range(len(labels)))
    images = pipe(labels, seeds=seeds).images
    rows = [images[i * columns : (i + 1) * columns] for i in range(len(names))]
    return contact_sheet(rows, dataset.classes[:10] or None)


def check_ranges(recipe: Recipe) -> None:
    """Refuse numbers that cannot be meant, before anything is written."""
    least_one = {f"train.{key}": getattr(recipe.train, key) for key in COUNTS}
    shares = {
        "train.label_dropout": recipe.train.label_dropout,
        "train.ema": recipe.train.ema,
        "optim.betas": max(recipe.optim.betas),
        "optim.betas (the smaller)": min(recipe.optim.betas),
    }
    rest = {
        "optim.lr": recipe.optim.lr,
        "optim.clip": recipe.optim.clip,
        "optim.weight_decay": recipe.optim.weight_decay,
    }
    rest |= {"optim.warmup": recipe.optim.warmup, "diffusion.time_scale": recipe.diffusion.time_scale}
    for key, value in least_one.items():
        if value < 1:
            raise InputError(f"{key} is {value}; give 1 or more")
    for key, value in shares.items():
        if not 0 <= value < 1:
            raise InputError(f"{key} is {value}; give at least 0 and less than 1")
    for key, value in rest.items():
        if not 0 <= value < float("inf"):
            raise InputError(f"{key} is {value}; give a number that is not negative")
    for key in ("class_map", "lora"):
        if getattr(recipe.train, key) and not recipe.train.init_from:
            raise InputError(f"train.{key} without a model to start from; give --init-from")
    if recipe.train.lora < 0:
        raise InputError(f"train.lora is {recipe.train.lora}; give a rank such as 8, or 0")
    if not 0 <= recipe.train.seed < 2**32:
        raise InputError(f"train.seed is {recipe.train.seed}; give 0 to {2**32 - 1}")


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that the step in progress ends whole; a second one aborts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
