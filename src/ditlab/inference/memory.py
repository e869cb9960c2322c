"""Network calls that do not fit in memory are split, so that a sampler never has to start again."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditlab.core.device import out_of_memory
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.diffusion.objective import Network


@dataclass
class RowLimit:
    """The most batch rows in a network call, as far as failures have shown it; shared by all batches of a request."""

    rows: int | None = None


def halved(rows: int) -> int:
    """Half of the rows that did not fit in memory, with a warning.

    Raises:
        InputError: a single row did not fit.
    """
    if rows < 2:
        raise InputError("there is not enough memory to generate a single image; use another device")
    line = f"not enough memory for {rows} rows in a network call; continuing with {rows // 2} at a time"
    warnings.warn(line, stacklevel=3)
    return rows // 2


class Splitting:
    """A network that is called in parts where a whole batch does not fit in memory.

    The rows of a batch do not depend on each other, so the result is the same. The sampler does not notice a failed
    call, and nothing that counts its steps counts one twice.
    """

    def __init__(self, net: Network, limit: RowLimit) -> None:
        """Wrap a network.

        Args:
            net: (x, timestep, condition) -> output, all with the batch first.
            limit: what is known of the memory; changed when a call fails.
        """
        self.net, self.limit = net, limit

    def __call__(self, x: Tensor, t: Tensor, condition: Condition, **more: Any) -> Tensor:
        """The output (B, ...) for all rows."""
        outputs: list[Tensor] = []
        start = 0
        while start < len(x):
            rows = slice(start, len(x) if self.limit.rows is None else min(start + self.limit.rows, len(x)))
            try:
                if rows == slice(0, len(x)):
                    return self.net(x, t, condition, **more)
                outputs.append(self.net(x[rows], t[rows], condition[rows], **more))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self.limit.rows = halved(rows.stop - rows.start)
                continue
            start = rows.stop
        return torch.cat(outputs)
