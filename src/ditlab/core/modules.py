"""Create modules without initial values, and copy modules with some parts replaced."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLING = {f"{name}_" for name in ("normal", "uniform", "trunc_normal", "xavier_uniform", "kaiming_uniform")}
FILLING |= {"zeros_", "ones_", "constant_"}
M = TypeVar("M", bound=nn.Module)


class skip_init(TorchFunctionMode):  # noqa: N801 - used like a function: `with skip_init():`
    """A context in which new modules skip initialization, because their weights will be read from a file.

    No random numbers are generated, and most pages of memory stay untouched. The meta device has the same effect, but
    PyTorch imports its compiler for it, which takes two seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in FILLING:
            return func(*args, **(kwargs or {}))
        tensor = args[0] if args else (kwargs or {})["tensor"]
        # trunc_normal_ repeats until no value lies outside the limits, which uninitialized memory might never satisfy.
        if name == "normal_":
            tensor.detach().zero_()
        return tensor


def with_modules(module: M, replaced: Mapping[Any, Any], shared: Iterable[Tensor] = ()) -> M:
    """Return a deep copy of a module with some parts replaced.

    Args:
        module: the source, which is not changed.
        replaced: module, parameter or buffer of the source -> its replacement, which is not copied.
        shared: parameters and buffers that the copy shares with the source.
    """
    # deepcopy uses an object that stands in its memo instead of copying it.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    return copy.deepcopy(module, memo | {id(old): new for old, new in replaced.items()})
