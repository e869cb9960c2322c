"""Training: setup in stages, the training loop, objectives, training aids, and run folders with checkpoints."""

from ditlab.training.api import train
from ditlab.training.distillation import distill

__all__ = ["distill", "train"]
