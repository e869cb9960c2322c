"""Networks whose weights will be read from a file."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

FILLING = {f"{name}_" for name in ("normal", "uniform", "trunc_normal", "xavier_uniform", "kaiming_uniform")}
FILLING |= {"zeros_", "ones_", "constant_"}


class Unfilled(TorchFunctionMode):
    """Modules that are made in this context keep their memory as it comes: nothing is drawn, few pages are touched.

    The meta device would do as well, but PyTorch computes there in Python and loads its compiler first: two seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in FILLING:
            return func(*args, **(kwargs or {}))
        tensor = args[0] if args else (kwargs or {})["tensor"]
        # A truncated normal is drawn until no value lies outside, which memory as it comes might never do.
        if name == "normal_":
            tensor.detach().zero_()
        return tensor
