"""Film strips of fields: predictions beside the truth."""

import numpy as np
from PIL import Image
from torch import Tensor

from ditlab.core.values import PixelValues
from ditlab.report.sheets import contact_sheet, to_pil

MOST = 8  # states in a row


def comparison(truth: Tensor, predicted: Tensor, values: PixelValues) -> Image.Image:
    """Arrange the true and the predicted states of a trajectory in rows, with their difference below.

    Args:
        truth: states (T, C, H, W) in the scale of the network.
        predicted: states of the same shape; the first is the true one.
        values: which channels are shown, and the numbers that are black and white. Gray is no difference.
    """
    chosen = np.unique(np.linspace(0, len(truth) - 1, MOST).round().astype(int))
    middle = values.normalized((Tensor([values.low]) + Tensor([values.high]))[..., None, None] / 2)
    rows = [truth[chosen], predicted[chosen], predicted[chosen] - truth[chosen] + middle]
    strips = [to_pil(values.displayed(row)) for row in rows]
    return contact_sheet([[image.convert("RGB") for image in strip] for strip in strips], ROWS)


ROWS = ("truth", "prediction", "difference")
