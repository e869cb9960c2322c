"""Which condition and which seed each image of a request has, and points between two of either."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ditlab.conditioning.base import settle
from ditlab.core.errors import InputError
from ditlab.core.types import Between, Label, Seed

LAST_SEED = 2**63 - 1


def arguments(
    labels: Label | Sequence[Label], seeds: Seed | Sequence[Seed] | None, words: Mapping[str, Any]
) -> tuple[list[Label], list[Seed], dict[str, Any]]:
    """One label and one seed for each image, and the other arguments; understands the words of diffusers' pipelines.

    Args:
        labels: one, or one for each image.
        seeds: one, or one for each image; None is seed 0.
        words: all other arguments. `class_labels` are labels. From a `generator` the first image has its initial seed
            and each further image the next number; a list has one generator for each image. `num_images_per_prompt`
            repeats each label, with consecutive seeds.

    Raises:
        InputError: one thing given twice, or counts that do not fit.
    """
    rest = dict(words)
    named = rest.pop("class_labels", None)
    if named is not None:
        if labels is not None:
            raise InputError("labels and class_labels are the same setting; give one of them")
        labels = named
    names = as_list(labels)
    generator, count = rest.pop("generator", None), rest.pop("num_images_per_prompt", None)
    if count is not None:
        if count < 1:
            raise InputError(f"num_images_per_prompt {count}; give 1 or more")
        names = [name for name in names for _ in range(count)]
    if generator is not None:
        if seeds is not None:
            raise InputError("seeds and generator are the same setting; give one of them")
        seeds = seeds_of(generator, len(names))
    elif count is not None and (seeds is None or not isinstance(seeds, Iterable | Between)):
        first = operator.index(seeds or 0)
        seeds = [first + i for i in range(len(names))]
    return *pair_up(names, 0 if seeds is None else seeds), rest


def seeds_of(generator: Any, count: int) -> list[Seed]:
    """Seeds for images from PyTorch's generators."""
    if isinstance(generator, torch.Generator):
        first = generator.initial_seed() % (LAST_SEED + 1)
        return [(first + i) % (LAST_SEED + 1) for i in range(count)]
    return [each.initial_seed() % (LAST_SEED + 1) for each in generator]


def as_list(labels: Label | Sequence[Label]) -> list[Label]:
    """Labels as a list; a single one is a list of one."""
    single = labels is None or isinstance(labels, str) or not isinstance(labels, Iterable)
    return [labels] if single else list(labels)  # type: ignore[arg-type, list-item]


def pair_up(labels: Label | Sequence[Label], seeds: Seed | Sequence[Seed]) -> tuple[list[Label], list[Seed]]:
    """One label and one seed for each image; a single one of either is repeated.

    Raises:
        InputError: different counts, or a seed out of range.
    """
    names = as_list(labels)
    values = [settle(seed) for seed in (seeds if isinstance(seeds, Iterable) else [seeds])]
    numbers = [seed if isinstance(seed, Between) else operator.index(seed) for seed in values]
    for seed in numbers:
        for end in (seed.first, seed.second) if isinstance(seed, Between) else (seed,):
            if not 0 <= end <= LAST_SEED:
                raise InputError(f"seed {end} is out of range; give 0 to {LAST_SEED}")
    if len(names) == 1:
        names *= len(numbers)
    if len(numbers) == 1:
        numbers *= len(names)
    if len(names) != len(numbers) or not names:
        raise InputError(
            f"{len(names)} labels and {len(numbers)} seeds; give one of each for each image, or a single one"
        )
    return names, numbers
