"""Networks whose weights will be read from a file."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

FILLING = {f"{name}_" for name in ("normal", "uniform", "trunc_normal", "xavier_uniform", "kaiming_uniform")}
FILLING |= {"zeros_", "ones_", "constant_"}


class Unfilled(TorchFunctionMode):
    """Modules that are made in this context keep their memory as it comes: nothing is drawn, no page is touched.

    The meta device would do as well, but PyTorch computes there in Python and loads its compiler first: two seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in FILLING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
