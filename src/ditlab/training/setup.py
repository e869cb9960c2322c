"""Set up a run in stages, from the recipe to the first step. Each docstring explains the order of its stage."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from ditlab.backbones import Backbone, create
from ditlab.backbones.lora import add_lora
from ditlab.checkpoints import load
from ditlab.conditioning import Text
from ditlab.config.sections import Data
from ditlab.core.device import has_bfloat16
from ditlab.core.errors import InputError
from ditlab.core.hub import is_there
from ditlab.core.spelling import absolute
from ditlab.core.units import counted
from ditlab.core.weights import ADAPTER, BASE, newest_checkpoint, read_config, state_hash
from ditlab.data import open_dataset, parse_source
from ditlab.data.summary import report_data, report_unreadable
from ditlab.inference.base import PROMPTS
from ditlab.inference.finite import check_weights
from ditlab.inference.optimize.compilation import compile_and_tell, wanted
from ditlab.inference.optimize.precision import faster_dtype, quick_precision, slowness
from ditlab.training.captions import CaptionConditions, read_captions
from ditlab.training.checks import (
    check_aids,
    check_clock,
    check_condition,
    check_dataset,
    check_encoder_dropout,
    check_exits,
    check_given,
    check_offload,
    check_sampling,
    check_sequence,
    check_shares,
)
from ditlab.training.elastic import PROCESSES, divide_batch, left_alone
from ditlab.training.ema import EMA
from ditlab.training.init_from import completed_recipe, continued, copy_frozen, freeze, inherited, report, transfer
from ditlab.training.job import Job
from ditlab.training.losses import make_context, trial_step
from ditlab.training.memory import (
    USABLE,
    Room,
    float32_bytes,
    held_in_training,
    memory_parts,
    peak,
    shortage,
)
from ditlab.training.model import build, pick_autoencoder, pick_conditioner
from ditlab.training.offload import offload_activations
from ditlab.training.optim import make_optimizer
from ditlab.training.parallel import keep_inputs_only, shard, spread
from ditlab.training.power_ema import PowerAverages
from ditlab.training.resuming import CAPTIONS, COUNT
from ditlab.training.sharded import writes_parts
from ditlab.training.state import TrainState

PATIENCE = 6  # timeouts that a process waits for another one which writes a checkpoint beside the training
FEW = 500  # remaining steps up to which compiling does not pay off


def set_up(job: Job) -> None:
    """Run all stages up to the restored state, which are enough for a finished run."""
    open_data(job)
    open_source(job)
    build_model(job)
    claim_folder(job)
    make_run(job)
    start_from_source(job)
    start_average(job)
    spread_memory(job)
    restore(job)


def prepare_steps(job: Job) -> None:
    """Run the remaining stages, which an unfinished run needs after `set_up`."""
    check_memory(job)
    begin(job)
    check_images(job)
    choose_precision(job)
    compile_network(job)
    spread_network(job)


def open_data(job: Job) -> None:
    """Open the data. This comes first, because classes, channels and size of the network depend on it.

    The share of each process is computed before, so that a batch that cannot be divided is rejected before a large
    folder is read.
    """
    recipe = job.recipe
    divide_batch(job)
    if job.given_data is None:
        settings = replace(recipe.data, channels=channels_to_read(job))
        job.dataset = open_dataset(recipe.data.source, settings, job.skipped_images)
    else:
        job.dataset = job.given_data
    check_dataset(job.dataset)
    if job.files is None and recipe.data.shuffle_shards != Data().shuffle_shards:
        raise InputError(
            f"data.shuffle_shards is {recipe.data.shuffle_shards}, which has no effect on {recipe.data.source}; "
            "remove it"
        )
    check_offload(recipe, job.place.device)
    check_clock(recipe, job.place.device)
    if job.dataset.buckets is not None:
        check_shares(job.dataset.buckets, recipe, job.place)
    if job.place.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for products that are not in bfloat16


def channels_to_read(job: Job) -> int | None:
    """The setting `data.channels`; if it is left out, 3 for a resumed run whose model generates RGB.

    Version 0.1 read gray images as RGB if a size was set, and its models stay as they are.
    """
    data = job.recipe.data
    with warnings.catch_warnings(action="ignore"):  # `restore` warns of damaged checkpoints
        checkpoint = newest_checkpoint(job.folder.folder)
    if data.channels is not None or data.gray or checkpoint is None or not parse_source(data.source, data).resizable:
        return data.channels
    saved = read_config(checkpoint)
    pixels = saved["autoencoder"].get("kind") == "pixel"
    return 3 if pixels and saved["backbone"]["channels"] == 3 else None


def open_source(job: Job) -> None:
    """Load the model to start from. This comes before the network, whose architecture it determines.

    A resumed run loads its newest checkpoint instead, because the model to start from may no longer exist.
    """
    recipe, origin = job.recipe, job.recipe.train.init_from
    checkpoint = newest_checkpoint(job.folder.folder) if origin else None
    job.resumed = checkpoint is not None
    if checkpoint is not None:
        moved = (checkpoint / ADAPTER).exists() and is_there(origin)
        job.source = load(checkpoint, device="cpu", base=origin if moved else None)
    elif origin:
        job.source = load(origin, device="cpu")
    if job.source is not None:
        if not job.resumed:
            check_weights(job.source)
            if note := job.source.config.get("note"):
                job.say(note)
            job.say(inherited(recipe.diffusion, job.source.objective, origin))
        recipe = replace(recipe, model=continued(recipe.model, job.source))
    source = None if job.source is None else job.source.objective
    job.recipe = completed_recipe(recipe, source)


def build_model(job: Job) -> None:
    """Build the model with initial weights. This comes before the folder is created, because it may fail."""
    autoencoder = pick_autoencoder(job.recipe.data.autoencoder, job.dataset, job.source)
    autoencoder.check_images(job.dataset.channels, job.dataset.values)
    job.captions = read_captions(job.recipe.data, job.dataset)
    conditioner = pick_conditioner(job.recipe.data, job.dataset, job.captions, job.source)
    check_encoder_dropout(job.recipe.train, conditioner)
    job.pipe = build(job.recipe, job.dataset, autoencoder, job.place.device, conditioner)
    if job.captions is not None:
        job.pipe.config |= {CAPTIONS: job.captions.digest, PROMPTS: job.captions.examples()}
    pipe = job.pipe
    check_sampling(job.recipe, pipe.objective, pipe.conditional, pipe.resolve)  # now and not at the first preview


def claim_folder(job: Job) -> None:
    """Check the run folder. This needs the complete recipe, and comes before anything is written."""
    for note in job.place.first_does(lambda: job.folder.check(job.recipe, job.pipe, job.dataset, changes=job.changes)):
        job.say(note)
    job.pipe.config[COUNT] = len(job.dataset)
    if job.place.world > 1:
        job.pipe.config[PROCESSES] = job.processes
    if job.captions is None:
        check_condition(job.dataset, job.pipe, job.recipe.data.conditioner)


def make_run(job: Job) -> None:
    """Set up the objective and the aids. They check the network, whose blocks sharding and compiling would hide."""
    job.pipe.net.train()
    check_exits(job.recipe, job.pipe)
    check_given(job.recipe, job.pipe.net)
    job.run = make_context(job.pipe, job.recipe, job.dataset)
    job.run.several_sizes = job.dataset.buckets is not None
    check_aids(job.run)
    check_sequence(job.run, job.place, job.dataset)
    if job.captions is not None and isinstance(job.pipe.conditioner, Text):
        job.run.captions = CaptionConditions.encode(
            job.captions, job.pipe.conditioner, job.recipe.data.text_cache, job.say
        )
        job.pipe.conditioner.keep(job.pipe.config[PROMPTS])  # of previews


def start_from_source(job: Job) -> None:
    """Copy the weights of the model to start from, add low-rank updates, and freeze parts. This precedes averaging.

    A resumed run needs only the same low-rank layers, and the weights of the source if its checkpoint does not hold
    them; all other weights are restored from the checkpoint later.
    """
    settings, net, source = job.recipe.train, job.net, job.source
    if source is None:
        return
    if job.resumed and settings.lora_apart and "lora" in source.config:
        frozen = load(source.config["lora"]["source"], device="cpu")
        copy_frozen(net, frozen, source.config["lora"]["whole"])
    trained = [*net.label_tables, *net.heads_out]  # these tensors have no low-rank updates and are trained whole
    if not job.resumed:
        job.pipe.config[BASE] = state_hash(source.net)
        changes = transfer(net, job.pipe.classes, source, settings.class_map)
        job.console.print(report(changes))
        trained += [change.name for change in changes if change.fate != "kept"]
    elif BASE in source.config:
        job.pipe.config[BASE] = source.config[BASE]
    if settings.lora:
        fresh = {"source": absolute(settings.init_from), "whole": trained}
        job.pipe.config["lora"] = source.config["lora"] if job.resumed else fresh
        add_lora(net, settings.lora, job.pipe.config["lora"]["whole"], settings.seed)
    freeze(net, settings.freeze)


def start_average(job: Job) -> None:
    """Copy the network for the average. This comes after all layers were added, and before blocks are wrapped.

    The step for timing is created here too, before sharding, so that each process can take it alone.
    """
    job.run.ema = EMA(job.net, job.recipe.train.ema, offloaded="average" in job.recipe.parallel.offload)
    job.pipe.net = job.run.ema.net  # previews and checkpoints use the average
    share = job.place.share(job.recipe.train.batch, job.parts)
    job.trial = trial_step(job.run, job.dataset, share)


def spread_memory(job: Job) -> None:
    """Share tokens, enable activation checkpointing, then sharding, in the order that FSDP2 requires.

    Sharding comes before the optimizer, which must hold the sharded parameters. Previews do not share tokens, because
    each process generates other images.
    """
    settings = job.recipe.parallel
    if job.place.sequence > 1:
        job.net.share_tokens(job.place.token_share())
    if settings.checkpointing:
        keep_inputs_only(job.net)
    if "activations" in settings.offload:
        offload_activations(job.net)
    if settings.shard != "none" and not left_alone(job.place):
        for net in (job.net, job.pipe.net):
            shard(net, settings, job.place)


def restore(job: Job) -> None:
    """Create the optimizer and the averages, and restore the newest checkpoint.

    This comes before precision and compilation are chosen, because a run keeps those that it started with.
    """
    averages = PowerAverages(job.net, job.recipe.train.power_ema)
    assert job.run.ema is not None
    optimizer = make_optimizer(job.net, job.recipe.optim, offloaded="moments" in job.recipe.parallel.offload)
    if further := list(job.run.trained.parameters()):
        optimizer.add_param_group({"params": further, "weight_decay": job.recipe.optim.weight_decay})
    job.state = TrainState(job.net, job.run.ema, optimizer, averages, job.run.trained)
    if writes_parts(job.recipe, job.state):
        job.folder.write_together(job.place, PATIENCE * job.recipe.parallel.timeout)
    job.folder.restore(job.state, job.console, place=job.place)
    job.pipe.config |= {"images_seen": job.state.seen, "train_seconds": round(job.state.seconds, 3)}


def check_memory(job: Job) -> None:
    """Compare the memory that the run needs with that of the machine, before a step can run out of memory.

    Precisions are timed later only if a step in each of them fits.
    """
    job.state.precision = job.place.first_does(lambda: fitting_precision(job))


def fitting_precision(job: Job) -> str:
    """The precision of the run if only one is possible; empty if steps may be timed in both.

    Raises:
        InputError: the run needs far more memory than there is.
    """
    settings, state, device = job.recipe.train, job.state, job.place.device
    chosen = state.precision or (settings.precision if settings.precision != "auto" else "")
    if not chosen and not job.steps_alone:
        chosen = quick_precision(job.net.matrix_width, device)
    share = job.place.share(settings.batch, job.parts)
    try:
        parts, room = partial(predicted_memory, job, half=chosen == "bfloat16"), Room.of(device, job.place.world)
        untimed = not chosen and has_bfloat16(device) and peak(parts(share)) > room.total * USABLE
        if untimed:
            chosen, parts = "bfloat16", partial(predicted_memory, job, half=True)
        line = shortage(job.recipe, parts, room, share, job.place.world)
    except InputError:
        raise
    except Exception as error:  # the meta device, which an external network may not support
        job.say(f"the memory of {job.net.config['name']} cannot be predicted ({type(error).__name__}: {error})")
        return state.precision
    if line:
        job.say(line)
    if untimed:
        job.say("a step in float32 does not fit in memory, so the run uses bfloat16 without timing both")
    return chosen


def predicted_memory(job: Job, batch: int, *, half: bool) -> dict[str, float]:
    """Memory of this process in bytes for a number of images at a time: part -> size."""

    def make() -> Backbone:
        config = dict(job.net.config)
        net = create(**config | {"size": tuple(config["size"])})
        if job.recipe.train.lora:
            add_lora(net, job.recipe.train.lora, job.pipe.config["lora"]["whole"], 0)
        return net

    device = job.place.device.type
    parts = memory_parts(make, held_in_training(make, job.recipe), batch, job.recipe, job.place.world, device, half)
    return parts | {"autoencoder": float32_bytes(job.pipe.autoencoder.state_dict().values())}


def begin(job: Job) -> None:
    """Write the run folder for the first time. This comes after all checks."""
    if job.place.first:
        job.folder.begin(job.recipe, job.state.seen)
        report_data(job.dataset, job.recipe.data.source, job.folder.folder, job.console)
        if job.dataset.buckets is not None:
            for line in job.dataset.buckets.plan(job.recipe.train.batch):
                job.say(line)
    if job.captions is not None and isinstance(job.pipe.conditioner, Text):
        for line in job.captions.lines(job.pipe.conditioner):
            job.say(line)
    if job.state.seen:
        job.say(f"resuming {job.folder.folder} at {counted(job.state.seen, 'image')}")


def check_images(job: Job) -> None:
    """Check that enough images can be read. This needs a run folder, in which those are listed that cannot."""
    job.place.first_does(lambda: job.dataset.check(job.console, resumed=job.state.seen > 0))
    if job.place.first:
        report_unreadable(job.dataset, job.recipe.data.source, job.folder.folder, job.console)


def choose_precision(job: Job) -> None:
    """Choose the precision by timing steps. This comes before compiling, which depends on the precision."""
    state, settings, device = job.state, job.recipe.train, job.place.device
    if not state.precision:
        chosen = probe(job.trial, job.net, alone=job.steps_alone) if settings.precision == "auto" else None
        state.precision = job.place.agree(chosen or settings.precision)
    processes = f", {job.place.world} processes" if job.place.world > 1 else ""
    job.say(f"training {job.net.config['name']} on {device} in {state.precision}{processes}")
    if note := slowness(state.precision, device):
        job.say(note)


def compile_network(job: Job) -> None:
    """Compile the blocks if that shortens the remaining run. This comes before DDP wraps the network.

    A resumed run stays compiled or not compiled, so that its weights are bit-identical to those of an uninterrupted
    run.
    """
    recipe, state, net = job.recipe, job.state, job.net
    settings, dtype = recipe.train, getattr(torch, state.precision)
    step = partial(job.trial, dtype)
    if settings.compile == "never":
        return
    if state.compiled is False and settings.compile == "always":
        job.say("this run started without compiling and continues without it, so that its weights stay reproducible")
    if state.compiled is None:
        if not job.steps_alone:  # timing a step would need all processes
            compile_blocks = settings.compile == "always"
        else:
            remaining = (settings.images - state.seen) / settings.batch * job.parts
            compile_blocks = wanted(net, dtype, settings.compile, step, remaining, FEW, job.seconds_left)
        state.compiled = job.place.agree(compile_blocks)
    if state.compiled:
        compile_and_tell(net, step, job.console, dynamic=net.dynamic_depth or job.run.several_sizes)


def spread_network(job: Job) -> None:
    """Wrap the network in DDP. This comes last, because DDP registers the final parameters."""
    job.run.network = spread(job.net, job.recipe.parallel, job.place)
    job.place.wait()


def probe(step: Callable[[torch.dtype], None], net: Backbone, *, alone: bool) -> str:
    """Name of the faster precision for training steps, "float32" or "bfloat16".

    Args:
        step: function that takes a step in a precision.
        net: the network.
        alone: whether this process can take steps without the others; if not, only matrix products are timed.
    """
    width = net.matrix_width
    if not alone:
        return quick_precision(width, net.device)
    return str(faster_dtype(step, net.device, width)).removeprefix("torch.")
