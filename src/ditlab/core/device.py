"""The machine: devices, memory, precision, and its place among the processes of a launcher."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ditlab.core.errors import InputError

if TYPE_CHECKING:  # this file is read before every command, `--help` too
    import torch

OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt(3)


def keep_freed_memory() -> None:
    """Let the C library keep up to 2 GiB of freed memory for the next tensors. Call it once, before any work.

    glibc returns every large tensor to the system when it is freed, and the system clears all pages of the next one:
    a tenth of a training step on a CPU. With other C libraries this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_THRESHOLD, 2**25)  # the largest that glibc takes
    mallopt(TRIM_THRESHOLD, 2**31 - 1)


def pick_device(name: str) -> "torch.device":
    """The device by name; "auto" takes the accelerator if there is one, each process of a launcher its own.

    Raises:
        InputError: a device that is not there.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None:
            return torch.device("cpu")
        name = found.type
    local = os.environ.get("LOCAL_RANK")
    if local is not None and name.partition(":")[0] == "cuda":  # each process of a launcher its own
        if name != "cuda":
            raise InputError(f'device "{name}" for all processes of a launcher; give cuda, and each takes its own')
        name = f"cuda:{local}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'device "{name}" cannot be used ({str(error).splitlines()[0]}); try auto or cpu') from error
    return torch.device(name)


def process_place() -> tuple[int, int]:
    """Rank of this process and the number of processes, as launchers such as torchrun set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def cache_folder() -> Path:
    """The folder of this user for files that can be made again; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditlab"


def has_bfloat16(device: "torch.device") -> bool:
    """Whether the device has bfloat16 instructions; a CPU without them is hundreds of times slower than in float32."""
    import torch

    if device.type == "cpu":
        there = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def total_memory(device: "torch.device") -> int:
    """Bytes of memory of the device, or of this container if it has a limit."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for limit, _ in container_memory())])


def free_memory(device: "torch.device") -> int:
    """Bytes of memory that are still free; `sys.maxsize` where the system does not report it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = Path("/proc/meminfo").read_text(encoding="utf-8").partition("MemAvailable:")[2]
    except OSError:
        return sys.maxsize
    return min([int(free.split()[0]) * 1024, *(limit - used for limit, used in container_memory())])


def container_memory(own: Path = OWN_GROUP, groups: Path = GROUPS) -> Iterator[tuple[int, int]]:
    """Memory limits of this process's control groups, and the bytes used of each (Linux, version 2).

    Args:
        own: the file that names its group.
        groups: where the tree of all groups is.
    """
    try:
        name = own.read_text(encoding="utf-8").partition("0::/")[2].splitlines()[0]
    except (OSError, IndexError):
        return
    for group in (groups / name, *(groups / name).parents):
        if not group.is_relative_to(groups):
            return
        with suppress(OSError, ValueError):  # "max" is no limit
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            used = int((group / "memory.current").read_text(encoding="ascii"))
            cached = (group / "memory.stat").read_text(encoding="ascii").partition("inactive_file ")[2]
            yield limit, used - int(cached.split()[0])  # the system releases cached files when it needs memory


def peak_memory(device: "torch.device") -> int:
    """The most bytes that this process has used at one time."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak_memory(device: "torch.device") -> None:
    """Start `peak_memory` again from the present use, where the system supports it."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc_pid_clear_refs(5)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed; on a CPU only the message of the error says so."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def describe(device: str) -> dict[str, str | int]:
    """Names and versions of the machine, kept with results that others may compare."""
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
