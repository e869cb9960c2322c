"""The weights of a model in its folder: in one file, in several with an index, or in parts of a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting, read_object
from ditlab.core.io import damage, replace_text
from ditlab.core.weights import WEIGHTS, read_tensors, write_tensors

INDEX = f"{WEIGHTS}.index.json"  # of a large model, whose weights are in several files
FILE_BYTES = 5 * 10**9  # largest file of weights, as on the Hugging Face hub
AVERAGE_PARTS = "ema"  # folder with the average, of a checkpoint that all processes wrote together


def read_model(folder: Path) -> dict[str, Tensor]:
    """Read the averaged weights of a model folder, which may be in one file, in several, or in parts of a checkpoint.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not (folder / INDEX).exists():
        parts = folder / AVERAGE_PARTS
        whole = (folder / WEIGHTS).exists() or not parts.is_dir()
        return read_tensors(folder / WEIGHTS) if whole else read_checkpoint_parts(parts)
    with interpreting(folder / INDEX, "save the model again"):
        files = sorted({str(name) for name in read_object(folder / INDEX)["weight_map"].values()})
    tensors: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise InputError(f"{folder / INDEX} names {name}, which is in another folder; save the model again")
        tensors |= read_tensors(folder / name)
    return tensors


def read_checkpoint_parts(folder: Path) -> dict[str, Tensor]:
    """Read the complete tensors that all processes of a run have written in parts.

    Raises:
        InputError: a file is missing or damaged.
    """
    if (problem := damage(folder.parent, hashes=True, only=f"{folder.name}/*")) is not None:
        raise InputError(f"{folder.parent} is damaged: {problem}; remove it to use the checkpoint before it")
    from ditlab.core.parts import read_complete  # here, because few checkpoints are in parts

    return read_complete(folder)


def write_model(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the weights of a model: one file, or several with an index if they are larger than `FILE_BYTES`.

    Raises:
        OSError: a file cannot be written.
    """
    groups = divided({name: value.nbytes for name, value in tensors.items()}, FILE_BYTES)
    count = max(groups.values())
    if count == 1:
        write_tensors(tensors, folder / WEIGHTS)
        return
    for number in range(1, count + 1):
        part = {name: value for name, value in tensors.items() if groups[name] == number}
        write_tensors(part, folder / file_of(number, count), {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in tensors.values())},
        "weight_map": {name: file_of(number, count) for name, number in groups.items()},
    }
    replace_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def divided(sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """Divide named sizes, in their order, into groups up to a limit: name -> number of its group, from 1."""
    groups, total, number = {}, 0, 1
    for name, size in sizes.items():
        if total and total + size > limit:
            total, number = 0, number + 1
        groups[name], total = number, total + size
    return groups


def file_of(number: int, count: int) -> str:
    """Name of one of several files of weights, as on the Hugging Face hub; numbers begin at 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"
