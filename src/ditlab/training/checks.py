"""Checks of a recipe, a model and a data set before training writes anything."""

import math
from collections.abc import Callable

import torch

from ditlab.autoencoders import Autoencoder
from ditlab.backbones import BACKBONES, Backbone
from ditlab.conditioning import CONDITIONERS, Conditioner
from ditlab.config.distill import Distill
from ditlab.config.fields import check_settings, shown
from ditlab.config.sections import Recipe, Train
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.core.units import counted
from ditlab.data import Dataset
from ditlab.data.buckets import SHARED, Buckets
from ditlab.diffusion.objective import TARGETS, WEIGHTS, Objective
from ditlab.diffusion.parametrizations import make_objective
from ditlab.diffusion.process import make_process
from ditlab.diffusion.times import TIMES
from ditlab.inference.given import SHARES
from ditlab.inference.pipeline import Pipeline
from ditlab.training.aids import AIDS, Aid
from ditlab.training.context import TrainingContext
from ditlab.training.objectives import OBJECTIVES
from ditlab.training.parallel import Place
from ditlab.training.power_ema import exponent
from ditlab.training.trackers import TRACKERS


def check_recipe(recipe: Recipe) -> None:
    """Check all settings of a recipe that can be checked without data and models.

    Raises:
        InputError: a number is out of range, a setting has no effect, a name is unknown, or settings exclude each
            other.
    """
    check_settings(recipe)
    check_names(recipe)
    check_distill(recipe)
    for rule in (
        check_network,
        check_averages,
        check_freeze,
        check_sharding,
        check_memory_settings,
        check_layer_sync,
        check_encoder,
    ):
        rule(recipe)


def check_clock(recipe: Recipe, device: torch.device) -> None:
    """Check that the clock measures the work of the device.

    Raises:
        InputError: processor time with another device than the processor.
    """
    if recipe.train.clock == "cpu" and device.type != "cpu":
        raise InputError(
            f'train.clock is "cpu", which does not measure the work of {device.type}; set train.clock to "wall"'
        )


def check_names(recipe: Recipe) -> None:
    """Check that the names of processes, targets and other parts are in their registries."""
    diffusion = recipe.diffusion
    make_process(diffusion.process or "linear", diffusion.process_options)
    TARGETS.find(diffusion.target or "velocity")
    TIMES.find(diffusion.time)
    WEIGHTS.find(diffusion.weight)
    if not recipe.train.init_from:
        make_objective(diffusion)
    OBJECTIVES.find(recipe.train.objective)
    CONDITIONERS.find(recipe.data.conditioner)
    for name in recipe.train.aids:
        AIDS.find(name)
    for name in recipe.train.report:
        TRACKERS.find(name)


def check_network(recipe: Recipe) -> None:
    """Check that the numbers among the options of the network are finite."""
    for key, value in recipe.model.options.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"model.{key} is {number}; give a finite number")


def check_averages(recipe: Recipe) -> None:
    """Check the EMA lengths of power-function averages."""
    if recipe.train.lora and recipe.train.power_ema:
        raise InputError("train.power_ema cannot be combined with train.lora; omit one of them")
    for length in recipe.train.power_ema:
        exponent(length)


def check_freeze(recipe: Recipe) -> None:
    """Check that the parts that are not trained are not given together with low-rank updates, which freeze all."""
    if recipe.train.freeze and recipe.train.lora:
        raise InputError("train.lora freezes the weights, so that train.freeze has no effect; omit one of them")


def check_sharding(recipe: Recipe) -> None:
    """Check for settings that cannot be combined with sharding."""
    if recipe.parallel.shard == "none":
        return
    if recipe.optim.name == "muon":
        raise InputError("muon needs whole matrices, which parallel.shard splits; use adamw, or omit parallel.shard")
    if recipe.train.lora:
        raise InputError("train.lora trains few weights, which need no parallel.shard; omit one of them")


def check_memory_settings(recipe: Recipe) -> None:
    """Check for settings that cannot be combined with offloading or with moments of 8 bits."""
    offload, moments = recipe.parallel.offload, recipe.optim.moments
    if offload and recipe.parallel.shard != "none":
        raise InputError(
            "parallel.offload keeps complete tensors on the host, which parallel.shard splits; omit one of them"
        )
    if "moments" in offload and recipe.optim.name == "muon":
        raise InputError('muon works on the GPU; use adamw, or omit "moments" from parallel.offload')
    if moments == "8bit" and "moments" in offload:
        raise InputError('optim.moments "8bit" are small and stay on the GPU; omit "moments" from parallel.offload')
    if moments == "8bit" and (recipe.parallel.shard != "none" or recipe.parallel.checkpoint == "sharded"):
        raise InputError(
            'optim.moments "8bit" cannot be divided among processes; set it to "float32", or omit parallel.shard and '
            "parallel.checkpoint"
        )


def check_offload(recipe: Recipe, device: torch.device) -> None:
    """Check that offloading has an effect.

    Raises:
        InputError: the run computes where the tensors would be kept.
    """
    if recipe.parallel.offload and device.type == "cpu":
        raise InputError("parallel.offload keeps tensors in the memory of the CPU, on which this run computes; omit it")


def check_layer_sync(recipe: Recipe) -> None:
    """Check that layer synchronization has two blocks and no token routing, with which blocks see different tokens."""
    if recipe.train.layer_sync and (len(recipe.train.layer_sync) != 2 or recipe.train.route):
        raise InputError("train.layer_sync needs the numbers of an early and a late block, and excludes train.route")


def check_encoder(recipe: Recipe) -> None:
    """Check that options of a text encoder have an effect."""
    if recipe.data.encoder_options and recipe.data.conditioner == "class":
        raise InputError(
            'data.encoder_options need a text encoder, but data.conditioner is "class"; remove them or set '
            'data.conditioner to "text"'
        )


def check_encoder_dropout(settings: Train, conditioner: Conditioner) -> None:
    """Check that text encoders can be dropped one by one.

    Raises:
        InputError: an encoder that the model does not have, or a share outside 0 to 1.
    """
    for name, share in settings.encoder_dropout.items():
        if not (names := conditioner.encoders()):
            raise InputError(
                "train.encoder_dropout drops one of several text encoders, and this model does not have several; "
                "remove it, or set train.label_dropout"
            )
        if name not in names:
            raise InputError(f'train.encoder_dropout names "{name}"; the text encoders are {", ".join(names)}')
        if not 0 <= share <= 1:
            raise InputError(f"train.encoder_dropout of {name} is {share:g}; give 0 to 1")


def check_distill(recipe: Recipe) -> None:
    """Check that all settings of [distill] that are not the default have an effect."""
    used, plain = OBJECTIVES.find(recipe.train.objective).distill, Distill()
    for key, value in vars(recipe.distill).items():
        if key not in used and value != getattr(plain, key):
            raise InputError(
                f'distill.{key} is {shown(value)}, but train.objective is "{recipe.train.objective}", which does not '
                "use it; remove it"
            )


def check_guidance(recipe: Recipe, conditional: bool) -> None:
    """Check that a recipe has a guidance scale only if its model will have a condition.

    Raises:
        InputError: the model will be unconditional.
    """
    if not conditional and recipe.sample.guidance != 1:
        raise InputError(
            f"sample.guidance is {recipe.sample.guidance:g}, but the data have no classes, so the model is "
            "unconditional; set sample.guidance to 1, or give data with classes"
        )


def check_sampling(recipe: Recipe, reading: Objective, conditional: bool, resolve: Callable[[], object]) -> None:
    """Check that the model of a recipe can be sampled with the section [sample].

    Args:
        recipe: the recipe.
        reading: how samplers read the model.
        conditional: whether the model will have a condition.
        resolve: computes the sampling plan of the section.

    Raises:
        InputError: a setting is out of range, or does not suit the objective.
    """
    check_guidance(recipe, conditional)
    objective, scale = recipe.train.objective, recipe.sample.guidance
    low, high = reading.built_in or (scale, scale)
    if not low <= scale <= high:
        scales = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        raise InputError(
            f"sample.guidance is {scale:g}, but train.objective {objective} builds guidance {scales} into the model; "
            f"set distill.guidance to {scale:g}, or sample.guidance to {min(max(scale, low), high):g}"
        )
    try:
        resolve()
    except InputError as error:
        raise InputError(f"the section [sample] does not suit train.objective {objective}: {error}") from error


def check_shares(buckets: Buckets, recipe: Recipe, place: Place) -> None:
    """Check that the batches of all sizes can be shared equally among the processes and their parts.

    Raises:
        InputError: they cannot.
    """
    parts = place.teams * recipe.parallel.accumulate
    sizes = buckets.batches(recipe.train.batch)
    if any(size % parts for size in sizes):
        raise InputError(
            f"batches of {', '.join(map(str, sorted(set(sizes))))} images (by the size of the images) cannot be shared "
            f"equally among {counted(place.world, 'process')} with parallel.accumulate = "
            f"{recipe.parallel.accumulate}; use 1, 2, 4 or {SHARED} parts, and a train.batch that {SHARED} divides"
        )


def check_sizes(net: Backbone, autoencoder: Autoencoder, dataset: Dataset) -> None:
    """Check that a network takes the sizes of all images of a data set.

    Raises:
        InputError: it does not.
    """
    if dataset.buckets is None:
        return
    name, stride = net.config["name"], autoencoder.stride
    if net.one_size:
        raise InputError(
            f"the images have several sizes (data.size is native), and {name} takes one, because {net.one_size}; set "
            "data.size to HEIGHTxWIDTH, or choose a network that takes any size"
        )
    needed = max(net.side_multiples[-2:]) * stride
    if any(side % needed for size in dataset.buckets.sizes for side in size[-2:]):
        raise InputError(
            f"{name} needs sides that are multiples of {needed} (its own {needed // stride} times the stride "
            f"{stride} of the autoencoder); set data.multiple = {needed}"
        )
    frames = 1 if len(net.side_multiples) < 3 else net.side_multiples[0]
    if dataset.buckets.frame_multiple % frames:
        raise InputError(
            f"{name} has tokens of {frames} frames; the frames of clips must be divisible by {frames}, and an image "
            f"costs as much as a clip of {frames} frames: set data.frame_multiple = {frames}"
        )
    for size in dataset.buckets.sizes:
        net.check_size(autoencoder.latent_shape(dataset.channels, size)[1])


def check_aids(run: TrainingContext) -> None:
    """Check that the training aids work with images of several sizes, if there are several.

    Raises:
        InputError: one does not.
    """
    for aid in run.aids if run.several_sizes else ():
        if aid.one_size:
            raise InputError(f"{aid.one_size} needs images of one size, and data.size is native; omit one of them")


def check_exits(recipe: Recipe, pipe: Pipeline) -> None:
    """Check that a network with early exits is not sharded, because sharding needs every block in every process."""
    if pipe.net.dynamic_depth and recipe.parallel.shard != "none":
        raise InputError(
            "parallel.shard needs every block in every process, and early exits skip blocks; omit one of them"
        )


def check_sequence(run: TrainingContext, place: Place, dataset: Dataset) -> None:
    """Check that processes can share the tokens of images of all sizes, as `parallel.sequence` says.

    Raises:
        InputError: they cannot, or an aid needs all tokens.
    """
    if place.sequence == 1:
        return
    sizes = [] if dataset.buckets is None else dataset.buckets.sizes
    run.net.check_sharing(place.sequence, [run.autoencoder.latent_shape(dataset.channels, size)[1] for size in sizes])
    for aid in run.aids:
        if aid.taps or type(aid).prepare is not Aid.prepare:
            raise InputError(
                f"parallel.sequence is {place.sequence}, and {aid.one_size or type(aid).__name__} needs all "
                "tokens in one process; omit one of them"
            )


def check_given(recipe: Recipe, net: Backbone) -> None:
    """Check that clips have frames that can be given, and that their network can receive them.

    Raises:
        InputError: they have not, it cannot, or the shares are more than all clips.
    """
    train = recipe.train
    shares = {name: share for name in SHARES if (share := getattr(train, name))}
    if not shares:
        return
    what = ", ".join(f"train.{name} is {share:g}" for name, share in shares.items())
    if sum(shares.values()) > 1 + 1e-9:
        raise InputError(f"{what}, more than 1 together; give shares of all clips")
    if not net.frame_times:
        able = ", ".join(name for name, kind in BACKBONES.items() if kind.frame_times)
        raise InputError(f"{what}, and {net.config['name']} has no given frames; choose a network for clips ({able})")
    least = 3 if train.given_ends else 2
    if net.size[0] < least:
        raise InputError(f"{what}, for clips of {counted(net.size[0], 'frame')}; give clips of {least} or more")


def check_dataset(dataset: object) -> None:
    """Refuse a data set from outside that cannot be trained on.

    Raises:
        InputError: no data set, no images, or labels that are no indices of its classes.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(f"the data is a {type(dataset).__name__}; give a ditlab.data.Dataset")
    if len(dataset) == 0:
        raise InputError("the data has no images")
    labels, last = dataset.labels, max(len(dataset.classes), 1) - 1
    if labels.dtype != torch.int64 or labels.min() < 0 or labels.max() > last:
        raise InputError(
            f"the labels of the data are {labels.dtype} from {labels.min():g} to {labels.max():g}; "
            f"for {counted(len(dataset.classes), 'class')} give torch.int64 from 0 to {last}"
        )


def check_condition(dataset: Dataset, pipe: Pipeline, name: str) -> None:
    """Check that the batches of a data set have the kind of condition that the conditioner returns.

    Raises:
        InputError: the kinds differ; the message names both.
    """
    actual, expected = dataset.fetch(torch.arange(1)).condition, pipe.conditioner.null(1)
    if actual.parts().keys() != expected.parts().keys():
        raise InputError(
            f'data.conditioner "{name}" gives {described(expected)}, but the data has {described(actual)}; '
            "choose the conditioner for this data, or other data"
        )


def described(condition: Condition) -> str:
    """The names of the fields of a condition, for messages."""
    return " and ".join(condition.parts()) or "no condition"
