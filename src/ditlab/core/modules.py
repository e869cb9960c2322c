"""Making modules without initial values, and copies of modules in which some parts are others."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLING = {f"{name}_" for name in ("normal", "uniform", "trunc_normal", "xavier_uniform", "kaiming_uniform")}
FILLING |= {"zeros_", "ones_", "constant_"}
M = TypeVar("M", bound=nn.Module)


class skip_init(TorchFunctionMode):  # noqa: N801 - used like a function: `with skip_init():`
    """A context in which new modules keep uninitialized memory, for weights that will be read from a file.

    No random numbers are generated, and few pages of memory are touched. The meta device would do as well, but PyTorch
    computes there in Python and first loads its compiler, which takes two seconds.
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
    """A deep copy of a module that has other parts in some places.

    Args:
        module: stays as it is.
        replaced: modules, parameters or buffers inside it, and what the copy has instead of each, uncopied.
        shared: parameters and buffers that the copy has in common with the module.
    """
    kept: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    # deepcopy takes an object from its memo, by id, instead of copying it.
    return copy.deepcopy(module, kept | {id(old): new for old, new in replaced.items()})
