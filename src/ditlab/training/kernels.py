"""What the kernels of a device keep for the backward pass, computed on PyTorch's meta device.

On the meta device PyTorch has neither autocast nor fused attention: a forward pass there keeps float32 and all
attention weights. `KernelsOf` adds both, by the lists of operations in PyTorch's ATen/autocast_mode.h.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from ditlab.backbones.layers import stored_attention, stores_attention

HALF = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm", "einsum"}
HALF |= {f"conv{form}{n}d" for form in ("", "_transpose") for n in (1, 2, 3)}
# For accelerators only; on a CPU these operations keep the precision of their input.
FLOAT = {"layer_norm", "rms_norm", "group_norm", "softmax", "log_softmax", "logsumexp", "norm", "cosine_similarity"}
FLOAT |= {"exp", "expm1", "log", "log1p", "pow", "__pow__", "rsqrt", "reciprocal", "softplus", "cumsum", "cumprod"}
FLOAT |= {"interpolate", "mse_loss", "l1_loss", "huber_loss"}
WIDEST = {"addcmul", "addcdiv", "atan2", "bilinear", "grid_sample", "index_put", "scatter_add", "tensordot"}


class KernelsOf(TorchFunctionMode):
    """A context in which operations on the meta device keep the tensors that they would keep on a device.

    Args:
        kind: type of the device, "cpu" or "cuda".
        half: whether operations run in bfloat16 autocast.
    """

    def __init__(self, kind: str, half: bool) -> None:
        super().__init__()
        self.kind, self.half = kind, half
        self.copies: dict[Tensor, Tensor] = {}
        """Weight -> its bfloat16 copy."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if func is F.scaled_dot_product_attention:
            args, kwargs = self.converted(args, kwargs, torch.bfloat16)
            return self.attention(*args, **kwargs)
        if name in HALF:
            args, kwargs = self.converted(args, kwargs, torch.bfloat16)
        elif self.kind != "cpu" and name in FLOAT:
            args, kwargs = self.converted(args, kwargs, torch.float32)
        elif self.kind != "cpu" and name in WIDEST:
            floats = [value.dtype for value in args if isinstance(value, Tensor) and value.is_floating_point()]
            if torch.float32 in floats:
                args, kwargs = self.converted(args, kwargs, torch.float32)
        return func(*args, **kwargs)

    def converted(self, args: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
        """The arguments of an operation in a precision."""
        return [self.cast(value, dtype) for value in args], {key: self.cast(v, dtype) for key, v in kwargs.items()}

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Convert an argument as autocast does; the copy of a weight is made once."""
        if isinstance(value, (list, tuple)):
            return type(value)([self.cast(part, dtype) for part in value])
        if not (self.half and isinstance(value, Tensor) and value.is_floating_point()) or value.dtype is dtype:
            return value
        if isinstance(value, Parameter):
            if value not in self.copies:
                self.copies[value] = value.to(dtype)
            return self.copies[value]
        return value.to(dtype)

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, scale: float | None = None, **kwargs: Any
    ) -> Any:
        """Attention by the kernel of the device: the fused one keeps no attention weights."""
        if stores_attention(self.kind, query.dtype, key.shape[-2]):
            return stored_attention(query, key, value, scale)
        if query.ndim != 4:  # which the fused kernel does not take
            return F.scaled_dot_product_attention(query, key, value, *args, **kwargs | {"scale": scale})
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)[0]
