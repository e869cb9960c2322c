"""Create modules whose weights will be read from a file, without initializing them."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

FILLING = {f"{name}_" for name in ("normal", "uniform", "trunc_normal", "xavier_uniform", "kaiming_uniform")}
FILLING |= {"zeros_", "ones_", "constant_"}


class Unfilled(TorchFunctionMode):
    """A context in which new modules keep uninitialized memory: no random numbers, few pages touched.

    The meta device would do as well, but PyTorch computes there in Python and loads its compiler first: two seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in FILLING:
            return func(*args, **(kwargs or {}))
        tensor = args[0] if args else (kwargs or {})["tensor"]
        # A truncated normal is sampled again until no value lies outside, which never ends on uninitialized NaNs.
        if name == "normal_":
            tensor.detach().zero_()
        return tensor
