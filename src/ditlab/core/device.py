"""Devices, memory and precision of this machine, and the rank of this process under a distributed launcher."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ditlab.core.errors import InputError

if TYPE_CHECKING:  # every command imports this file, and importing torch is slow
    import torch

OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
GROUP_FILES = {  # limit, use, and the part of the use that the system releases, in the two versions of control groups
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt(3)
ARENA_MAX = -8  # an option of mallopt


def keep_freed_memory() -> None:
    """Let the C library keep up to 2 GiB of freed memory for the next tensors. Call it once, before any work.

    glibc returns every large tensor to the system when it is freed, and the system clears all pages of the next one:
    a tenth of a training step on a CPU. With other C libraries this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_THRESHOLD, 2**25)  # the largest value that glibc accepts
    mallopt(TRIM_THRESHOLD, 2**31 - 1)


def share_freed_memory() -> None:
    """Let all threads use the same two heaps. Call it once, before there are threads.

    With glibc, each thread has a heap of its own by default, which keeps pieces of the largest work that it has done: a
    service with many threads grows. With other C libraries this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(ARENA_MAX, 2)


def release_freed_memory() -> None:
    """Return the freed memory that the C library has kept to the system.

    It takes milliseconds. With other C libraries than glibc this does nothing.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def pick_device(name: "str | torch.device") -> "torch.device":
    """Return the device of a name; "auto" is the accelerator, or the CPU if the machine has none.

    Under a launcher such as torchrun, the name "cuda" is the GPU with the local rank of this process.

    Raises:
        InputError: the device does not exist or cannot be used.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        name = accelerator.type
    local = os.environ.get("LOCAL_RANK")
    if local is not None and isinstance(name, str) and name.partition(":")[0] == "cuda":
        if name != "cuda":
            raise InputError(
                f'all processes of the launcher would share the device "{name}"; give cuda, '
                "and each process uses the GPU of its local rank"
            )
        name = f"cuda:{local}"
    return usable_device(name)


def usable_device(device: "str | torch.device") -> "torch.device":
    """Return the device after a first computation on it.

    Raises:
        InputError: the device does not exist or cannot be used.
    """
    import torch

    try:
        torch.zeros(1, device=device).item()
        return torch.device(device)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise InputError(f'device "{device}" cannot be used ({reason}); try auto or cpu') from error


def as_dtype(dtype: "str | torch.dtype | None") -> "torch.dtype | None":
    """Return the precision of a network as a type of torch: "float32" or "bfloat16"; None stays None.

    Raises:
        InputError: another precision.
    """
    import torch

    if dtype is None:
        return None
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    name = str(dtype).removeprefix("torch.")
    if name not in precisions:
        raise InputError(f'unknown precision "{name}"; choose from: {", ".join(precisions)}')
    return precisions[name]


def process_place() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, which launchers such as torchrun set."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def cache_folder() -> Path:
    """The user's cache folder of ditlab, for files that can be regenerated; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditlab"


def has_bfloat16(device: "torch.device") -> bool:
    """Whether the device has bfloat16 instructions.

    On a CPU without them, bfloat16 is hundreds of times slower than float32.
    """
    import torch

    if device.type == "cpu":
        available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def total_memory(device: "torch.device") -> int:
    """Memory of the device in bytes, or the memory limit of this container if that is smaller.

    A device without memory of its own, such as MPS, uses that of the machine.
    """
    import psutil  # type: ignore[import-untyped]
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([psutil.virtual_memory().total, *(limit for limit, _ in container_memory())])


def free_memory(device: "torch.device") -> int:
    """Free memory of the device in bytes: what can be used without swapping."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *(limit - used for limit, used in container_memory())])


def container_memory(own: Path = OWN_GROUP, groups: Path = GROUPS) -> Iterator[tuple[int, int]]:
    """Yield the memory limit and the memory use, in bytes, of each control group of this process (Linux).

    Args:
        own: the file with the paths of this process's groups.
        groups: the folder with the tree of all groups.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):  # a tree for all controllers (version 2), or for memory (version 1)
            yield from limits_in(groups / controllers, name.lstrip("/"), *GROUP_FILES[controllers])


def limits_in(tree: Path, name: str, limit_file: str, use_file: str, cached_key: str) -> Iterator[tuple[int, int]]:
    """Yield the limit and the use of a control group and of those that contain it, where they are set."""
    for group in (tree / name, *(tree / name).parents):
        if not group.is_relative_to(tree):
            return
        with suppress(OSError, ValueError):  # "max" is no limit
            limit = int((group / limit_file).read_text(encoding="ascii"))
            used = int((group / use_file).read_text(encoding="ascii"))
            cached = (group / "memory.stat").read_text(encoding="ascii").partition(f"{cached_key} ")[2]
            yield limit, used - int(cached.split()[0])  # the system releases cached files when it needs memory


def peak_memory(device: "torch.device") -> int:
    """Peak memory use of this process in bytes; 0 for devices that do not report it, such as MPS."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return 0
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, Linux KiB


def reset_peak_memory(device: "torch.device") -> None:
    """Reset `peak_memory` to the current memory use, where the system supports it."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc_pid_clear_refs(5)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is a failed memory allocation; on a CPU and with MPS only its message shows that."""
    import torch

    messages = ("DefaultCPUAllocator", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in messages)


def describe(device: str) -> dict[str, str | int]:
    """Names and versions of the hardware and software, which are saved with measured results."""
    import torch

    machine: dict[str, str | int] = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    return machine


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
