"""Versions and hardware, as a bug report needs them. No paths, names of files or secrets are in it."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from ditlab.core.device import describe, has_bfloat16, pick_device, total_memory
from ditlab.core.version import __version__

REQUIREMENT = re.compile(r"([\w.-]+)[^;]*(?:;\s*extra\s*==\s*['\"](\w+)['\"])?")
COLLECTIONS = ("all", "dev", "docs", "studio")  # extras that are for developers, or consist of others
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PYTORCH_ENABLE_MPS_FALLBACK", "WORLD_SIZE")


def environment() -> dict[str, Any]:
    """Return versions, hardware, installed packages and the environment variables that matter, for a bug report."""
    import torch

    device = pick_device("auto")
    facts = describe(str(device))
    return {
        "ditlab": __version__,
        "python": facts["python"],
        "system": platform.platform(),
        "processor": facts["processor"],
        "cores": facts["cores"],
        "device": facts["device"],
        "memory": f"{total_memory(device) / 2**30:.1f} GiB",
        "bfloat16": "yes" if has_bfloat16(device) else "no",
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "none",
        "packages": packages(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def packages() -> dict[str, dict[str, str]]:
    """Return the versions of the required packages ("required"), and of those of each extra; "" if not installed."""
    try:
        requirements = requires("ditlab") or []
    except PackageNotFoundError:  # runs from a source folder that is not installed
        return {"required": {"torch": installed("torch")}}
    found: dict[str, dict[str, str]] = {}
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        if match is not None and match[2] not in COLLECTIONS and match[1] != "ditlab":  # an extra may contain another
            found.setdefault(match[2] or "required", {})[match[1]] = installed(match[1])
    return found


def installed(name: str) -> str:
    """The version of a package; "" if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
