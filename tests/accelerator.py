"""An accelerator that this machine does not have: it computes on the CPU, and refuses what MPS refuses."""

from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

# PyTorch refuses tensors on "mps" where it was built without it; with "meta" it leaves everything to the mode below.
NAME = "meta"
OTHER_DEVICES = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::_index_put_impl_", "aten::index_put_")


class OnDevice(torch.Tensor):
    """A tensor whose numbers lie in another tensor, on the CPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.size(), values.stride(), values.storage_offset(), dtype=values.dtype, device=NAME
        )

    def __init__(self, values):
        self.values = values

    def __tensor_flatten__(self):
        return ["values"], None

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **options):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("a tensor of the accelerator is used outside of `accelerator()`")


class Accelerator(TorchDispatchMode):
    """Keeps tensors of the device apart from those of the CPU, and refuses 64-bit floating-point numbers there."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        here = any(isinstance(value, OnDevice) for value in tensors)
        name = function._schema.name
        if here and name not in OTHER_DEVICES and any(t.ndim and not isinstance(t, OnDevice) for t in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
        if name == "aten::copy_" and isinstance(args[0], OnDevice) and wide(args[1]):
            raise TypeError(f"a float64 tensor is copied to the device ({name})")
        if kwargs.get("device") is not None:
            here = torch.device(kwargs["device"]).type == NAME
            kwargs["device"] = "cpu"
        here = here and name != "aten::_local_scalar_dense"
        result = function(*tree_map(values_of, args), **tree_map(values_of, kwargs))
        if not here or result is None:
            return result
        self.operations += 1
        placed = tree_map(place, result)
        return return_and_correct_aliasing(function, args, kwargs, placed) if function._schema.is_mutable else placed


def values_of(value):
    return value.values if isinstance(value, OnDevice) else value


def place(value):
    if not isinstance(value, torch.Tensor):
        return value
    if wide(value):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    return OnDevice(value)


def wide(value):
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128)


@contextmanager
def accelerator():
    """Within the block, the device of this module computes; yields the mode, which counts its operations."""
    autocast = torch.autocast

    def autocast_here(device, *options, **settings):
        return nullcontext() if device == NAME else autocast(device, *options, **settings)

    tensor = torch.tensor

    def tensor_here(values, *, device=None, **settings):  # without the mode, it makes a tensor of "meta" itself
        return tensor(values, **settings).to(device)

    constructors = dict.fromkeys(("tensor", "as_tensor"), tensor_here)
    with Accelerator() as mode, patch.multiple("torch", autocast=autocast_here, **constructors):
        yield mode
