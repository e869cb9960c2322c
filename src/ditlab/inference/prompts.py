"""Prompts of a request: negative prompts, files with prompts, and the captions of data."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ditlab.conditioning import Conditioner, Text
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Data, Preparation
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.sizes import read_text
from ditlab.data import Dataset, open_dataset, parse_source
from ditlab.data.base import caption_from
from ditlab.data.parse import IN_PYTHON, as_divided

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline

PROMPT_FILE = ".txt"


def negative_text(
    prompt: Any, conditioner: Conditioner, guidance: float, *, guided_by_model: bool = False
) -> str | None:
    """The negative prompt of a request; None if there is none, or if it is empty, which is the null condition.

    Args:
        prompt: what the caller gave.
        conditioner: the conditioner of the model.
        guidance: the guidance scale.
        guided_by_model: whether another model takes the place of the null condition.

    Raises:
        InputError: the prompt is no text, or has no effect.
    """
    if prompt is None or prompt == "":
        return None
    if not isinstance(prompt, str):
        raise InputError(f"negative_prompt {prompt!r}; give one text for all images")
    if not isinstance(conditioner, Text):
        raise InputError(f'negative_prompt "{prompt}" for a model that reads no text; leave it out')
    if guided_by_model:
        raise InputError(
            "negative_prompt has no effect with a guide model, which takes its place; leave one of them out"
        )
    if guidance == 1:
        raise InputError("negative_prompt has no effect at guidance 1, which disables guidance; set guidance above 1")
    return prompt


def read_prompts(file: Path) -> list[str]:
    """Read prompts from a text file, one in each line; empty lines are left out.

    Raises:
        InputError: there is no such file, it is not UTF-8, or it has no prompts.
    """
    try:
        lines = read_text(file).splitlines()
    except FileNotFoundError:
        raise InputError(f"no file of prompts {file}; {nearest_path(file, 'give an existing file')}") from None
    except OSError as error:
        raise InputError(f"cannot read the prompts {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the prompts {file} are not UTF-8; save the file as UTF-8") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise InputError(f"{file} has no prompts; write one in each line")
    return prompts


def prompts_of(pipe: "BasePipeline", source: str, count: int, seed: int) -> list[str | None]:
    """Prompts for a set of images of a model that reads text: at most `count`, which the images have in turn.

    Those of a text file are in its order. Those of a data source are captions of different images in random order, one
    caption of each; None for an image without captions, which training has as the null condition too.

    Args:
        pipe: the model.
        source: a text file with a prompt in each line, or a data source; empty is the training data.
        count: number of images in the set.
        seed: chooses images and captions.

    Raises:
        InputError: the training data are not known, the source cannot be read, or it has no captions.
    """
    if source.endswith(PROMPT_FILE):
        return [*read_prompts(Path(source))[:count]]
    data, name, template = captioned(pipe, source)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)[:count].tolist()
    shares = torch.rand(len(order), generator=generator).tolist()
    prompts: list[str | None] = []
    for i, share in zip(order, shares, strict=True):
        captions = data.captions(i)
        if not captions and template:
            captions = (caption_from(template, data.classes[int(data.labels[i])]),)
        prompts.append(captions[int(share * len(captions))] if captions else None)
    if not any(prompts):
        raise InputError(f"{name} has no captions; give prompts: a text file with one in each line, or other data")
    return prompts


def captioned(pipe: "BasePipeline", source: str) -> tuple[Dataset, str, str]:
    """Open a data source, by default the training data, for its captions; returns also its name and its template.

    Raises:
        InputError: the training data are not known, or the source cannot be opened.
    """
    table = pipe.model.config.get("recipe", {}).get("data")
    trained = parse_recipe({"data": table}).data if table else replace(Data(), source="")
    name = source or trained.source
    if not name or name.startswith(IN_PYTHON):
        which = "were given in Python" if name else "are not known"
        raise InputError(
            f"this model reads prompts, and its training data {which}; give prompts: a text file with one in each "
            f"line ({PROMPT_FILE}), or data with captions"
        )
    if not source:
        return open_dataset(name, trained), name, trained.caption_template
    size = "x".join(map(str, pipe.picture_shape[1]))
    settings = as_divided(name, Preparation(size=size, caption_column=trained.caption_column), trained)
    return open_dataset(name, settings if parse_source(name).resizable else None), name, ""
