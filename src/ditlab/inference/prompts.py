"""Prompts of a request: negative prompts, and files with prompts."""

from pathlib import Path
from typing import Any

from ditlab.conditioning import Conditioner, Text
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.sizes import read_text


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
