"""Differences between a run folder and the present call. Places are compared by content, not by spelling."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ditlab.autoencoders import Autoencoder, Latent
from ditlab.autoencoders.io import fingerprint, read_part
from ditlab.checkpoints import load
from ditlab.conditioning import Text
from ditlab.conditioning.encoders.base import rule_of
from ditlab.config.fields import places, renamed, resume_rules, unused_keys
from ditlab.config.reader import parse_recipe, read_toml, to_tables
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.spelling import all_nfc, same_place
from ditlab.core.units import counted, describe_difference
from ditlab.core.values import PixelValues
from ditlab.core.weights import BASE, checkpoints, read_config, state_hash
from ditlab.data import Dataset
from ditlab.data.identity import Changes
from ditlab.diffusion.parametrizations import completed
from ditlab.inference.pipeline import Pipeline
from ditlab.training.data_index import DataIndex

COUNT = "pictures"  # key of config.json: images in the data
CAPTIONS = "captions"  # key of config.json: hash of the captions of the data
CLASSES = "classes"
VALUES = "values"  # key of config.json: what the numbers of the images are
Differences = dict[str, str]  # key -> description


def saved_recipe(file: Path) -> Recipe:
    """Read the recipe of a run, which may have setting names of earlier versions."""
    tables, _ = renamed(Recipe, read_toml(file))
    recipe = parse_recipe(tables, source=str(file))
    return replace(recipe, diffusion=completed(recipe.diffusion))


def compare_run(folder: Path, recipe: Recipe, pipe: Pipeline, index: DataIndex) -> tuple[Differences, list[str]]:
    """Compare a run that has checkpoints with a recipe, a model and a data set.

    Returns:
        The differences that matter, and a note for each place that has moved and holds the same content.
    """
    before = saved_recipe(folder / "recipe.toml")
    differing, notes = differences(before, recipe), []
    for checkpoint in reversed(checkpoints(folder)):
        with suppress(InputError):  # a damaged checkpoint
            config = read_config(checkpoint)
            differing |= (
                other_images(config, index.dataset, pipe) | other_captions(config, pipe) | other_shape(config, pipe)
            )
            notes += settle_autoencoder(differing, checkpoint, pipe.autoencoder)
            notes += settle_encoder(differing, config, pipe)
            notes += settle_base(differing, config, recipe.train.init_from)
            break
    return differing, settle_images(differing, index.changes, before, recipe) + notes


def differences(before: Recipe, now: Recipe) -> Differences:
    """Settings that differ and that a resumed run may not change freely; two spellings of one path do not differ.

    Settings that had no effect, which earlier versions accepted, do not count.
    """
    old, new = to_tables(before), to_tables(now)
    rules = resume_rules(Recipe) | dict.fromkeys(unused_keys(before), "free")
    paths, differing = places(Recipe), {}
    for section, table in old.items():
        for name in dict.fromkeys([*table, *new[section]]):
            key, was, is_ = f"{section}.{name}", table.get(name), new[section].get(name)
            same = was == is_ or (key in paths and same_place(was or "", is_ or ""))
            if rules.get(key) != "free" and not same:
                differing[key] = describe_difference(key, was, is_)
    return differing


def other_images(config: dict[str, Any], dataset: Dataset, pipe: Pipeline) -> Differences:
    """Differences between the data of a checkpoint and the present data.

    The recipe may be the same. Classes determine the labels, and the number of images determines their order. A model
    that reads captions has no classes, even if its data have some.
    """
    differing = {}
    before, now = all_nfc(config.get("classes", dataset.classes)), all_nfc(dataset.classes)
    if before != now and not isinstance(pipe.conditioner, Text):
        i = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
        was, is_ = (f'"{names[i]}"' if i < len(names) else "none" for names in (before, now))
        differing[CLASSES] = f"class {i} of the images was {was} there and is {is_} here"
    if (count := config.get(COUNT)) not in (None, len(dataset)):
        differing[COUNT] = f"{counted(count, 'image')} there, {len(dataset):,} here"
    saved = PixelValues.read(config.get(VALUES))
    if replace(saved, shown=()) != replace(dataset.values, shown=()):
        differing[VALUES] = f"values {saved.summary()} there, {dataset.values.summary()} here"
    return differing


def other_captions(config: dict[str, Any], pipe: Pipeline) -> Differences:
    """Other captions, which are encoded and chosen differently."""
    before, now = config.get(CAPTIONS), pipe.config.get(CAPTIONS)
    return {} if before == now else {CAPTIONS: "the captions of the images have changed"}


def other_shape(config: dict[str, Any], pipe: Pipeline) -> Differences:
    """Another input of the network, which other images without data.size may have."""
    parts = (config["backbone"], pipe.net.config)
    was, is_ = ("x".join(map(str, [part.get("channels"), *part.get("size", ())])) for part in parts)
    if was == is_:
        return {}
    return {"shape": f"the input of the network is {was} there, {is_} here"}


def settle_images(differing: Differences, changes: Changes | None, before: Recipe, now: Recipe) -> list[str]:
    """Replace differences of data.source by those of its images, if they are known; returns notes."""
    if changes is None:  # an earlier version kept no list of the images
        return []
    moved, count = differing.pop("data.source", ""), differing.pop(COUNT, "")
    differing.pop("data.labels", None)  # labels themselves are compared
    if changes:
        differing[COUNT] = f"{', '.join(filter(None, [moved, count])) or 'other images'}: {changes}"
        return []
    was, is_ = before.data.source, now.data.source
    return [f"data.source was {was} and is {is_}, with the same images"] if moved else []


def settle_autoencoder(differing: Differences, checkpoint: Path, present: Autoencoder) -> list[str]:
    """Compare the autoencoder of a checkpoint with the present one, wherever it comes from; returns notes."""
    key = "data.autoencoder"
    moved = differing.pop(key, "")
    if isinstance(present, Latent) and fingerprint(read_part(checkpoint)) != fingerprint(present):
        differing[key] = f"{moved or key}: it is another autoencoder than that of the run"
        return []
    return [f"{moved}, with the same weights"] if moved else []


def settle_encoder(differing: Differences, config: dict[str, Any], pipe: Pipeline) -> list[str]:
    """Compare the text encoder of a checkpoint with the present one, wherever its captions are; returns notes."""
    saved = config.get("conditioner", {}).get("encoder")
    if saved is None or not isinstance(pipe.conditioner, Text):
        return []
    keys = ("data.encoder", "data.encoder_options", "data.text_cache")
    moved = [text for key in keys if (text := differing.pop(key, ""))]
    if rule_of(saved) == pipe.conditioner.encoder.rule:
        return [f"{text}, with the same text encoder" for text in moved]
    if moved or CAPTIONS not in differing:  # words follow from the captions
        differing[keys[0]] = f"{', '.join(moved) or keys[0]}: it is another text encoder than that of the run"
    return []


def settle_base(differing: Differences, config: dict[str, Any], origin: str) -> list[str]:
    """Compare the weights of a model to start from that is at another place; returns notes.

    A resumed run does not need this model, except for low-rank updates that are saved separately.
    """
    key = "train.init_from"
    if key not in differing or not origin or BASE not in config:
        return []
    moved = differing.pop(key)
    if state_hash(load(origin, device="cpu").net) != config[BASE]:
        differing[key] = f"{moved}, with other weights"
        return []
    return [f"{moved}, with the same weights"]


def changeable(key: str) -> bool:
    """Whether a run may resume with another value of a setting if the user allows changes."""
    return key in (COUNT, VALUES) or resume_rules(Recipe).get(key) == "ask"
