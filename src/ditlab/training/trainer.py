"""The training loop: batch -> latents -> loss -> step -> EMA; now and then a log line, a preview, a checkpoint.

Order, noise, times and label dropout are functions of (seed, images seen), so a run that resumes goes on as if it
had never stopped, on any number of processes.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.autoencoders import Autoencoder, Latent, Pixel
from ditlab.autoencoders.io import fingerprint
from ditlab.backbones import SHAPE, Backbone, create, find, name_of
from ditlab.backbones.lora import add_lora, merged
from ditlab.checkpoints import load, load_autoencoder
from ditlab.conditioning import ClassLabels
from ditlab.config.reader import to_tables
from ditlab.config.sections import Model, Recipe, Train
from ditlab.core.device import process_place
from ditlab.core.errors import InputError, RunError
from ditlab.core.io import held
from ditlab.core.types import Batch, Noise, Trace
from ditlab.core.weights import newest_checkpoint
from ditlab.data import Dataset, Latents, ahead, open_dataset, training_order
from ditlab.diffusion.objective import make_objective
from ditlab.diffusion.process import process_name
from ditlab.inference.optimize.compilation import compile_and_tell, wanted
from ditlab.inference.optimize.precision import faster_dtype, quick_precision, slowness
from ditlab.inference.pipeline import Pipeline
from ditlab.report.run import REPORT, write_report
from ditlab.report.sheets import contact_sheet, side_by_side
from ditlab.training.ema import EMA
from ditlab.training.init_from import report, transfer
from ditlab.training.log import RunLog, Tally
from ditlab.training.optim import learning_rate, make_optimizer
from ditlab.training.parallel import Place, joined, keep_inputs_only, local, no_exchange, shard, spread, whole
from ditlab.training.power_ema import PowerAverages, exponent
from ditlab.training.rng import EPS, POSTERIOR, ROUTE, Chance
from ditlab.training.state import Run, TrainState
from ditlab.training.trackers import flat, trackers

FEW = 500  # steps, for which compiling is not worth the wait
LATE = 3.0  # seconds by which a signal may reach one process after another
COUNTS = ("images", "batch", "log_every", "preview_every", "save_every", "keep", "patience")


def train(recipe: Recipe, out: str | Path, *, changes: bool = False, console: Console | None = None) -> Pipeline:
    """Train as the recipe says; the same call again resumes.

    Under a launcher such as torchrun all processes call it, and share each batch.

    Args:
        recipe: the settings.
        out: the run folder; made if it does not exist.
        changes: go on with another course of training than the folder's run had so far.
        console: where progress is shown (standard error by default).

    Returns:
        The trained model (EMA weights).

    Raises:
        InputError: settings that do not fit together, or a folder that holds something else or is in use.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
        SystemExit: with 0, after SIGTERM, once the state is saved.
    """
    console = console or Console(stderr=True)
    check_ranges(recipe)
    rank = process_place()[0]
    with nothing_to_save(), held(Path(out), rank), joined(recipe.train.device, recipe.parallel.timeout) as place:
        return train_here(recipe, Run(Path(out)), place, changes, console if place.first else Console(quiet=True))


def train_here(recipe: Recipe, run: Run, place: Place, changes: bool, console: Console) -> Pipeline:
    """`train`, as one of its processes."""
    settings, device = recipe.train, place.device
    share = place.share(settings.batch, recipe.parallel.accumulate)
    report_to = run.folder / ("skipped.csv" if place.first else f"skipped-{place.rank}.csv")
    dataset = open_dataset(recipe.data.source, recipe.data, report_to)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what is not in bfloat16
    # A resumed run has its own weights and does not need the source again.
    resumed = newest_checkpoint(run.folder) if settings.init_from else None
    source = load(resumed or settings.init_from) if settings.init_from else None
    if source is not None:
        recipe = replace(recipe, model=continued(recipe.model, source))
    pipe = build(recipe, dataset, pick_autoencoder(recipe.data.autoencoder, dataset, source), device)
    pipe.steps()  # a sampler or grid that does not exist shall not be found out at the first preview
    place.first_does(lambda: run.check(recipe, dataset, changes=changes))
    pipe.config["pictures"] = len(dataset)
    net = pipe.net.train()
    check_blocks(net, recipe)
    whole = [*net.label_tables, *net.heads_out]
    if source is not None and resumed is None:
        moved = transfer(net, pipe.classes, source, settings.class_map)
        console.print(report(moved))
        whole += [change.name for change in moved if change.fate != "kept"]
        if source.objective.target != pipe.objective.target or source.objective.process != pipe.objective.process:
            console.print(
                f"{settings.init_from} was trained with another target or process; its head has to learn anew"
            )
    if settings.lora and source is not None:
        origin = Path(settings.init_from)
        fresh = {"source": str(origin.absolute() if origin.exists() else origin), "whole": whole}
        pipe.config["lora"] = source.config["lora"] if resumed else fresh
        add_lora(net, settings.lora, pipe.config["lora"]["whole"], settings.seed)
    loss_of = LossOf(pipe, settings)
    ema = EMA(net, settings.ema)
    pipe.net = ema.net  # what is shown and shared is the average
    step = trial_step(loss_of, dataset, share)
    if recipe.parallel.checkpointing:
        keep_inputs_only(net)
    if recipe.parallel.shard != "none":
        for each in (net, ema.net):
            shard(each, recipe.parallel, place)
    state = TrainState(net, ema, make_optimizer(net, recipe.optim), PowerAverages(net, settings.widths))
    run.restore(state, console, place=place)
    pipe.config |= {"images_seen": state.seen, "train_seconds": round(state.seconds, 3)}
    if state.seen >= settings.images:
        console.print(
            f"{run.folder} is already trained on {state.seen:,} images; raise --train.images to go on", markup=False
        )
        pipe.net = merged(state.average())
        if place.first and not (run.folder / REPORT).exists():  # it was killed before
            write_report(run.folder, run.folder.name, summary(state, pipe, settings))
        return pipe
    if place.first:
        run.begin(recipe, state.seen)
    if state.seen:
        console.print(f"resuming {run.folder} at {state.seen:,} images", markup=False)
    if not state.precision:
        found = probe(step, net, alone=not state.sharded) if settings.precision == "auto" else settings.precision
        state.precision = place.agree(found)
    told = f"training {net.config['name']} on {device} in {state.precision}"
    console.print(told + (f", {place.world} processes" if place.world > 1 else ""), markup=False)
    if slow := slowness(state.precision, device):
        console.print(slow, markup=False)
    make_quick(partial(step, getattr(torch, state.precision)), state, recipe, place, console)
    loss_of.network = spread(net, recipe.parallel, place)
    place.wait()
    loop(recipe, run, state, pipe, loss_of, dataset, place, console)
    if dataset.skipped:
        console.print(f"{len(dataset.skipped)} pictures could not be read: {report_to}", markup=False)
    pipe.net = merged(state.average())
    return pipe


def loop(
    recipe: Recipe,
    run: Run,
    state: TrainState,
    pipe: Pipeline,
    loss_of: "LossOf",
    dataset: Dataset,
    place: Place,
    console: Console,
) -> None:
    """Train from `state.seen` to the end, or until a signal asks to stop."""
    settings, parts = recipe.train, recipe.parallel.accumulate
    dtype = getattr(torch, state.precision)
    share = place.share(settings.batch, parts) * parts
    first = place.rank * share  # of this process's pictures, in the batch
    told = trackers(settings.report, run.folder, state.seen, to_tables(recipe)) if place.first else []
    with (
        RunLog(run.metrics, state.seen, settings.images, console, kept=place.first) as log,
        interruption() as signals,
        ExitStack() as ending,
    ):
        for each in told:
            ending.callback(each.close)
        started = time.monotonic() - state.seconds
        order = training_order(len(dataset), settings.batch, settings.seed, state.seen)
        for batch in ahead(order, lambda indices: dataset.fetch(indices[first : first + share])):
            rate = learning_rate(recipe.optim, state.seen, settings.images)
            losses, times = backward(loss_of, batch, state.seen, first, parts, dtype)
            norm = whole(torch.nn.utils.clip_grad_norm_(state.net.parameters(), recipe.optim.clip or float("inf")))
            if norm.isfinite():
                take_step(state, rate)
                state.tally.add(losses, times, norm if place.first else None)
            else:
                leave_out(recipe, run, state, dataset, place, console)
            before, state.seen = state.seen, state.seen + settings.batch
            done = state.seen >= settings.images
            asked = place.most(max(signals, default=0))

            def due(every: int, before: int = before, done: bool = done) -> bool:
                return done or before // every != state.seen // every

            log.show(state.seen, lambda: Tally.means(state.tally.sums))
            if due(settings.log_every):
                values = Tally.means(place.total(state.tally.sums)) | {"lr": rate}
                values |= {"left_out": state.left_out} if state.left_out else {}
                log.write(state.seen, values)
                for each in told:
                    each.numbers(state.seen, flat(values))
                state.tally = Tally()
            if due(settings.preview_every):  # before the checkpoint, behind which nobody comes back to draw it
                average = state.average()
                picture = preview([replace(pipe, net=net) for net in (average, state.raw(average))], dataset, place)
                if picture is not None:
                    run.show(state.seen, picture)
                    for each in told:
                        each.preview(state.seen, picture)
            if due(settings.save_every) or asked:
                state.seconds = time.monotonic() - started
                run.save(state, pipe, settings, place)
            if done or asked:
                run.finish()
                if place.first:
                    write_report(run.folder, run.folder.name, summary(state, pipe, settings))
                if done:
                    return
                console.print(f"saved {run.folder} at {state.seen:,} images; the same command resumes", markup=False)
                own_signal(signals, place)
                end(asked)


class LossOf:
    """The losses of pictures at a place of the run, with all chance drawn from (seed, place)."""

    def __init__(self, pipe: Pipeline, settings: Train) -> None:
        self.net, self.objective, self.settings = pipe.net, pipe.objective, settings
        self.autoencoder, self.conditioner = pipe.autoencoder, pipe.conditioner
        self.network: Callable[..., Tensor] = pipe.net  # or what spreads it over processes
        self.chance = Chance(settings.seed)

    def __call__(self, pictures: Batch, seen: int, first: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Losses and times of some pictures of a batch.

        Args:
            pictures: B of them.
            seen: images before the batch.
            first: place of the first picture in the batch.
            dtype: of the network, in autocast where it is not float32.

        Returns:
            Losses (B,) float32, times (B,) float64 on the CPU.
        """
        device, batch = self.net.device, self.settings.batch
        mine = slice(first, first + len(pictures))
        with torch.no_grad():
            images = pictures.x.to(device)
            moments = images if pictures.encoded else self.autoencoder.encode(images)  # a cache has them
            x0 = self.autoencoder.latents(moments, self.noise(POSTERIOR, seen + first))
        of_batch = self.chance.of_batch(seen)
        dropped = (torch.rand(batch, generator=of_batch) < self.settings.label_dropout)[mine]
        condition = self.conditioner.drop(pictures.condition, dropped).to(device)
        t = self.objective.draw_times(batch, of_batch)[mine]
        eps = self.noise(EPS, seen + first)(x0)
        kept = self.some_tokens(seen + first, len(x0)).to(device) if self.settings.route else None
        taps = [f"blocks.{i}" for i in self.settings.align]
        trace = Trace(taps, kept) if taps or kept is not None else None
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            losses = self.objective.loss(self.network, x0, condition, t, eps, trace)
            if trace is not None and taps:
                losses = losses + self.settings.align_weight * apart(*(trace.taps[name] for name in taps))
            return losses, t

    def some_tokens(self, first: int, count: int) -> Tensor:
        """Places (B, K) of the tokens that pass all blocks: drawn for each picture, joined ones always among them."""
        kept, joined = routed(self.net, self.settings.route)
        places = self.net.tokens - joined
        order = self.chance.normal(ROUTE, first, (count, places)).argsort(dim=1)
        always = torch.arange(places, self.net.tokens).expand(count, -1)
        return torch.cat([order[:, :kept], always], dim=1)

    def noise(self, stream: int, first: int) -> Noise:
        """Noise for pictures from a place of the run on."""
        return lambda like: self.chance.normal(stream, first, tuple(like.shape)).to(like)


def routed(net: Backbone, share: float) -> tuple[int, int]:
    """How many tokens of the picture pass all blocks where this share does not, and how many joined ones always do."""
    return max(1, round((net.tokens - net.joined) * (1 - share))), net.joined


def apart(early: Tensor, late: Tensor) -> Tensor:
    """1 - cosine between the tokens (B, N, D) of two blocks, for each image (B,); the later one is not drawn.

    Raises:
        InputError: blocks of other widths or grids.
    """
    if early.shape != late.shape:
        sizes = ["x".join(map(str, each.shape[1:])) for each in (early, late)]
        raise InputError(f"train.align takes two blocks of one width and grid; these have {sizes[0]} and {sizes[1]}")
    return (1 - F.cosine_similarity(early.float(), late.detach().float(), dim=-1)).flatten(1).mean(1)


def backward(
    loss_of: LossOf, batch: Batch, seen: int, first: int, parts: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the mean loss, part by part; losses (B,) and times (B,)."""
    found = []
    each = len(batch) // parts
    for part in range(parts):
        here = slice(part * each, (part + 1) * each)
        with no_exchange(loss_of.network, last=part == parts - 1):
            losses, t = loss_of(batch[here], seen, first + here.start, dtype)
            (losses.mean() / parts).backward()  # type: ignore[no-untyped-call]
        found.append((losses.detach(), t))
    losses, times = (torch.cat(values) for values in zip(*found, strict=True))
    return losses, times


def take_step(state: TrainState, rate: float) -> None:
    """Change the weights along the gradient, and the average with them."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.net)
    state.profiles.update(state.net)
    state.in_a_row = 0


def leave_out(recipe: Recipe, run: Run, state: TrainState, dataset: Dataset, place: Place, console: Console) -> None:
    """Note a batch whose gradient is not finite; after too many of them go back to the last checkpoint's weights.

    At once where the weights themselves are not finite any more, which no other batch can mend.

    Raises:
        InputError: there is none, or it did not help.
    """
    settings = recipe.train
    state.optimizer.zero_grad()
    state.left_out, state.in_a_row = state.left_out + 1, state.in_a_row + 1
    if place.first:
        indices = next(training_order(len(dataset), settings.batch, settings.seed, state.seen))
        run.note(state.seen, indices)
    ruined = place.most(int(not all(value.isfinite().all() for value in local(state.net.parameters()))))
    if state.in_a_row % settings.patience and not ruined:
        return
    run.finish()
    what = "weights are no longer finite" if ruined else f"gradient was not finite in {state.in_a_row} steps in a row"
    wrong = f"the {what}, after {state.seen:,} images (their pictures: {run.left_out})"
    kept = state.seen, state.seconds, state.left_out, state.in_a_row, state.tally
    helpless = state.in_a_row > settings.patience or not run.restore(state, console, place=place)
    if helpless or (ruined and state.seen == run.back_at):
        raise InputError(
            f"{wrong}; go on with --allow-changes and a lower --optim.lr, or train in float32 into another --out "
            "(--train.precision=float32)"
        )
    console.print(f"{wrong}; going on with the weights of {state.seen:,} images", markup=False)
    run.back_at = state.seen
    # Not back to its place in the run, where the same batches wait.
    state.seen, state.seconds, state.left_out, state.in_a_row, state.tally = kept


def continued(model: Model, source: Pipeline) -> Model:
    """The source's architecture, with the options of the recipe that its family allows to change.

    It has the recipe's family where that extends the source's (Skip-DiT extends DiT).
    """
    own: dict[str, Any] = {key: value for key, value in source.net.config.items() if key not in SHAPE}
    own |= {key: value for key, value in model.options.items() if key in source.net.changeable}
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
    conditioner = ClassLabels.for_data(dataset, {"classes": recipe.data.classes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)  # initial weights only; all later chance has its own generator
        net = create(
            **vars(recipe.model),
            size=size,
            channels=channels,
            learn_variance=recipe.diffusion.learn_variance,
            **conditioner.network_options(),
        )
    tables = to_tables(recipe)
    config = {"sample": tables["sample"], "recipe": tables}
    objective = make_objective(recipe.diffusion)
    return Pipeline(net.to(device), objective, autoencoder.to(device), config=config, conditioner=conditioner)


def trial_step(loss_of: LossOf, dataset: Dataset, count: int) -> Callable[[torch.dtype], None]:
    """A step without a consequence, for timing; its pictures are read when it is first taken."""

    @cache
    def some() -> Batch:
        return dataset.fetch(torch.arange(count) % len(dataset))

    def step(dtype: torch.dtype) -> None:
        losses, _ = loss_of(some(), 0, 0, dtype)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        loss_of.net.zero_grad()

    return step


def probe(step: Callable[[torch.dtype], None], net: Backbone, *, alone: bool) -> str:
    """The faster precision for such steps, by name; by matrix products only where others would have to take part."""
    if not alone:
        return quick_precision(net.matrix_width, net.device)
    return str(faster_dtype(step, net.device, net.matrix_width)).removeprefix("torch.")


def make_quick(step: Callable[[], None], state: TrainState, recipe: Recipe, place: Place, console: Console) -> None:
    """Compile the network where that shortens what is left; a run that was compiled once stays so, bit for bit."""
    settings, net = recipe.train, state.net
    if settings.compile == "never":
        return
    if state.compiled is False and settings.compile == "always":
        console.print("this run was begun without compiling, and stays so: its weights would differ in their last bits")
    if state.compiled is None:
        if state.sharded:  # a step that is timed would need all processes
            found = settings.compile == "always"
        else:
            left = (settings.images - state.seen) / settings.batch * recipe.parallel.accumulate
            found = wanted(net, getattr(torch, state.precision), settings.compile, step, left, FEW)
        state.compiled = place.agree(found)
    if state.compiled:
        compile_and_tell(net, step, console, dynamic=net.dynamic_depth)


def preview(pipes: Sequence[Pipeline], dataset: Dataset, place: Place) -> Image.Image | None:
    """Samples of fixed seeds by the average and by the raw weights: a row for each of up to ten classes.

    All processes draw a part; the first one has the picture.
    """
    columns = 8
    names: list[str | None] = list(dataset.classes[:10]) or [None, None]
    labels = [name for name in names for _ in range(columns)]
    seeds = list(range(columns)) * len(names) if dataset.classes else list(range(len(labels)))
    mine = range(place.rank, len(labels), place.world)
    sheets = []
    for pipe in pipes:
        drawn = pipe([labels[i] for i in mine], seeds=[seeds[i] for i in mine]).images if mine else []
        every = dict(place.collect(list(zip(mine, drawn, strict=True))))
        if not place.first:
            continue
        images = [every[i] for i in range(len(labels))]
        rows = [images[i * columns : (i + 1) * columns] for i in range(len(names))]
        sheets.append(contact_sheet(rows, dataset.classes[:10] or None))
    return side_by_side(sheets, ("average", "raw weights")) if place.first else None


def check_blocks(net: Backbone, recipe: Recipe) -> None:
    """Refuse what this network's blocks do not allow."""
    settings, name, exits = recipe.train, net.config["name"], net.dynamic_depth
    if settings.route and len(net.routable) < 3:
        raise InputError(f"train.route is for DiT without exits, of 3 blocks or more, not {name}; leave it out")
    if exits and recipe.parallel.shard != "none":
        raise InputError(
            "parallel.shard needs every block in every process, and with exits some pass none; leave one out"
        )
    if settings.align:
        early, late = settings.align
        blocks = [block for block in net.repeated if type(block) is type(net.repeated[0])]  # the head is another kind
        if exits or not blocks:
            raise InputError(f"train.align needs blocks that all images pass, which {name} has not; leave it out")
        if not 0 <= early < late < len(blocks):
            raise InputError(
                f"train.align {early} {late}: {name} has the blocks 0 to {len(blocks) - 1}; "
                "give an early and a late one"
            )


def summary(state: TrainState, pipe: Pipeline, settings: Train) -> dict[str, str]:
    """What the report says of the run."""
    net = state.net
    return {
        "network": f"{net.config['name']}, {sum(p.numel() for p in net.parameters()) / 1e6:,.2f} M parameters",
        "objective": f"{pipe.objective.target}, {process_name(pipe.objective.process)}",
        "images": f"{state.seen:,} of {settings.images:,}, {settings.batch} at a time",
        "time": f"{state.seconds / 60:,.1f} minutes, {state.precision}",
        "steps left out": str(state.left_out),
    }


def check_ranges(recipe: Recipe) -> None:
    """Refuse numbers that cannot be meant, before anything is written."""
    least_one = {f"train.{key}": getattr(recipe.train, key) for key in COUNTS}
    shares = {
        "train.label_dropout": recipe.train.label_dropout,
        "train.ema": recipe.train.ema,
        "train.route": recipe.train.route,
        "optim.betas": max(recipe.optim.betas),
        "optim.betas (the smaller)": min(recipe.optim.betas),
    }
    rest = {
        "optim.lr": recipe.optim.lr,
        "optim.clip": recipe.optim.clip,
        "optim.weight_decay": recipe.optim.weight_decay,
    }
    rest |= {"optim.warmup": recipe.optim.warmup, "optim.decay": recipe.optim.decay}
    rest |= {"diffusion.time_scale": recipe.diffusion.time_scale, "diffusion.direction": recipe.diffusion.direction}
    rest |= {"train.align_weight": recipe.train.align_weight, "train.keep_every": recipe.train.keep_every}
    least_one |= {f"parallel.{key}": getattr(recipe.parallel, key) for key in ("accumulate", "timeout")}
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
    if recipe.train.lora and recipe.train.widths:
        raise InputError("train.widths with low-rank updates; leave one of them out")
    for width in recipe.train.widths:
        exponent(width)
    if recipe.optim.name == "muon" and recipe.parallel.shard != "none":
        raise InputError("muon needs whole matrices, which parallel.shard cuts; take adamw, or leave shard out")
    if recipe.train.lora and recipe.parallel.shard != "none":
        raise InputError(
            "train.lora trains few weights, which need not be cut by parallel.shard; leave one of them out"
        )
    if recipe.train.lora < 0:
        raise InputError(f"train.lora is {recipe.train.lora}; give a rank such as 8, or 0")
    if recipe.train.align and (len(recipe.train.align) != 2 or recipe.train.route):
        raise InputError("train.align takes two numbers of blocks, the early one first, and no train.route beside it")
    if not 0 <= recipe.train.seed < 2**32:
        raise InputError(f"train.seed is {recipe.train.seed}; give 0 to {2**32 - 1}")


@contextmanager
def nothing_to_save() -> Iterator[None]:
    """SIGTERM before the first step (data may be looked at for minutes, blocks compiled) ends with 0 at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: end(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interruption() -> Iterator[list[int]]:
    """The signal of the first Ctrl-C or SIGTERM, so that the step in progress ends whole; a second one aborts."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, frame: object) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def own_signal(signals: list[int], place: Place) -> None:
    """Make sure that it was this process which was told to stop.

    Raises:
        RunError: it was another one. Its machine goes down, and this one's launcher shall wait until it is back.
    """
    latest = time.monotonic() + LATE
    while not signals and time.monotonic() < latest:  # a launcher tells its processes one by one
        time.sleep(0.05)
    if not signals:
        raise RunError(f"rank {place.rank}: another process was told to stop; the same command resumes")


def end(number: int) -> NoReturn:
    """Leave as a signal asks, once all is saved: whoever sent SIGTERM expects that; Ctrl-C stops a larger program."""
    if number == signal.SIGTERM:
        raise SystemExit(0)
    raise KeyboardInterrupt
