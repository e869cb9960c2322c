"""Read weights from model folders, run folders and third-party files, and write weight files.

The format of a third-party file is recognized by its content, and no code in it is executed: it is read as safetensors
or as a torch pickle with `weights_only=True`, memory-mapped where the format allows.
"""

import argparse
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from ditlab.core.errors import InputError, nothing_at
from ditlab.core.formats import interpreting, read_object, reason
from ditlab.core.io import MANIFEST, WINDOWS, damage, moved_aside, replacing
from ditlab.core.sizes import check_archive, check_regular, most_bytes
from ditlab.core.spelling import is_utf8

WEIGHTS, AUTOENCODER, CONDITIONER = "model.safetensors", "autoencoder.safetensors", "conditioner.safetensors"
CONFIG = "config.json"
BASE = "init_from_hash"  # key of config.json: hash of the weights that training started from
LARGE = 64 * 2**20  # bytes of a file
ALIGNMENT = 64  # bytes, of PyTorch's allocator on a CPU
ADAPTER = "adapter.safetensors"  # low-rank updates that are saved apart from the weights they change
RAW_PARTS = "raw"  # folder with these weights, of a checkpoint that all processes wrote together
RAW = "raw.safetensors"  # the weights that are trained, in a checkpoint
AVERAGED = "ema.safetensors"  # the average with its low-rank updates, from which training resumes


def state_hash(net: torch.nn.Module) -> str:
    """Hash of a network's weights and their names: the first 16 hexadecimal digits of SHA-256."""
    return weights_digest(net).hexdigest()[:16]


def weights_digest(net: torch.nn.Module, begin: bytes = b"") -> "hashlib._Hash":
    """SHA-256 of `begin` and of a network's weights and their names."""
    digest = hashlib.sha256(begin)
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest undamaged checkpoint folder of a run, or None if there is none.

    Damaged folders are skipped with a warning. Only the sizes of files are checked.
    """
    for folder in reversed(checkpoints(run)):
        problem = checkpoint_damage(folder)
        if problem is None:
            return folder
        warnings.warn(f"{folder} is damaged and is skipped: {problem}", stacklevel=2)
    return None


def checkpoint_damage(folder: Path, *, hashes: bool = False, share: tuple[int, int] = (0, 1)) -> str | None:
    """Describe what is wrong with a checkpoint; None if it is whole. Arguments as for `ditlab.core.io.damage`."""
    if (folder / RAW_PARTS).is_dir() and not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing, which is written when all parts are complete"
    return damage(folder, hashes=hashes, share=share)


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("*") if path.name.isdigit())


def read_weights(file: Path, expected: Mapping[str, Tensor], *, checked: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file and check their names and shapes; arguments as for `read_tensors`.

    Raises:
        InputError: the file cannot be read, or its names or shapes differ from those expected.
    """
    return fit(read_tensors(file, checked=checked), expected, str(file))


def read_tensors(file: Path, *, checked: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file that ditlab wrote, and check its hash if its folder has a manifest.

    Args:
        file: the file.
        checked: whether the caller has just compared the hashes of its folder, which takes seconds for large files.

    Raises:
        InputError: the file does not exist or is damaged.
    """
    unchecked = not checked and file.exists()
    if unchecked and (problem := damage(file.parent, hashes=True, only=file.name)) is not None:
        raise InputError(
            f"{file.parent} is damaged: {problem}; restore it from a copy, remove it if it is a checkpoint, or remove "
            f"its {MANIFEST} if you changed the weights yourself"
        )
    try:
        tensors = mapped(file) if is_utf8(file) else load(file.read_bytes())  # the library opens no other paths
        # They lie in the mapped file, which could then be neither replaced nor removed.
        return {key: value.clone() for key, value in tensors.items()} if WINDOWS else tensors
    except FileNotFoundError:
        raise InputError(f"no weights at {file}; give a model folder or a run folder with a checkpoint") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is truncated or not a safetensors file ({error}); restore it, "
            "or remove its checkpoint folder to use the previous checkpoint"
        ) from error


def mapped(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, aligned in memory.

    A large file is mapped once for each tensor, so that the pages of one that is copied (see `aligned`) are free before
    the next one is read.
    """
    if file.stat().st_size < LARGE:
        return {name: aligned(value) for name, value in load_file(file).items()}
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
    return {name: aligned(_mapped(file, name)) for name in names}


def _mapped(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        value: Tensor = opened.get_tensor(name)
        return value


def write_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file completely or not at all, with the permissions that the umask gives to new files.

    Args:
        tensors: contiguous tensors by name.
        file: the file, which is replaced if it exists; its folder is created.
        metadata: texts in the header of the file.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(file) as draft:
        draft.touch()
        permissions = draft.stat().st_mode
        try:
            save_file(dict(tensors), draft, metadata)  # replaces the draft by a file that only its owner may read
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
        draft.chmod(permissions)


def write_pickle(content: Any, file: Path) -> None:
    """Write a file with `torch.save` completely or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(file) as draft:
        try:
            with draft.open("wb") as opened:
                torch.save(content, opened)
        except RuntimeError as error:  # PyTorch hides the reason
            if isinstance(cause := error.__context__, OSError):
                raise OSError(cause.errno, cause.strerror, str(file)) from error
            raise


def fit(tensors: dict[str, Tensor], expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Check names and shapes of tensors, and return them aligned in memory.

    Raises:
        InputError: names are missing or unused, or shapes differ; the message lists the first four.
    """
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unused {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} is {list(tensors[key].shape)}, not {list(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        raise InputError(f"{source} does not fit its network: {'; '.join(problems[:4])} ({len(problems)} in all)")
    return {key: aligned(value) for key, value in tensors.items()}


def aligned(value: Tensor) -> Tensor:
    """Return a tensor whose address is a multiple of 64 bytes, as PyTorch's allocator chooses it.

    In a mapped file an address is only a multiple of 8 bytes. Some CPU kernels sum in another order at such addresses,
    so that the outputs of a loaded model would differ in the last bits from those of the saved model.
    """
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model folder.

    Raises:
        InputError: the file does not exist, cannot be read, or was not written by ditlab.
    """
    file = folder / CONFIG
    try:
        config = read_object(file)
    except FileNotFoundError:
        if (aside := moved_aside(folder)) is not None:
            raise InputError(f"saving {folder} was interrupted; rename {aside}, the earlier model, to it") from None
        places = f"give a model folder (with {CONFIG}), a run folder or a file of weights"
        raise nothing_at(folder, "model", places) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {reason(error)}; restore it from a copy") from error
    if config.get("format") != "ditlab":
        raise InputError(f"{file} was not written by ditlab; give a ditlab model or run folder")
    return config


WRAPPERS = ("_orig_mod.", "module.")  # torch.compile, DistributedDataParallel


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a third-party model.

    Raises:
        InputError: the file does not exist, cannot be read, or holds no JSON object.
    """
    try:
        return read_object(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; give a model's folder, with all its files") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}; download the whole folder again") from error


def read_file(path: Path) -> dict[str, Any]:
    """Read a weights file: a state dict, or a training checkpoint with several state dicts.

    Raises:
        InputError: the file is not a weights file, is truncated, or is a pickle that needs to run code.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise InputError(f"{path} is empty (0 bytes); download or copy it again")
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_pickle(path, zipped=start[:2] == b"PK")
    if start[8:9] == b"{":
        return _read_safetensors(path)
    raise InputError(f"{path} is neither a safetensors file nor a torch checkpoint; give one of these")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return mapped(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); download or copy it again") from error


def _read_pickle(path: Path, zipped: bool) -> dict[str, Any]:
    with interpreting(path, "download or copy it again", "is truncated or damaged"):
        try:
            # Official checkpoints keep their command line in a Namespace, which holds plain values only.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = read_state(path, mmap=zipped)
        except pickle.UnpicklingError as error:
            match = re.search(r"GLOBAL (\S+)", str(error))
            problem = f"would run code of {match[1]}" if match else "is not a plain checkpoint"
            raise InputError(
                f"{path} {problem}; it was rejected and no code was run: give a file that holds tensors only"
            ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict; give a checkpoint")
    return content


def read_state(path: Path, *, mmap: bool = False) -> Any:
    """Read a pickle of plain values and tensors, which run no code and are not much larger than the file.

    Args:
        path: a file of `torch.save`.
        mmap: map tensors into memory.

    Raises:
        InputError: it would take much more memory than the file.
        Exception: it is damaged or needs to run code; of many types.
    """
    if zipfile.is_zipfile(path):
        check_archive(path)
    content = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    check_tensors(content, path)
    return content


def check_tensors(content: Any, path: Path) -> None:
    """Check that the tensors in a pickle are ordinary ones, and not much larger than the file.

    A tensor may repeat its numbers without storing them (with a stride of 0), so that its first copy takes gigabytes.

    Args:
        content: what was read: tensors in dicts and lists.
        path: the file.

    Raises:
        InputError: they are not.
    """
    total, largest, waiting, visited = 0, ("", 0, torch.Size()), [("", content)], set[int]()
    while waiting:
        name, value = waiting.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, Mapping):
            waiting += [(str(key), part) for key, part in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(name, part) for part in value]
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                kind = "quantized" if value.is_quantized else f"{value.layout} on {value.device}"
                raise InputError(f"{path}: {name} is no plain tensor ({kind}); save plain tensors")
            size = value.numel() * value.element_size()
            total, largest = total + size, max(largest, (name, size, value.shape), key=lambda entry: entry[1])
    if total > (most := most_bytes(path.stat().st_size)):
        name, _, shape = largest
        raise InputError(
            f"{path} has {path.stat().st_size:,} bytes, and its tensors would take {total:,} ({name} is "
            f"{'x'.join(map(str, shape))}); at most {most:,} are read: save contiguous tensors"
        )


def pick_weights(content: dict[str, Any], weights: str, path: Path) -> dict[str, Tensor]:
    """Return the state dict in the content of a weights file, without the key prefixes of wrappers.

    Args:
        content: a state dict, or a training checkpoint with the entries "ema" and "model".
        weights: the entry to use, "ema" or "model".
        path: the file, for messages.

    Raises:
        InputError: the checkpoint has no such entry, or holds no tensors.
    """
    if isinstance(state := content.get("state_dict"), Mapping):  # as PixArt's code names them
        average = content.get("state_dict_ema")
        content = {"ema": average, "model": state} if isinstance(average, Mapping) else dict(state)
    parts = [name for name in ("ema", "model") if isinstance(content.get(name), Mapping)]
    if parts:
        if weights not in parts:
            raise InputError(f'{path} has no "{weights}" weights; choose weights={" or ".join(parts)}')
        content = content[weights]
    tensors = {strip(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors; give a checkpoint")
    return separate(tensors)


def separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two share memory, as those of a network must not; all are contiguous."""
    taken, separated = set[int](), {}
    for name, value in tensors.items():
        address = value.untyped_storage().data_ptr()
        shared = value.numel() > 0 and address in taken
        separated[name] = value.clone(memory_format=torch.contiguous_format) if shared else value.contiguous()
        taken.add(address)
    return separated


def strip(key: str) -> str:
    """Return a key without the prefixes of torch.compile and DistributedDataParallel."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key
