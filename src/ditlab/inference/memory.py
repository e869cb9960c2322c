"""Split network calls that do not fit into memory, so that sampling continues without a restart."""

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
    """Largest number of batch rows in a network call, reduced after failures; shared by all batches of a request."""

    rows: int | None = None


def halved(rows: int) -> int:
    """Return half of the number of rows that did not fit into memory, and warn.

    Raises:
        InputError: a single row does not fit.
    """
    if rows < 2:
        raise InputError("there is not enough memory to generate a single image or clip; use another device")
    line = f"not enough memory for {rows} rows in a network call; continuing with {rows // 2} at a time"
    warnings.warn(line, stacklevel=3)
    return rows // 2


class Splitting:
    """A network whose calls are split if a batch does not fit into memory.

    The rows of a batch do not depend on each other, so that the result is the same. A failed call is repeated in parts
    here, so that no sampler step is repeated or reported twice.
    """

    def __init__(self, net: Network, limit: RowLimit) -> None:
        """Wrap a network.

        Args:
            net: (x, timestep, condition) -> output, all with the batch first.
            limit: largest number of rows so far; reduced when a call fails.
        """
        self.net, self.limit = net, limit

    def __call__(self, x: Tensor, t: Tensor, condition: Condition, **more: Any) -> Tensor:
        """Compute the output (B, ...) for all rows."""
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
