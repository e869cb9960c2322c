"""Keys of published state dicts."""

from torch import Tensor


def count_of(tensors: dict[str, Tensor], prefix: str) -> int:
    """Return the number of modules in the list that has this prefix ("blocks.")."""
    start = len(prefix)
    return len({key[start:].split(".")[0] for key in tensors if key.startswith(prefix)})
