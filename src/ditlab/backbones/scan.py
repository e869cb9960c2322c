"""The selective scan of Mamba (Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023).

h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and y_t = C_t h_t. On a CPU a loop is fastest, because its state stays in
the cache; its backward pass recomputes the states of a few steps at a time. On other devices, `mamba-ssm` has a fused
kernel for CUDA, and `chunked` needs few launches. Decays are never divided by each other: sums of logarithms with a
difference afterwards, as Mamba-2 uses them for one decay per head, are wrong by up to 90 % for Mamba's decays. In
shapes, B is the batch, L the length, D the width and N the size of the state.
"""

import importlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.backbones.layers import precise
from ditlab.core.errors import InputError

STEPS = 16  # steps between two stored states
SCANS = ("auto", "loop", "chunked", "mamba-ssm")


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, kind: str = "auto") -> Tensor:
    """Compute the selective scan, in at least float32.

    Args:
        u: input (B, L, D).
        delta: step sizes (B, L, D), positive.
        a: A, (D, N), negative.
        b: B, (B, L, N).
        c: C, (B, L, N).
        kind: one of `SCANS`; "auto" is the loop on a CPU, and elsewhere `mamba-ssm` if it is installed and the device
            is CUDA, otherwise "chunked".

    Returns:
        y (B, L, D), in the precision of u.

    Raises:
        InputError: `mamba-ssm` was asked for but is not installed, or the tensors are not on CUDA.
    """
    device = u.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # it would round the products of the loop
        with torch.autocast(device, enabled=False):
            return selective_scan(u, delta, a, b, c, kind)
    dtype = precise(u.dtype)
    inputs = [value.to(dtype) for value in (u, delta, a, b, c)]
    if kind == "mamba-ssm" or (kind == "auto" and u.is_cuda and mamba() is not None):
        return fused(*inputs).to(u.dtype)
    loops = kind == "loop" or (kind == "auto" and u.device.type in ("cpu", "meta"))
    if loops and not torch.compiler.is_exporting():  # exported graphs have no loops
        u_, delta_, b_, c_ = (inputs[i].transpose(0, 1).contiguous() for i in (0, 1, 3, 4))
        return looped(u_, delta_, inputs[2], b_, c_)[0].transpose(0, 1).to(u.dtype)
    return chunked(*inputs).to(u.dtype)


def mamba() -> Any:
    """Import `mamba-ssm`; None if it is not installed."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError:
        return None


def fused(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Compute the scan with the kernel of `mamba-ssm`, arguments as for `selective_scan`."""
    if not u.is_cuda:
        raise InputError(f"scan mamba-ssm needs CUDA, and the network is on {u.device.type}; use scan auto")
    if (library := mamba()) is None:
        raise InputError("scan mamba-ssm needs its library; pip install 'ditlab[mamba]', or use scan auto")
    u, delta, b, c = (value.transpose(1, 2).contiguous() for value in (u, delta, b, c))
    y: Tensor = library.selective_scan_fn(u, delta, a, b, c)
    return y.transpose(1, 2)


def chunked(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Compute the scan of all chunks of the sequence at once, then the states between them; arguments as above."""
    length = u.shape[1]
    side = math.isqrt(length - 1) + 1
    chunks = -(-length // side)
    u, delta, b, c = (
        torch.unflatten(F.pad(value, (0, 0, 0, chunks * side - length)), 1, (chunks, side))
        for value in (u, delta, b, c)
    )  # (B, chunks, side, ...)
    decay = torch.exp(delta[..., None] * a)  # (B, chunks, side, D, N)
    entering = (delta * u)[..., None] * b[..., None, :]
    states = [entering[:, :, 0]]
    for k in range(1, side):
        states.append(torch.addcmul(entering[:, :, k], decay[:, :, k], states[-1]))
    since = torch.exp(delta.cumsum(2)[..., None] * a)  # decay since the start of the chunk; at most 1
    carried = torch.zeros_like(states[0][:, 0])  # (B, D, N)
    starts = []
    for i in range(chunks):
        starts.append(carried)
        carried = torch.addcmul(states[-1][:, i], since[:, i, -1], carried)
    state = torch.stack(states, 2) + since * torch.stack(starts, 1)[:, :, None]
    y = (state @ c[..., None])[..., 0]  # (B, chunks, side, D)
    return y.flatten(1, 2)[:, :length]


@torch.library.custom_op("ditlab::selective_scan", mutates_args=())
def looped(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the scan step by step.

    Args:
        u: input (L, B, D).
        delta: step sizes (L, B, D).
        a: A, (D, N).
        b: B, (L, B, N).
        c: C, (L, B, N).

    Returns:
        y (L, B, D), and the state before every `STEPS`-th step (L / STEPS, B, D, N).
    """
    h = u.new_zeros(u.shape[1], *a.shape)
    outputs, starts = [], []
    for chunk in range(0, len(u), STEPS):
        starts.append(h)
        states, _ = states_from(h, u[chunk : chunk + STEPS], delta[chunk : chunk + STEPS], a, b[chunk : chunk + STEPS])
        outputs.append((states @ c[chunk : chunk + STEPS, :, :, None])[..., 0])
        h = states[-1].clone()  # without the other states
    return torch.cat(outputs), torch.stack(starts)


@looped.register_fake
def _(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), u.new_empty(-(-u.shape[0] // STEPS), u.shape[1], *a.shape)


def states_from(h: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the states (K, B, D, N) after each of K steps from the state h (B, D, N) before them, and the decays."""
    decay = torch.exp(delta[..., None] * a)
    states = (delta * u)[..., None] * b[:, :, None]  # what enters, to which the decayed state is added in place
    for k in range(len(u)):
        h = states[k].addcmul_(decay[k], h)
    return states, decay


@torch.library.custom_op("ditlab::selective_scan_backward", mutates_args=())
def looped_backward(
    grad: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of u, delta, a, b and c, from that of y; states are recomputed from those in `starts`."""
    grads = [torch.empty_like(value) for value in (u, delta, b, c)]
    grad_a, carried = torch.zeros_like(a), torch.zeros_like(starts[0])
    for i in reversed(range(len(starts))):
        part = slice(i * STEPS, (i + 1) * STEPS)
        u_k, delta_k, b_k, c_k, grad_k = (value[part] for value in (u, delta, b, c, grad))
        states, decay = states_from(starts[i], u_k, delta_k, a, b_k)
        grad_states = grad_k[..., None] * c_k[:, :, None]  # (K, B, D, N)
        for k in reversed(range(len(u_k))):
            carried = grad_states[k].add_(carried).mul(decay[k])
        before = torch.cat([starts[i][None], states[:-1]])
        grad_log = decay.mul_(before).mul_(grad_states)  # of delta A
        grad_enter = (grad_states @ b_k[..., None])[..., 0]  # of delta u: (K, B, D)
        grads[0][part] = grad_enter * delta_k
        grads[1][part] = (grad_log * a).sum(-1).addcmul_(grad_enter, u_k)
        grads[2][part] = ((delta_k * u_k)[:, :, None] @ grad_states)[:, :, 0]
        grads[3][part] = (grad_k[:, :, None] @ states)[:, :, 0]
        grad_a += grad_log.mul_(delta_k[..., None]).sum((0, 1))
    return grads[0], grads[1], grad_a, grads[2], grads[3]


@looped_backward.register_fake
def _(
    grad: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    empty = torch.empty_like
    return empty(u), empty(delta), empty(a), empty(b), empty(c)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = looped_backward(grad.contiguous(), *ctx.saved_tensors)
    return gradients


looped.register_autograd(_gradients, setup_context=_save)
