"""Build the model of a run: autoencoder, conditioner and network with initial weights."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ditlab.autoencoders import Autoencoder, Latent, Pixel
from ditlab.autoencoders.io import fingerprint
from ditlab.backbones import BACKBONES, class_of, create
from ditlab.backbones.text import TEXT_OPTIONS
from ditlab.checkpoints import load_autoencoder
from ditlab.conditioning import CONDITIONERS, Conditioner, Text
from ditlab.conditioning.cache import TextCache, local_folder
from ditlab.conditioning.encoders import NoEncoder
from ditlab.config.reader import to_tables
from ditlab.config.sections import Data, Recipe
from ditlab.core.errors import InputError
from ditlab.core.units import sides_of
from ditlab.core.values import EIGHT_BITS
from ditlab.data import Dataset, Latents
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.sizes import SIZES
from ditlab.training.captions import Captions
from ditlab.training.checks import check_sizes
from ditlab.training.objectives import OBJECTIVES


def pick_autoencoder(name: str, dataset: Dataset, source: Pipeline | None) -> Autoencoder:
    """Choose the autoencoder: that of a latent cache, the named one, that of the source model, or pixels.

    Args:
        name: folder or name of an autoencoder, or empty.
        dataset: the data.
        source: the model to start from, or None.

    Raises:
        InputError: a latent cache was encoded with another autoencoder than the named one or the source model's.
    """
    chosen = load_autoencoder(name) if name else None
    if chosen is None and source is not None and isinstance(source.autoencoder, Latent):
        chosen = source.autoencoder
    if not isinstance(dataset, Latents):
        return chosen or Pixel()
    cached, made_with = load_autoencoder(dataset.folder / "autoencoder"), dataset.description.autoencoder
    for autoencoder, what in ((cached, "is saved beside it"), (chosen, "this run uses")):
        if autoencoder is not None and fingerprint(autoencoder) != made_with:
            raise InputError(
                f"the cache {dataset.folder} was made with autoencoder {made_with[:12]}, not with "
                f"{fingerprint(autoencoder)[:12]}, which {what}; encode the images again"
            )
    return cached


def pick_conditioner(
    settings: Data, dataset: Dataset, captions: Captions | None, source: Pipeline | None
) -> Conditioner:
    """Build the conditioner for the data; one for text is that of the source model, if this has one.

    Args:
        settings: the [data] section of the recipe.
        dataset: the data.
        captions: the captions of the data; None if the conditioner reads none.
        source: the model to start from, or None.

    Raises:
        InputError: a setting is invalid, or differs from that of the source.
    """
    kind = CONDITIONERS.find(settings.conditioner)
    if captions is None:
        return kind.for_data(dataset, {} if settings.classes is None else {"classes": settings.classes})
    encoder = source.conditioner.encoder if source is not None and isinstance(source.conditioner, Text) else None
    if source is None or encoder is None or isinstance(encoder, NoEncoder):
        if settings.text_cache and not settings.encoder:
            if settings.encoder_options:
                raise InputError(
                    "data.encoder_options have no effect with data.text_cache, which contains its encoder; remove "
                    "them, or set data.encoder too"
                )
            return Text(TextCache.open(local_folder(settings.text_cache)).config)
        options = {"encoder": settings.encoder, "options": settings.encoder_options, "captions": captions.texts}
        return kind.for_data(dataset, options)
    trained = encoder.config["kind"]
    if settings.encoder not in ("", trained):
        raise InputError(
            f'data.encoder is "{settings.encoder}", but the model to start from was trained with "{trained}"; '
            "remove data.encoder"
        )
    if settings.encoder_options:
        raise InputError("data.encoder_options cannot change the encoder of the model to start from; remove them")
    return source.conditioner


def check_network(recipe: Recipe, derived: Mapping[str, Any]) -> None:
    """Check that the network reads the conditions, and that the recipe does not set what follows from the data.

    Args:
        recipe: the settings.
        derived: the options of the network that the conditioner determines.

    Raises:
        InputError: the network reads no text, or an option of the recipe has another value.
    """
    known = inspect.signature(class_of(recipe.model.name)).parameters
    if derived.get(TEXT_OPTIONS[0]) and TEXT_OPTIONS[0] not in known:
        readers = [name for name, kind in BACKBONES.items() if TEXT_OPTIONS[0] in inspect.signature(kind).parameters]
        raise InputError(
            f"{recipe.model.name} reads no text; choose a network that does ({', '.join(readers)}), or another "
            "data.conditioner"
        )
    for key, value in derived.items():
        if recipe.model.options.get(key, value) != value:
            raise InputError(f"model.{key} is {recipe.model.options[key]}, but the data give {value}; remove it")


def build(
    recipe: Recipe,
    dataset: Dataset,
    autoencoder: Autoencoder,
    device: torch.device,
    conditioner: Conditioner | None = None,
) -> Pipeline:
    """Build a model with initial weights for this data; by default with the conditioner for data without captions."""
    conditioner = conditioner or pick_conditioner(recipe.data, dataset, None, None)
    channels, size = autoencoder.latent_shape(dataset.channels, dataset.size)
    derived = conditioner.network_options()
    check_network(recipe, derived)
    objective = OBJECTIVES.find(recipe.train.objective).reading(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)  # initial weights only; all later randomness has its own generators
        shape = {"size": size, "channels": channels, "learn_variance": objective.learn_variance}
        net = create(**vars(recipe.model) | derived | shape, inputs=objective.inputs)
    check_sizes(net, autoencoder, dataset)
    tables = to_tables(recipe)
    config: dict[str, Any] = {"sample": tables["sample"], "recipe": tables}
    if dataset.values != EIGHT_BITS:
        config["values"] = dataset.values.describe()
    if dataset.buckets is not None:
        counts = zip(dataset.buckets.sizes, dataset.buckets.counts, strict=True)
        config[SIZES] = {sides_of(size): count for size, count in counts}
    if dataset.attribution:
        config["attribution"] = dataset.attribution
    if share := dataset.preprocessing.get("held_out"):  # also that of a latent cache
        config["held_out"] = share
    return Pipeline(net.to(device), objective, autoencoder.to(device), config=config, conditioner=conditioner)
