"""Create modules without initial values, and copy modules with some parts replaced."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ditlab.core.errors import InputError

FILLING = {f"{name}_" for name in ("normal", "uniform", "trunc_normal", "xavier_uniform", "kaiming_uniform")}
FILLING |= {"zeros_", "ones_", "constant_"}
SIZED = {"empty", "zeros", "ones", "full", "rand", "randn"}  # functions that create tensors of a given shape
SPARE_NUMBERS, SPARE_TENSORS = 2**24, 1000  # what a network may create besides its weights, such as positions
M = TypeVar("M", bound=nn.Module)


class skip_init(TorchFunctionMode):  # noqa: N801 - used like a function: `with skip_init():`
    """A context in which new modules skip initialization, because their weights will be read from a file.

    With weights, the memory that the modules may take is bounded by theirs.

    No random numbers are generated, and most pages of memory stay untouched. The meta device has the same effect, but
    PyTorch imports its compiler for it, which takes two seconds.
    """

    def __init__(self, weights: Mapping[str, Tensor] | None = None, source: str = "") -> None:
        """Skip initialization, and with `weights` bound what the new modules may allocate.

        Args:
            weights: those that will be read. A configuration that asks for much more raises an error before the memory
                is allocated: 4 times their numbers and 16 times their tensors are allowed, and some of both for what is
                not saved.
            source: what describes the modules, for messages, such as a file and its values.
        """
        super().__init__()
        self.bounded, self.source = weights is not None, source
        self.weights = weights or {}
        self.stored = sum(value.numel() for value in self.weights.values())
        self.numbers, self.tensors = SPARE_NUMBERS + 4 * self.stored, SPARE_TENSORS + 16 * len(self.weights)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in FILLING:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            # trunc_normal_ repeats until no value lies outside the limits, as may be with uninitialized memory.
            if name == "normal_":
                tensor.detach().zero_()
            return tensor
        if self.bounded:
            self._count(name, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        """Count a tensor that is about to be created.

        Raises:
            InputError: it is one too many.
        """
        if name in SIZED:
            try:
                self.numbers -= func(*args, **kwargs | {"device": "meta"}).numel()
            except RuntimeError:  # more numbers than a tensor can have
                self.numbers = -1
        elif name == "arange":
            self.numbers -= _length(*args, **kwargs)
        else:
            return
        self.tensors -= 1
        if min(self.numbers, self.tensors) < 0:
            raise InputError(
                f"{self.source} describes a much larger network than its weights, which are {self.stored:,} numbers in "
                f"{len(self.weights):,} tensors; restore the file from a copy, or save the model again"
            )


def sizes(config: Mapping[str, Any]) -> str:
    """The whole numbers of a configuration in words, for messages: "depth 12, size 32x32"."""
    numbers = {key: value if isinstance(value, list | tuple) else [value] for key, value in config.items()}
    named = {key: value for key, value in numbers.items() if value and all(type(part) is int for part in value)}
    return ", ".join(f"{key} {'x'.join(map(str, value))}" for key, value in named.items())


def _length(start: float = 0, end: float | None = None, step: float = 1, **others: Any) -> int:
    """The length of `torch.arange`; PyTorch needs a third of a second to find it with the meta device."""
    return int(start if end is None else (end - start) / step)


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
