"""Tensors that several processes write and read in parts, with `torch.distributed.checkpoint`.

    ema/shard-00002-model-00001-of-00003.safetensors    what process 2 holds of the first third of the tensors

Each file is an ordinary safetensors file whose header states where its parts begin in the complete tensors. No file is
a pickle, and any number of processes can read what another number has written.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save

from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.model_files import FILE_BYTES, INDEX, divided, file_of
from ditlab.core.weights import WEIGHTS

GROUP_BYTES = 2**30  # of complete tensors in a group; a process holds its part of one group in memory to write it
GROUPS = 32  # of the tensors of a large network, so that this part is small beside all that a process holds
SMALL = 2**24  # bytes that need not be divided

warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # a single process is no mistake


def write_parts(tensors: dict[str, Tensor], folder: Path, group: Any = None) -> None:
    """Write what this process holds of some tensors; all processes of the group call this with the same names.

    Args:
        tensors: sharded tensors (DTensor), or complete ones that all processes hold and one of them writes.
        folder: a new folder for these tensors alone, which all processes share.
        group: the processes (default: this process alone).

    Raises:
        OSError: a file cannot be written by any of the processes.
        RuntimeError: another process has ended.
    """
    sizes = {name: value.numel() * value.element_size() for name, value in tensors.items()}  # of complete tensors
    groups = divided(sizes, min(GROUP_BYTES, max(SMALL, sum(sizes.values()) // GROUPS)))
    writer = HuggingFaceStorageWriter(str(folder), groups, save_distributed=True)
    try:
        save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise first_failure(error) from error


def first_failure(error: CheckpointException) -> BaseException:
    """The error of the first process that failed."""
    rank = min(error.failures)
    cause = error.failures[rank][0]
    return cause if isinstance(cause, OSError) else RuntimeError(f"process {rank}: {type(cause).__name__}: {cause}")


def outline(folder: Path) -> dict[str, Tensor]:
    """The complete tensors of a folder without their numbers, on the meta device.

    Raises:
        InputError: a file is damaged, or the parts of a tensor do not cover it.
    """
    tensors = {}
    with interpreting(folder, "remove its checkpoint to use the one before it", "holds damaged parts"):
        described = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, value in described.items():
        assert isinstance(value, TensorStorageMetadata)
        # Parts exist in files; a tensor that is larger than its parts together would take memory without an end.
        if sum(part.sizes.numel() for part in value.chunks) != value.size.numel():
            raise InputError(
                f"{folder} lacks a part of {name}; restore its files, or remove its checkpoint to use the one before it"
            )
        tensors[name] = torch.empty(value.size, dtype=value.properties.dtype, device="meta")
    return tensors


def read_parts(folder: Path, targets: Mapping[str, Tensor], group: Any = None) -> None:
    """Read tensors into the parts that this process holds of them; all processes of the group call this.

    Args:
        folder: what `write_parts` has written, with any number of processes.
        targets: the tensors (DTensor or complete ones), whose numbers are replaced.
        group: the processes (default: this process alone).

    Raises:
        InputError: a file is missing or damaged.
    """
    try:
        with torch.no_grad():
            reader = HuggingFaceStorageReader(str(folder))
            load_parts(dict(targets), storage_reader=reader, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise InputError(
            f"{folder} cannot be read ({first_failure(error)}); restore its files, or remove its checkpoint to use the "
            "one before it"
        ) from error


def read_complete(folder: Path) -> dict[str, Tensor]:
    """The complete tensors of a folder, in the memory of this process.

    Raises:
        InputError: a file is missing or damaged.
    """
    tensors = {name: torch.empty_like(value, device="cpu") for name, value in outline(folder).items()}
    read_parts(folder, tensors)
    return tensors


def join_parts(folder: Path, out: Path) -> None:
    """Write the complete tensors of a folder as files of a model, one tensor in memory at a time.

    The files are `model.safetensors`, or `model-00001-of-00003.safetensors` with an index for a large model.

    Args:
        folder: what `write_parts` has written.
        out: the folder of the model, which exists.

    Raises:
        InputError: a file is damaged.
        OSError: a file cannot be written.
    """
    groups = divided({name: value.nbytes for name, value in outline(folder).items()}, FILE_BYTES)
    consolidate_safetensors_files(str(folder), str(out), groups)
    if set(groups.values()) == {1}:
        (out / file_of(1, 1)).rename(out / WEIGHTS)
        (out / INDEX).unlink()
