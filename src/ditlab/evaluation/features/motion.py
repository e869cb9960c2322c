"""The motion of a digit, measured from the pixels of a clip: its speed and acceleration, bounces, and whether it stays
the same digit.

The place of the digit is its center of mass above a threshold, to which slight noise does not contribute.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.data.builtin.digits import digits
from ditlab.data.builtin.moving_digits import DIGIT
from ditlab.evaluation.features.base import Extracted, Features
from ditlab.evaluation.features.digits import digit_classifier
from ditlab.evaluation.features.small import check_no_weights

THRESHOLD = 51  # of 255: darker pixels are background
SLOWEST = 0.3  # pixels: shorter steps along an axis have no direction, which a bounce could reverse
LEAST = 3  # frames that an acceleration needs
SIDE = 8  # of the images of the classifier


class MovingDigitFeatures(Features):
    """Speed, acceleration, bounces and same digit (see `measured`), and the classes of the digit over all frames."""

    name, dimension, channels = "moving-digits", 4, 1
    clips = measures_motion = True

    def __init__(self) -> None:
        self.classifier, self.classes = digit_classifier(), digits().classes
        self.weights = "none"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Extracted:
        """Features (B, 4) and probabilities (B, 10) of clips (B, 1, T, H, W) uint8.

        Raises:
            InputError: there are fewer than 3 frames.
        """
        if images.shape[2] < LEAST:
            raise InputError(f"clips of {images.shape[2]} frames; the motion of a digit needs {LEAST} or more")
        frames = images[:, 0]
        places = centers(frames)
        logits = self.classifier(cut_out(frames, places)).unflatten(0, frames.shape[:2])  # (B, T, 10)
        return Extracted(measured(places, logits.argmax(2)), probabilities=logits.softmax(2).mean(1))


def measured(places: Tensor, classes: Tensor) -> Tensor:
    """The features (B, 4) of clips.

    Speed is the median length of a step in pixels. Acceleration is the mean length of the change from one step to the
    next. Bounces are reversals of the direction along an axis. Same digit is 1 if all frames have the same class.

    Args:
        places: (B, T, 2) centers of the digit.
        classes: (B, T) classes of the frames.
    """
    steps = places.diff(dim=1)
    speed = steps.norm(dim=2).median(dim=1).values
    acceleration = steps.diff(dim=1).norm(dim=2).mean(1)
    bounces = torch.tensor([[float(reversals(axis)) for axis in clip.T] for clip in steps]).sum(1)
    same = (classes == classes[:, :1]).all(1).float()
    return torch.stack([speed, acceleration, bounces, same], 1)


def reversals(steps: Tensor) -> int:
    """How often the sign of steps (T - 1,) along an axis changes, without steps of less than `SLOWEST` pixels."""
    signs = steps[steps.abs() > SLOWEST].sign()
    return int((signs[1:] != signs[:-1]).sum())


def centers(frames: Tensor) -> Tensor:
    """Centers of mass (B, T, 2) of frames (B, T, H, W) uint8, from the left and the top; the middle if all is dark."""
    weights = (frames.float() - THRESHOLD).clamp(min=0)
    height, width = frames.shape[2:]
    total = weights.sum((2, 3))
    x = (weights.sum(2) * (torch.arange(width) + 0.5)).sum(2) / total
    y = (weights.sum(3) * (torch.arange(height) + 0.5)).sum(2) / total
    dark = total == 0
    return torch.stack([x.masked_fill(dark, width / 2), y.masked_fill(dark, height / 2)], 2)


def cut_out(frames: Tensor, places: Tensor, digit: float = 0) -> Tensor:
    """The digits (B T, 1, 8, 8) in frames (B, T, H, W) uint8 around their places, as the classifier reads them.

    `digit` is the side of a digit in pixels; 0 is half of the sides of a frame, as in the built-in clips.
    """
    height, width = frames.shape[2:]
    fine = 2 * SIDE
    offsets = (torch.arange(fine) + 0.5) / fine - 0.5  # shares of a digit
    flat = places.flatten(0, 1)
    x, y = (
        2 * (flat[:, i : i + 1] / side + offsets * (digit / side or DIGIT)) - 1
        for i, side in enumerate((width, height))
    )
    grid = torch.stack([x[:, None, :].expand(-1, fine, -1), y[:, :, None].expand(-1, -1, fine)], -1)
    sampled = F.grid_sample(frames.flatten(0, 1)[:, None].float(), grid, align_corners=False)
    return F.avg_pool2d(sampled, 2)


def load(weights: str, device: torch.device) -> Features:
    """The features "moving-digits", which are measured on the CPU."""
    check_no_weights("moving-digits", weights)
    return MovingDigitFeatures()
