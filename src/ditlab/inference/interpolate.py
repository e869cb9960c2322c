"""Determine the label and the seed of every image of a request, including interpolations."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ditlab.conditioning.base import settle
from ditlab.config.values import whole
from ditlab.core.errors import InputError
from ditlab.core.types import Between, Label, Seed
from ditlab.core.units import counted

LAST_SEED = 2**63 - 1


def arguments(
    labels: Label | Sequence[Label], seeds: Seed | Sequence[Seed] | None, words: Mapping[str, Any]
) -> tuple[list[Label], list[Seed], dict[str, Any]]:
    """Return one label and one seed per image, and the other arguments; accepts the names of diffusers' pipelines.

    Args:
        labels: one label, or one per image.
        seeds: one seed, or one per image; None is seed 0.
        words: all other arguments. `class_labels`, `prompt` and `prompts` are labels. With a `generator`, the first
            image has its initial seed, and the following images have consecutive seeds; a list has one generator per
            image.
            `num_images_per_prompt` repeats each label, with consecutive seeds.

    Raises:
        InputError: a setting is given under two names, or the numbers of labels and seeds differ.
    """
    options = dict(words)
    for alias in ("class_labels", "prompt", "prompts"):
        if (values := options.pop(alias, None)) is not None:
            if labels is not None:
                raise InputError(f"labels and {alias} are the same setting; give one of them")
            labels = values
    names = as_list(labels)
    generator, count = options.pop("generator", None), options.pop("num_images_per_prompt", None)
    if count is not None:
        if (count := whole(count, "num_images_per_prompt")) < 1:
            raise InputError(f"num_images_per_prompt {count}; give 1 or more")
        names = [name for name in names for _ in range(count)]
    if generator is not None:
        if seeds is not None:
            raise InputError("seeds and generator are the same setting; give one of them")
        seeds = seeds_of(generator, len(names))
    elif count is not None and (seeds is None or not isinstance(seeds, Iterable | Between)):
        first = seed_number(0 if seeds is None else seeds)
        seeds = [first + i for i in range(len(names))]
    return *pair_up(names, 0 if seeds is None else seeds), options


def seeds_of(generator: Any, count: int) -> list[Seed]:
    """Return seeds for `count` images from one generator of PyTorch, or from one generator per image."""
    if isinstance(generator, torch.Generator):
        first = generator.initial_seed() % (LAST_SEED + 1)
        return [(first + i) % (LAST_SEED + 1) for i in range(count)]
    if not isinstance(generator, Iterable) or not all(isinstance(source, torch.Generator) for source in generator):
        raise InputError(f"generator {generator!r}; give a torch.Generator, or a list with one for each image")
    return [source.initial_seed() % (LAST_SEED + 1) for source in generator]


def as_list(labels: Label | Sequence[Label]) -> list[Label]:
    """Return labels as a list; a single label becomes a list of one."""
    return [labels] if isinstance(labels, str) or is_single(labels) else list(labels)  # type: ignore[arg-type, list-item]


def is_single(value: Any) -> bool:
    """Whether a value is one label or seed and not a sequence; arrays and tensors without an axis are one value."""
    return not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0


def seed_number(seed: Any) -> int:
    """Return a seed as an integer.

    Raises:
        InputError: it is not a whole number from 0 to `LAST_SEED`.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise InputError(f"seed {seed!r} is not a whole number; give 0 to {LAST_SEED}") from None
    if not 0 <= number <= LAST_SEED:
        raise InputError(f"seed {number} is out of range; give 0 to {LAST_SEED}")
    return number


def pair_up(labels: Label | Sequence[Label], seeds: Seed | Sequence[Seed]) -> tuple[list[Label], list[Seed]]:
    """Return one label and one seed per image; a single label or seed is repeated.

    Raises:
        InputError: the numbers of labels and seeds differ, or a seed is no whole number in range.
    """
    names = as_list(labels)
    values = [settle(seed) for seed in ([seeds] if is_single(seeds) else seeds)]  # type: ignore[union-attr]
    numbers = [
        Between(seed_number(seed.first), seed_number(seed.second), seed.weight)
        if isinstance(seed, Between)
        else seed_number(seed)
        for seed in values
    ]
    if len(names) == 1:
        names *= len(numbers)
    if len(numbers) == 1:
        numbers *= len(names)
    if len(names) != len(numbers) or not names:
        raise InputError(
            f"{counted(len(names), 'label')} and {counted(len(numbers), 'seed')}; give as many labels as seeds, or a "
            "single one"
        )
    return names, numbers
