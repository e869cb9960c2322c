"""Sequence parallelism: several processes share the tokens of each image.

Each process has a part of the tokens, and all weights. Everything but attention works on single tokens. Before
attention, the processes exchange tokens for heads: each receives all tokens of a part of the heads, and afterwards its
tokens of all heads (Jacobs et al., "DeepSpeed Ulysses", arXiv 2309.14509). The result is the same, with every kernel of
attention and on every device. PyTorch's own ring attention (`torch.distributed.tensor.experimental.context_parallel`,
2.13) exists for three CUDA kernels only, and takes neither masks nor tokens that all processes have.

Tokens of a condition, which have no place in an image, are computed in all processes. In shapes, B is the batch, n the
number of tokens of a process, M that of common tokens, P that of processes and d the width of a head.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

from ditlab.backbones.any_size import AnySize
from ditlab.backbones.layers import attend
from ditlab.core.errors import InputError
from ditlab.core.units import counted, sides_of

Maybe = TypeVar("Maybe", Tensor, None)


class TokenShare(NamedTuple):
    """The part of the tokens of each image that this process computes."""

    rank: int
    world: int  # number of processes among which the tokens are divided, in order
    group: Any = None  # of these processes; None on the meta device, where nothing is sent
    common: int = 0  # further tokens behind those of an image, which all processes compute; M

    def __deepcopy__(self, memo: dict[int, Any]) -> "TokenShare":
        return self  # a group of processes cannot be copied

    def own(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return this process's part of the tokens along a dimension.

        Raises:
            InputError: they cannot be divided.
        """
        if x.shape[dim] % self.world:
            raise InputError(f"{self.world} processes cannot share {x.shape[dim]} tokens or frames; give another size")
        return x.chunk(self.world, dim)[self.rank]

    def complete(self, x: Tensor) -> Tensor:
        """Return the tokens (B, P n, ...) of all processes, from those of this process (B, n, ...)."""
        return self.to_all(x).movedim(0, 1).flatten(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the attention of this process's tokens to those of all processes, as `layers.attend`.

        Args:
            q, k, v: (B, heads, n + M, d), the tokens of this process before those that all processes have; the queries
                may end before the latter.
            mask: (B, 1, 1, n + M) bool, true for tokens that count; None is all. Those of an image always count.

        Returns:
            (B, heads, n + M, d), as many as there are queries.
        """
        n = k.shape[2] - self.common
        # Under autocast, norms may return float32, which attention would round after it has been sent.
        q, k = q.to(v.dtype), k.to(v.dtype)
        own = torch.stack([x[:, :, :n] for x in (q, k, v)])  # (3, B, heads, n, d)
        parts = self.exchanged(torch.unflatten(own, 2, (self.world, -1)).movedim(2, 0))  # (P, 3, B, heads / P, n, d)
        whole = parts.movedim(0, 3).flatten(3, 4)  # (3, B, heads / P, P n, d)
        q, k, v = (
            torch.cat([image, self.own(x[:, :, n:])], dim=2) if self.common else image
            for image, x in zip(whole, (q, k, v), strict=True)
        )
        if mask is not None:
            mask = F.pad(mask[..., n:], (self.world * n, 0), value=True)
        out = attend(q, k, v, mask=mask)  # (B, heads / P, P n + M, d)
        image, text = out[:, :, : self.world * n], out[:, :, self.world * n :]
        back = self.exchanged(torch.unflatten(image, 2, (self.world, n)).movedim(2, 0))  # (P, B, heads / P, n, d)
        if text.shape[2]:
            back = torch.cat([back, self.to_all(text)], dim=3)
        return back.movedim(0, 1).flatten(1, 2)

    def to_all(self, x: Tensor) -> Tensor:
        """Send a tensor to all processes, and return those of all (P, ...); gradients are added in the same way."""
        return self.exchanged(x.expand(self.world, *x.shape))

    def exchanged(self, parts: Tensor) -> Tensor:
        """Send part i of P parts (P, ...) to process i, and return what this process received from each (P, ...)."""
        if self.group is None:
            return parts.clone(memory_format=torch.contiguous_format)
        return all_to_all_single_autograd(parts.contiguous(), None, None, self.group)


class TokenSharing(AnySize):
    """What a network needs so that processes can share the tokens of an image."""

    config: dict[str, Any]

    token_share: TokenShare | None = None
    """The part of the tokens that this process computes; None is all. `forward` returns all outputs in any case."""

    @property
    def undivided(self) -> str:
        """Why processes cannot share the tokens of an image; empty if they can.

        A family whose tokens can be shared overrides this and `exchanging`, and its forward pass uses `own_part` and
        `whole`.
        """
        return "its blocks do more than attention among tokens of one sequence"

    @property
    def exchanging(self) -> Iterable[nn.Module]:
        """The attentions among the tokens of an image, which have `heads` and take a `token_share`."""
        return []

    def divided(self, size: Sequence[int]) -> tuple[int, str]:
        """Return the number of pieces of an input of this size that processes share, and what they are called."""
        return self.tokens_at(size), "token"

    def check_sharing(self, count: int, sizes: Iterable[Sequence[int]] = ()) -> None:
        """Check that a number of processes can share the tokens of an image.

        Args:
            count: number of processes.
            sizes: sizes of the inputs; none is the size of the network.

        Raises:
            InputError: they cannot.
        """
        name, setting = self.config["name"], f"parallel.sequence is {count}"
        if self.undivided:
            raise InputError(f"{setting}, but the tokens of {name} cannot be shared, because {self.undivided}; omit it")
        for heads in sorted({int(module.heads) for module in self.exchanging}):  # type: ignore[arg-type]
            if heads % count:
                raise InputError(
                    f"{setting}, which does not divide the {counted(heads, 'head')} of {name}; give a divisor of them"
                )
        for size in sizes or [self.size]:
            units, what = self.divided(size)
            if units % count:
                raise InputError(
                    f"{setting}, which does not divide the {counted(units, what)} of {name} at {sides_of(size)}; give "
                    "a divisor of them"
                )

    def share_tokens(self, share: TokenShare | None) -> None:
        """Share the tokens of each input with other processes from now on, or not any more.

        All processes of the group then call the network with the same inputs, and each gets the whole output. A loss
        that each of them computes from it has the right gradient in the mean over all of them, as in data parallelism.

        Args:
            share: the part of this process; None is all tokens.

        Raises:
            InputError: the tokens of this network cannot be shared.
        """
        if share is not None:
            self.check_sharing(share.world)
        self.token_share = share
        for module in self.exchanging:
            module.token_share = share  # type: ignore[assignment]

    def own_part(self, x: Maybe, dim: int = 1) -> Maybe:
        """Return this process's part of a tensor along a dimension, if there is one."""
        return x if x is None or self.token_share is None else self.token_share.own(x, dim)

    def own_patches(self, x: Tensor, patch: int) -> Tensor:
        """Return the patches of this process in an image (B, C, H, W), side by side in one row (B, C, p, n p)."""
        if self.token_share is None:
            return x
        patches = x.unfold(2, patch, patch).unfold(3, patch, patch).flatten(2, 3)  # (B, C, N, p, p)
        return self.token_share.own(patches, 2).transpose(2, 3).flatten(3)

    def whole(self, x: Tensor) -> Tensor:
        """Return the tokens of all processes (B, N, ...), from those of this process (B, n, ...)."""
        return x if self.token_share is None else self.token_share.complete(x)
